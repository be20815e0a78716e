"""The modes of `spec.priorPreservation.mode`. Rules of the API are derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PreservationMode = Literal["Images", "Prediction", "Bound", "None"]


@dataclass(frozen=True)
class ModeTraits:
    """One mode of prior preservation.

    Attributes:
        description: what the prior loss is, for the API reference.
        members: fields of `spec.priorPreservation` that apply to it. Other modes reject them.
        loss_weight: default weight of the prior loss; None if there is none.
        class_examples: whether each step also trains on as many examples with the class prompt as instance images.
    """

    description: str
    members: tuple[str, ...] = ()
    loss_weight: float | None = None
    class_examples: bool = False


MODES: dict[PreservationMode, ModeTraits] = {
    "Images": ModeTraits(
        "the loss of class images, which the base model generates before training, as in the paper",
        ("num_class_images", "images", "sampler", "loss_weight"),
        loss_weight=1.0,
        class_examples=True,
    ),
    "Prediction": ModeTraits(
        "the difference from the frozen base model's predictions for noisy instance images with the class prompt",
        ("loss_weight",),
        loss_weight=1.0,
        class_examples=True,
    ),
    # A first choice, not tuned: about the size of the instance loss when the weights have moved as far as without it.
    "Bound": ModeTraits(
        "the squared distance of the weights from those of the base model",
        ("loss_weight",),
        loss_weight=0.01,
    ),
    "None": ModeTraits("no prior loss"),
}
MODE_MEMBERS = tuple(dict.fromkeys(member for traits in MODES.values() for member in traits.members))
"""All fields of `spec.priorPreservation` that apply to some modes only."""


def modes_with(member: str) -> tuple[PreservationMode, ...]:
    """Names of the modes that a field of `spec.priorPreservation` applies to."""
    return tuple(name for name, traits in MODES.items() if member in traits.members)
