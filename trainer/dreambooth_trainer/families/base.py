"""What a model family answers. Families know nothing of methods: a method asks for modules and changes them.

Shapes: N images, C latent channels, h x w latent size, L tokens, D conditioning width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline
    from PIL import Image
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

ADAPTER_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Components:
    """A base model taken apart for training. `vae` is None once latents are cached."""

    denoiser: nn.Module
    text_encoder: nn.Module
    tokenizer: PreTrainedTokenizerBase
    noise_scheduler: DDPMScheduler
    vae: AutoencoderKL | None = None


class Family(Protocol):
    """One way to build a text-to-image diffusion model."""

    name: str

    def load(self, folder: Path, *, with_vae: bool) -> Components:
        """Read a diffusers folder, fp32, on the CPU."""
        ...

    def pipeline(self, folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
        """The whole model, ready to draw."""
        ...

    def encode_images(self, parts: Components, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents, each [N, C, h, w]."""
        ...

    def tokenize(self, parts: Components, prompts: Sequence[str]) -> Tensor:
        """Token ids [N, L], padded."""
        ...

    def encode_prompts(self, text_encoder: nn.Module, token_ids: Tensor) -> Tensor:
        """What the denoiser is conditioned on, [N, L, D]."""
        ...

    def predict(self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        """The denoiser's answer [N, C, h, w] to noisy latents [N, C, h, w] at timesteps [N]."""
        ...

    def loss_target(self, scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What `predict` should have answered, [N, C, h, w]."""
        ...

    def lora_target_modules(self) -> Mapping[str, Sequence[str]]:
        """Name endings of the linear and convolution layers that adapters may change, by field of `Components`."""
        ...

    def save(self, base: Path, denoiser: nn.Module, text_encoder: nn.Module, target: Path) -> None:
        """Write a diffusers folder (fp16 safetensors) with these two modules in place of the base's."""
        ...

    def save_adapter(
        self, adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]], target: Path
    ) -> None:
        """Write `ADAPTER_FILE` into a folder, for diffusers' `load_lora_weights`; tensors as they are.

        Args:
            adapters: by field of `Components`, weights by peft's names and peft's configuration.
        """
        ...

    def save_single_file(self, folder: Path, target: Path) -> None:
        """Write a diffusers folder as one safetensors file in the layout that other tools read."""
        ...
