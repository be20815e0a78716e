"""Low-rank adapters: W + alpha/rank x B A, with W frozen (Hu et al. 2021, equation 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dreambooth_api.training import Training


class Lora:
    """Trains adapters of the LoRA target modules. `restore` merges them into the weights."""

    def prepare(self, module: nn.Module, training: Training, target_modules: Sequence[str]) -> None:
        module.requires_grad_(False)
        rank = training.lora.rank
        config = LoraConfig(
            r=rank,
            lora_alpha=training.lora.alpha or rank,  # pyright: ignore[reportArgumentType] - PEFT accepts any number
            target_modules=list(target_modules),
        )
        inject_adapter_in_model(config, module)

    def adapter(
        self, module: nn.Module, trained: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        # The configuration is needed for alpha, which cannot be derived from the weights.
        config: dict[str, PeftConfig] = module.peft_config  # pyright: ignore[reportAssignmentType] - set by PEFT
        (adapter,) = config.values()
        weights = get_peft_model_state_dict(module, state_dict=dict(trained), save_embedding_layers=False)
        return weights, adapter.to_dict()

    def restore(self, module: nn.Module, trained: Mapping[str, Tensor], training: Training) -> nn.Module:
        del training
        unknown = module.load_state_dict(dict(trained), strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"trained weights do not match the model: {unknown[:3]}")
        for name, layer in list(module.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                parent = module.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], layer.get_base_layer())
        return module
