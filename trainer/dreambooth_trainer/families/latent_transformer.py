"""The common parts of families with a transformer in the latent space of a KL autoencoder, and flow matching."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from dreambooth_trainer.families.autoencoder import encode_to_latents, latent_shapes, prepare_decoder
from dreambooth_trainer.families.base import Tensors, TextSlot
from dreambooth_trainer.families.clip import set_fp32_config, with_text_model_prefix
from dreambooth_trainer.families.modules import has_module, open_module, save_pipeline
from dreambooth_trainer.families.stored_dtype import stored_dtype
from dreambooth_trainer.models.files import ADAPTER_FILE, INDEX

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class LatentTransformerStage:
    """A transformer that denoises latents. Subclasses encode prompts, and compute the loss.

    Examples: `latent_mean` and `latent_std` [N, C, h, w], and what `encode_prompts` returns. Noise: `latent`, to sample
    the latents, and `noise`, which is mixed with them.
    """

    modules: dict[str, nn.Module]
    noise_scheduler: FlowMatchEulerDiscreteScheduler
    denoiser: str = field(default="transformer", init=False)

    @property
    def text(self) -> tuple[TextSlot, ...]:
        """None: see `LatentTransformer.extensible_text_encoders`."""
        return ()

    def encode_images(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        return encode_to_latents(self.modules["vae"], images)

    def noise_shapes(self, examples: Tensors) -> dict[str, tuple[int, ...]]:
        shape = tuple(examples["latent_mean"].shape[1:])
        return {"latent": shape, "noise": shape}


class LatentTransformer:
    """The parts of a `Family` that need only its classes.

    Attributes:
        pipeline_class: of diffusers.
        text_encoder_classes: of transformers, by name, in the order of the pipeline.
    """

    pipeline_class: ClassVar[Any]
    transformer_class: ClassVar[Any]
    text_encoder_classes: ClassVar[Mapping[str, Any]]
    text_encoders: tuple[str, ...]
    trainable_text_encoders: tuple[str, ...]
    denoiser = "transformer"
    image_encoders = ("vae",)
    # The pipelines of SD3 and Z-Image load no new tokens.
    extensible_text_encoders: Mapping[str, str] = {}

    @property
    def _classes(self) -> dict[str, Any]:
        return {"transformer": self.transformer_class, **self.text_encoder_classes, "vae": AutoencoderKL}

    def open_modules(self, folder: Path, names: Collection[str], *, empty: bool) -> dict[str, nn.Module]:
        """Modules of a diffusers folder, without text encoders that it lacks.

        The transformer and the text encoders that are never trained are in bf16 if they are stored in bf16, all others
        in fp32.
        """
        return {
            name: open_module(self._classes[name], folder / name, empty=empty, dtype=self._loading_dtype(folder, name))
            for name in names
            if name not in self.text_encoders or has_module(folder, name)
        }

    def _loading_dtype(self, folder: Path, name: str) -> torch.dtype:
        always_fp32 = name in self.image_encoders or name in self.trainable_text_encoders
        bf16 = not always_fp32 and stored_dtype(folder / name) == torch.bfloat16
        return torch.bfloat16 if bf16 else torch.float32

    def pipeline(self, folder: Path, dtype: torch.dtype, **modules: nn.Module) -> Any:
        present = [name for name in self.text_encoders if has_module(folder, name)]
        frozen = [name for name in present if name not in self.trainable_text_encoders]
        large = {name: torch.bfloat16 for name in frozen if self._loading_dtype(folder, name) == torch.bfloat16}
        pipeline = self._load(folder, {"default": dtype, **large}, **modules)
        prepare_decoder(pipeline.vae, dtype)
        return pipeline

    def _load(self, folder: Path, dtypes: Mapping[str, torch.dtype], **modules: nn.Module) -> Any:
        # diffusers requires text encoders that the index lists as null to be passed.
        index: dict[str, object] = json.loads((folder / INDEX).read_text())
        missing = {name: None for name, kind in index.items() if kind == [None, None]}
        return self.pipeline_class.from_pretrained(
            folder, dtype=dict(dtypes), use_safetensors=True, **{**missing, **modules}
        )

    def image_shapes(self, folder: Path, side: int) -> dict[str, tuple[int, ...]]:
        return latent_shapes(folder, side)

    def save(self, base: Path, modules: Mapping[str, nn.Module], target: Path) -> None:
        save_pipeline(self._load, base, self._classes, modules, target)
        for name in self.trainable_text_encoders:
            set_fp32_config(target / name)

    def save_adapter(
        self, adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]], target: Path
    ) -> None:
        arguments: dict[str, Any] = {}
        for name, (weights, config) in adapters.items():
            layers = with_text_model_prefix(weights) if name in self.text_encoder_classes else dict(weights)
            arguments |= {f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": dict(config)}
        self.pipeline_class.save_lora_weights(target, weight_name=ADAPTER_FILE, **arguments)
