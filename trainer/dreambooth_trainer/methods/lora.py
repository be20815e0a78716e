"""Low-rank adapters: W + alpha/rank x B A, with W frozen (Hu et al. 2021, equation 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dreambooth_api.training import Training


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

    def adapter(
        self, module: nn.Module, trained: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        # With the configuration, because a rank can be seen from the weights and alpha cannot.
        config: dict[str, PeftConfig] = module.peft_config  # pyright: ignore[reportAssignmentType] - peft sets it
        (adapter,) = config.values()
        weights = get_peft_model_state_dict(module, state_dict=dict(trained), save_embedding_layers=False)
        return weights, adapter.to_dict()

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
