"""Low-rank adapters: W + alpha/rank x B A, with W frozen (Hu et al. 2021, equation 3)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dreambooth_api.training import Lora as Settings
from dreambooth_trainer.methods.base import Learner, Result, Targets, Trainee, groups_by_module, load_trained
from dreambooth_trainer.planning.plan import Plan


class Lora:
    """Trains adapters of the LoRA target modules. `result` merges them into the weights."""

    use_dora = False

    def prepare(self, stage: Trainee, plan: Plan, targets: Targets) -> Learner:
        for name, module in stage.modules.items():
            module.requires_grad_(False)
            dora = self.use_dora and name == stage.denoiser
            add_adapters(module, plan.spec.training.adapters, targets[name], use_dora=dora)
        return Learner(stage.modules, groups_by_module(stage, plan))

    def result(self, stage: Trainee, plan: Plan, weights: Mapping[str, Mapping[str, Tensor]]) -> Result:
        del plan
        adapters = {name: adapter(stage.modules[name], trained) for name, trained in weights.items()}
        return Result({name: merge(stage.modules[name], trained) for name, trained in weights.items()}, adapters)


def add_adapters(
    module: nn.Module, settings: Settings, target_modules: Sequence[str], *, use_dora: bool = False
) -> None:
    """Add trainable adapters to the layers of a frozen module whose names end with `target_modules`."""
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or settings.rank,  # pyright: ignore[reportArgumentType] - PEFT accepts any number
        target_modules=list(target_modules),
        use_dora=use_dora,
    )
    inject_adapter_in_model(config, module)


def products(module: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter, float]]:
    """A, B, and the scale alpha/rank of their product, of each layer with an adapter."""
    for _, down, up, scale in named_products(module):
        yield down, up, scale


def named_products(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Parameter, float]]:
    """As `products`, with the name of each layer."""
    for layer_name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            for name in layer.lora_A:
                yield layer_name, _weight(layer.lora_A[name]), _weight(layer.lora_B[name]), layer.scaling[name]


def magnitudes(module: nn.Module) -> Iterator[nn.Parameter]:
    """The magnitudes of each layer with a weight-decomposed adapter, [outputs, ...]."""
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            yield from (_weight(magnitude) for magnitude in layer.lora_magnitude_vector.values())


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


@contextlib.contextmanager
def without_adapters(modules: Mapping[str, nn.Module]) -> Iterator[Mapping[str, nn.Module]]:
    """The modules as if they had no adapters."""
    layers = [part for module in modules.values() for part in module.modules() if isinstance(part, BaseTunerLayer)]
    for layer in layers:
        # Not `enable_adapters`, which changes which weights are trained; DeepSpeed does not see that.
        layer._disable_adapters = True
    try:
        yield modules
    finally:
        for layer in layers:
            layer._disable_adapters = False


def adapter(module: nn.Module, trained: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """The trained weights of a module with adapters, with PEFT's names, and PEFT's configuration."""
    # The configuration is needed for alpha, which cannot be derived from the weights.
    configs: dict[str, PeftConfig] = module.peft_config  # pyright: ignore[reportAssignmentType] - set by PEFT
    (config,) = configs.values()
    return get_peft_model_state_dict(module, state_dict=dict(trained), save_embedding_layers=False), config.to_dict()


def load_adapter(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the adapters of a prepared module.

    Args:
        weights: with PEFT's names, as `adapter` returns them: all of them, and no others.

    Raises:
        ValueError: weights are missing, or are of another model.
    """
    load_trained(module, {f"{name.removesuffix('.weight')}.default.weight": value for name, value in weights.items()})


def merge(module: nn.Module, trained: Mapping[str, Tensor]) -> nn.Module:
    """Load trained adapters into a module, and merge them into its weights."""
    load_trained(module, trained)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], layer.get_base_layer())
    return module
