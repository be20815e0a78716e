"""Low-rank adapters: W + alpha/rank x B A, with W frozen (Hu et al. 2021, equation 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dreambooth_trainer.spec import Training


class Lora:
    """Adapters beside the family's adaptable layers; publishing merges them into the weights."""

    def prepare(self, module: nn.Module, training: Training, layers: Sequence[str]) -> None:
        module.requires_grad_(False)
        rank = training.lora.rank
        config = LoraConfig(
            r=rank,
            lora_alpha=training.lora.alpha or rank,  # pyright: ignore[reportArgumentType] - peft divides, any number will do
            target_modules=list(layers),
        )
        inject_adapter_in_model(config, module)

    def restore(self, module: nn.Module, trained: Mapping[str, Tensor], training: Training) -> nn.Module:
        del training
        unknown = module.load_state_dict(dict(trained), strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"trained weights have no place in the model: {unknown[:3]}")
        for name, layer in list(module.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                parent = module.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], layer.get_base_layer())
        return module
