"""Full fine-tuning: all weights are trained, as in the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from dreambooth_api.training import Training


class Full:
    """Trains all weights of a module."""

    def prepare(self, module: nn.Module, training: Training, target_modules: Sequence[str]) -> None:
        del training, target_modules
        module.requires_grad_(True)

    def adapter(self, module: nn.Module, trained: Mapping[str, Tensor]) -> None:
        del module, trained

    def restore(self, module: nn.Module, trained: Mapping[str, Tensor], training: Training) -> nn.Module:
        del training
        module.load_state_dict(dict(trained))
        return module
