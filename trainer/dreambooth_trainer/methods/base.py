"""What a training method does to a model: which weights learn, and how they come back into the model.

Methods know no family: they get modules and the names of layers that may be adapted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dreambooth_api.training import Training

if TYPE_CHECKING:
    from torch import Tensor, nn


class Method(Protocol):
    """One way to fine-tune."""

    def prepare(self, module: nn.Module, training: Training, layers: Sequence[str]) -> None:
        """Make `module` ready to learn; what shall not learn has requires_grad False afterwards."""
        ...

    def adapter(
        self, module: nn.Module, trained: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]] | None:
        """Trained weights of a prepared module as an adapter of its own; None where a method makes none.

        Returns:
            The weights by peft's names, and peft's configuration.
        """
        ...

    def restore(self, module: nn.Module, trained: Mapping[str, Tensor], training: Training) -> nn.Module:
        """Put trained weights into a prepared module and undo what `prepare` wrapped around it."""
        ...
