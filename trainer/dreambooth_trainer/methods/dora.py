"""Weight-decomposed low-rank adapters: m (W + alpha/rank x B A) / |W + alpha/rank x B A| (Liu et al. 2024, equation 5).

The magnitude m of each output channel is trained as well. The published weights have the names of PEFT, with
`lora_magnitude_vector`.
"""

from __future__ import annotations

from dreambooth_trainer.methods.lora import Lora


class Dora(Lora):
    """Trains direction and magnitude of the denoiser's LoRA target modules.

    Text encoders get adapters without magnitudes, which transformers (5.23) does not load.
    """

    use_dora = True
