"""Fine-tuning methods by their name in the API."""

from __future__ import annotations

from dreambooth_trainer.methods.base import Method

REGISTRY = {
    "Full": "dreambooth_trainer.methods.full:Full",
    "LoRA": "dreambooth_trainer.methods.lora:Lora",
    "DoRA": "dreambooth_trainer.methods.dora:Dora",
    "TextualInversion": "dreambooth_trainer.methods.textual_inversion:TextualInversion",
    "PivotalTuning": "dreambooth_trainer.methods.pivotal_tuning:PivotalTuning",
}


def open_method(name: str) -> Method:
    """The fine-tuning method with this name in `spec.training.method`. Imports its libraries."""
    module, _, attribute = REGISTRY[name].partition(":")
    return getattr(__import__(module, fromlist=[attribute]), attribute)()
