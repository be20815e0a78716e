"""The interface of a model family. Families are independent of fine-tuning methods, which modify their modules.

Shapes: N images, C latent channels, h x w latent size, L tokens, D conditioning width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline
    from PIL import Image
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


Part = Literal["denoiser", "text_encoder", "vae"]
PARTS: Final[tuple[Part, ...]] = ("denoiser", "text_encoder", "vae")
"""The modules of a base model."""


@dataclass(frozen=True)
class Components:
    """Components of a base model, for training.

    Attributes:
        modules: only those that were loaded. At real size each has up to gigabytes.
    """

    modules: Mapping[Part, nn.Module]
    tokenizer: PreTrainedTokenizerBase
    noise_scheduler: DDPMScheduler

    @property
    def denoiser(self) -> nn.Module:
        return self.modules["denoiser"]

    @property
    def text_encoder(self) -> nn.Module:
        return self.modules["text_encoder"]

    @property
    def vae(self) -> AutoencoderKL:
        return self.modules["vae"]  # pyright: ignore[reportReturnType] - every family has this autoencoder


@dataclass(frozen=True)
class AdapterInfo:
    """Description of an adapter in the metadata of its file.

    Attributes:
        name: name of the job.
        base_model: Hub ID or path of the base model.
        resolution: side length of the training images in pixels.
    """

    name: str
    base_model: str
    instance_prompt: str
    resolution: int


class Family(Protocol):
    """One architecture of text-to-image diffusion models."""

    name: str

    def load(self, folder: Path, parts: Collection[Part] = PARTS) -> Components:
        """Load modules of a diffusers folder, in fp32 on the CPU, and its tokenizer and noise scheduler."""
        ...

    def build(self, folder: Path, part: Part) -> nn.Module:
        """A module as a diffusers folder configures it, with new weights in torch's default dtype and device."""
        ...

    def pipeline(self, folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
        """Load the pipeline of a diffusers folder, on the CPU.

        The autoencoder is in fp32 if its configuration requires that.
        """
        ...

    def embed_prompts(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Text embeddings for calls of `pipeline`, by argument: of the prompts, and of no prompt for guidance.

        Each has one row per prompt.
        """
        ...

    def latent_shape(self, folder: Path, side: int) -> tuple[int, int, int]:
        """Shape [C, h, w] of the latent of a square image, from the configuration of a diffusers folder.

        Args:
            side: side length of the image in pixels.
        """
        ...

    def encode_images(self, components: Components, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Encode images; returns mean and standard deviation of the scaled latents, each [N, C, h, w]."""
        ...

    def tokenize(self, components: Components, prompts: Sequence[str]) -> Tensor:
        """Tokenize prompts; returns token IDs [N, L], padded and truncated to the length of the model."""
        ...

    def encode_prompts(self, text_encoder: nn.Module, token_ids: Tensor) -> Tensor:
        """Encode tokens; returns the conditioning of the denoiser, [N, L, D]."""
        ...

    def predict(self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        """Predict noise or velocity, [N, C, h, w], from noisy latents [N, C, h, w] at timesteps [N]."""
        ...

    def loss_target(self, scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The training target of `predict`, [N, C, h, w].

        Raises:
            ValueError: the prediction type of the scheduler is not supported.
        """
        ...

    def lora_target_modules(self) -> Mapping[str, Sequence[str]]:
        """LoRA target modules, as suffixes of module names, by field of `Components`."""
        ...

    def stored_dtype(self, folder: Path, part: Part) -> torch.dtype:
        """The dtype in which a diffusers folder stores a module."""
        ...

    def save(self, base: Path, modules: Mapping[str, nn.Module], target: Path) -> None:
        """Write a diffusers folder in safetensors: the base model with some modules replaced.

        Each module has the dtype in which the base model stores it.

        Args:
            base: diffusers folder of the base model.
            modules: by field of `Components`. They are cast in place.
            target: folder to write.
        """
        ...

    def save_adapter(
        self, adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]], target: Path
    ) -> None:
        """Write `ADAPTER_FILE`, which diffusers' `load_lora_weights` can read, without changing number formats.

        Args:
            adapters: by field of `Components`: weights with PEFT's names, and PEFT's configuration.
            target: folder to write to.
        """
        ...

    def save_kohya_adapter(self, folder: Path, target: Path, info: AdapterInfo) -> None:
        """Write the adapter of a trained model in kohya's layout, which ComfyUI and AUTOMATIC1111 read.

        Args:
            folder: what `save` and `save_adapter` wrote.
            target: file to write.
        """
        ...

    def save_single_file(self, folder: Path, target: Path) -> None:
        """Write a diffusers folder as one safetensors file in the original layout, which other tools read."""
        ...
