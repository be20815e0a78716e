"""Fine-tuning methods by their name in the API."""

from __future__ import annotations

from dreambooth_trainer.methods.base import Method


def open_method(name: str) -> Method:
    """The fine-tuning method with this name in `spec.training.method`.

    Raises:
        ValueError: there is no such method.
    """
    match name:
        case "Full":
            from dreambooth_trainer.methods.full import Full

            return Full()
        case "LoRA":
            from dreambooth_trainer.methods.lora import Lora

            return Lora()
        case _:
            raise ValueError(f"unknown training method {name!r}")
