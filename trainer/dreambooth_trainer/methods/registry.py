"""The training methods by the name that a job file gives them."""

from __future__ import annotations

from dreambooth_trainer.methods.base import Method


def open_method(name: str) -> Method:
    """A method by its name in `spec.training.method`."""
    match name:
        case "Full":
            from dreambooth_trainer.methods.full import Full

            return Full()
        case "LoRA":
            from dreambooth_trainer.methods.lora import Lora

            return Lora()
        case _:
            raise ValueError(f"unknown training method {name!r}")
