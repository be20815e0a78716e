"""The interface of a fine-tuning method: which weights are trained, and how they are merged into the model.

Methods are independent of model families: they get modules and the names of LoRA target modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dreambooth_api.training import Training

if TYPE_CHECKING:
    from torch import Tensor, nn


class Method(Protocol):
    """One fine-tuning method."""

    def prepare(self, module: nn.Module, training: Training, target_modules: Sequence[str]) -> None:
        """Prepare `module` for training. Frozen parameters have requires_grad False afterwards.

        Args:
            target_modules: suffixes of the names of LoRA target modules.
        """
        ...

    def adapter(
        self, module: nn.Module, trained: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]] | None:
        """The trained weights of a prepared module as a separate adapter.

        Returns:
            The weights with PEFT's names, and PEFT's configuration; None if the method trains no adapter.
        """
        ...

    def restore(self, module: nn.Module, trained: Mapping[str, Tensor], training: Training) -> nn.Module:
        """Load trained weights into a prepared module, and merge and remove the layers that `prepare` added."""
        ...
