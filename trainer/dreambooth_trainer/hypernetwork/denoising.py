"""The denoising loss of predicted adapters, the other loss of a HyperNetwork (HyperDreamBooth, Ruiz et al. 2024).

Products of adapters say little about which of their parts matter: after short trainings most of them is noise. This
loss is that of a training step of the job, with its adapter replaced by the predicted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor
from torch.func import functional_call

from dreambooth_trainer.cluster.hardware import work_device
from dreambooth_trainer.hypernetwork.files import LayerShape
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.batches import DeterministicSampler
from dreambooth_trainer.training.cache import TrainingData
from dreambooth_trainer.training.model import build_module
from dreambooth_trainer.training.module import make_batch
from dreambooth_trainer.training.preservation import Preservation


class Denoising:
    """Computes the loss for jobs with the same base model and settings of adapters.

    Args:
        plan: of one of the jobs.
        data: returns the encoded images of each job, on a device. Class images are not used.
    """

    def __init__(
        self, plan: Plan, layers: Mapping[str, LayerShape], data: Sequence[Callable[[str], TrainingData]]
    ) -> None:
        self._device = work_device()
        self._module = build_module(plan).requires_grad_(False).to(self._device)
        self._module.preservation = Preservation()
        self._plan, self._layers, self._data = plan, layers, data

    def loss(self, job: int, adapter: Mapping[str, tuple[Tensor, Tensor]], step: int, seed: int) -> Tensor:
        """The instance loss of one micro-batch, a scalar.

        Args:
            adapter: A [r, i] and B [o, r] of each layer.
            step, seed: determine images, noise and positions in the noise schedule.
        """
        data, stage = self._data[job](self._device), self._module.stage
        images = data.instance_images
        sampler = DeterministicSampler(images.indices, self._plan.batch_size, seed, self._plan.variants_per_image)
        batch = make_batch(stage, TrainingData(images, None), (sampler, None), step, 0, 1)
        weights: dict[str, Tensor] = {}
        for name, (down, up) in adapter.items():
            layer, shape = f"trained.{stage.denoiser}.{name}", self._layers[name]
            weights[f"{layer}.lora_A.default.weight"] = down.reshape(shape.down).to(self._device)
            weights[f"{layer}.lora_B.default.weight"] = up.reshape(shape.up).to(self._device)
        return functional_call(self._module, weights, (batch,))[1].cpu()
