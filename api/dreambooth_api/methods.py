"""What each fine-tuning method of `spec.training.method` trains and publishes. Rules of the API derive from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodTraits:
    """One fine-tuning method.

    Attributes:
        description: what it trains, for the API reference.
        members: fields of `spec.training` with its settings. Other methods reject them.
        adapter: whether it trains an adapter, which is published in format lora.
        kohya: whether the adapter is also published in kohya's layout.
    """

    description: str
    members: tuple[str, ...] = ()
    adapter: bool = False
    kohya: bool = False


METHODS = {
    "Full": MethodTraits("trains all weights of the denoiser"),
    "LoRA": MethodTraits("trains low-rank adapters", members=("lora",), adapter=True, kohya=True),
    # Not in kohya's layout: diffusers' conversion drops the magnitudes, and its loader of that layout ignores them.
    "DoRA": MethodTraits("trains low-rank adapters and magnitudes", members=("lora",), adapter=True),
}
MEMBERS = tuple(dict.fromkeys(member for traits in METHODS.values() for member in traits.members))
"""All fields of `spec.training` that belong to methods."""


def methods_with(member: str) -> tuple[str, ...]:
    """Names of the methods that a field of `spec.training` belongs to."""
    return tuple(name for name, traits in METHODS.items() if member in traits.members)


ADAPTER_METHODS = tuple(name for name, traits in METHODS.items() if traits.adapter)
"""Names of the methods that train an adapter."""
