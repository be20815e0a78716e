"""What each fine-tuning method of `spec.training.method` trains and publishes. Rules of the API derive from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MethodTraits:
    """One fine-tuning method.

    Attributes:
        description: what it trains, for the API reference.
        members: fields of `spec.training` with its settings. Other methods reject them.
        formats: that it can publish, and `default_formats` of them.
        weights: whether it trains all weights of modules. Other methods leave the text encoders frozen by default.
        adapter: whether it trains an adapter, which is published in format lora.
        kohya: whether the adapter is also published in kohya's layout.
        tokens: whether it trains the embeddings of new tokens, which replace the identifier. The text encoders' own
            weights stay frozen then.
        changes_weights: whether the weights of the model change. If not, prior preservation does not apply.
        trains: whether it trains anything. If not, settings of the training do not apply.
        max_zero_stage: the highest ZeRO stage that it can be trained with.
    """

    description: str
    members: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("diffusers", "safetensors")
    default_formats: tuple[str, ...] = ("diffusers", "safetensors")
    weights: bool = False
    adapter: bool = False
    kohya: bool = False
    tokens: bool = False
    changes_weights: bool = True
    trains: bool = True
    max_zero_stage: int = 3


_ADAPTER: dict[str, Any] = {
    "adapter": True,
    "members": ("lora",),
    "formats": ("lora", "diffusers", "safetensors"),
    "default_formats": ("lora",),
}
_LORA: dict[str, Any] = {**_ADAPTER, "members": ("lora", "hyper_network")}
METHODS = {
    "Full": MethodTraits("trains all weights of the denoiser", weights=True),
    "LoRA": MethodTraits("trains low-rank adapters", kohya=True, **_LORA),
    # Not in kohya's layout: diffusers' loader ignores magnitudes there, so the file could not be tested.
    # PEFT (0.21) reads the weights of a layer's parts without calling the parts, so ZeRO-3 does not gather them.
    "DoRA": MethodTraits("trains low-rank adapters and magnitudes", max_zero_stage=2, **_ADAPTER),
    "TextualInversion": MethodTraits(
        "trains the embeddings of new tokens for the identifier",
        members=("textual_inversion",),
        # A single file has no tokenizer, so it would lose the tokens.
        formats=("embeddings", "diffusers"),
        default_formats=("embeddings",),
        tokens=True,
        changes_weights=False,
    ),
    "PivotalTuning": MethodTraits(
        "trains new tokens and low-rank adapters of the denoiser together",
        members=("lora", "textual_inversion"),
        formats=("lora", "embeddings", "diffusers"),
        default_formats=("lora", "embeddings"),
        adapter=True,
        kohya=True,
        tokens=True,
    ),
    "None": MethodTraits(
        "trains nothing, and gives the images of the subject to an image-prompt adapter (IP-Adapter)",
        members=("image_prompt",),
        formats=("ip-adapter",),
        default_formats=("ip-adapter",),
        changes_weights=False,
        trains=False,
    ),
}
MEMBERS = tuple(dict.fromkeys(member for traits in METHODS.values() for member in traits.members))
"""All fields of `spec.training` that belong to methods."""


def methods_with(member: str) -> tuple[str, ...]:
    """Names of the methods that a field of `spec.training` belongs to."""
    return tuple(name for name, traits in METHODS.items() if member in traits.members)


def methods_of_format(name: str) -> tuple[str, ...]:
    """Names of the methods that can publish a format."""
    return tuple(method for method, traits in METHODS.items() if name in traits.formats)


ADAPTER_WITH_TOKENS = tuple(name for name, traits in METHODS.items() if traits.adapter and traits.tokens)
"""Methods whose adapter and new tokens are trained together, so that one is of no use without the other."""
TOKEN_METHODS = tuple(name for name, traits in METHODS.items() if traits.tokens)
WITHOUT_TRAINING = tuple(name for name, traits in METHODS.items() if not traits.trains)
WITHOUT_PRIOR = tuple(name for name, traits in METHODS.items() if not traits.changes_weights)
