"""The interface of a fine-tuning method: which weights are trained, and what they become.

Methods are independent of model families: of a family's stage they see modules and the names of LoRA target modules.
Facts about a method that need no libraries, such as the formats it publishes, are in `dreambooth_api.methods`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dreambooth_trainer.planning.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor, nn

Targets = Mapping[str, Sequence[str]]
"""Suffixes of the names of LoRA target modules, by module."""


class Slot(Protocol):
    """A text encoder that can get new tokens: the name of its module, and its tokenizer."""

    @property
    def module(self) -> str: ...

    @property
    def tokenizer(self) -> Any: ...


class Trainee(Protocol):
    """What a method needs of a family's stage.

    Attributes:
        denoiser: name of the denoiser's module.
        modules: by name; those that are open.
        text: the text encoders that can get new tokens, also those that are not open.
    """

    denoiser: str
    modules: dict[str, nn.Module]

    @property
    def text(self) -> Sequence[Slot]: ...


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained with the same learning rate."""

    parameters: list[nn.Parameter]
    learning_rate: float


@dataclass(frozen=True)
class Learner:
    """A stage that is ready to learn.

    Attributes:
        modules: those that the loss needs, by name. Frozen parameters have requires_grad False.
        groups: all trainable parameters. The first group is reported as the learning rate of a step.
    """

    modules: Mapping[str, nn.Module]
    groups: Sequence[ParameterGroup]


@dataclass(frozen=True)
class Result:
    """What trained weights become.

    Attributes:
        modules: with the trained weights merged, as the base model has them.
        adapters: by module: weights with PEFT's names, and PEFT's configuration.
        embeddings: of new tokens, by module and identifier, each [V, D].
    """

    modules: Mapping[str, nn.Module]
    adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]] = field(
        default_factory=dict[str, "tuple[Mapping[str, Tensor], Mapping[str, Any]]"]
    )
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict[str, "Mapping[str, Tensor]"])


class Method(Protocol):
    """One fine-tuning method."""

    def prepare(self, stage: Trainee, plan: Plan, targets: Targets) -> Learner:
        """Prepare the modules of a stage for training: all that the loss needs, or some of them."""
        ...

    def result(self, stage: Trainee, plan: Plan, weights: Mapping[str, Mapping[str, Tensor]]) -> Result:
        """Load trained weights into a prepared stage, and merge and remove what `prepare` added.

        Args:
            weights: trained parameters by module, with their names in the prepared module.
        """
        ...


def groups_by_module(stage: Trainee, plan: Plan) -> list[ParameterGroup]:
    """The trainable parameters of the denoiser, and those of the text encoders with their own learning rate."""
    groups = [
        ParameterGroup(
            [parameter for parameter in module.parameters() if parameter.requires_grad],
            plan.learning_rate if name == stage.denoiser else plan.text_encoder_learning_rate,
        )
        for name, module in stage.modules.items()
    ]
    return [group for group in groups if group.parameters]


def load_trained(module: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Load trained weights into a prepared module. Frozen weights, and buffers like position embeddings, stay.

    Raises:
        ValueError: trained weights are missing, or are of another model.
    """
    found = module.load_state_dict(dict(trained), strict=False)
    missing = {name for name, parameter in module.named_parameters() if parameter.requires_grad} - trained.keys()
    if found.unexpected_keys or missing:
        raise ValueError(f"trained weights do not match the model: {[*found.unexpected_keys, *missing][:3]}")
