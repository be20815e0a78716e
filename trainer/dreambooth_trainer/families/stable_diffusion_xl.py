"""Stable Diffusion XL, and models with the same architecture."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dreambooth_trainer.families.autoencoder import (
    encode_to_latents,
    latent_shapes,
    pixels_per_latent,
    prepare_decoder,
    sample_latents,
)
from dreambooth_trainer.families.base import AdapterInfo, Prediction, Tensors, TextSlot
from dreambooth_trainer.families.clip import set_fp32_config, token_ids, with_text_model_prefix
from dreambooth_trainer.families.ddpm import ddpm_prediction
from dreambooth_trainer.families.ip_adapter import load_ip_adapter
from dreambooth_trainer.families.kohya import sdxl_metadata, to_kohya_layout
from dreambooth_trainer.families.modules import open_ddpm_scheduler, open_module, save_pipeline
from dreambooth_trainer.families.single_file import sdxl_to_original_layout, unet_key
from dreambooth_trainer.models.files import ADAPTER_FILE

if TYPE_CHECKING:
    from PIL import Image

TEXT_ENCODERS: dict[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
CLASSES: dict[str, Any] = {"unet": UNet2DConditionModel, **TEXT_ENCODERS, "vae": AutoencoderKL}


@dataclass
class StableDiffusionXLStage:
    """A U-Net in the latent space of a KL autoencoder, conditioned on two text encoders and on image sizes.

    Examples: `latent_mean` and `latent_std` [N, C, h, w]; `text_embeds` [N, L, D] of both encoders and `pooled` [N, E]
    of the second, or `input_ids` and `input_ids_2` [N, L] if the text encoders are trained. Noise: `latent`, to sample
    the latents, and `noise`, of the forward diffusion.
    """

    modules: dict[str, nn.Module]
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]
    noise_scheduler: DDPMScheduler
    pixels_per_latent: int
    denoiser: str = "unet"

    @property
    def text(self) -> tuple[TextSlot, ...]:
        first, second = self.tokenizers
        return (
            TextSlot("text_encoder", first, "tokenizer", "clip_l"),
            TextSlot("text_encoder_2", second, "tokenizer_2", "clip_g"),
        )

    def encode_images(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        return encode_to_latents(self.modules["vae"], images)

    def encode_prompts(self, prompts: Sequence[str], live: Collection[str] = ()) -> dict[str, Tensor]:
        first, second = (token_ids(tokenizer, prompts) for tokenizer in self.tokenizers)
        if live:
            return {"input_ids": first, "input_ids_2": second}
        device = next(self.modules["text_encoder"].parameters()).device
        with torch.no_grad():
            text, pooled = _embed(self.modules, first.to(device), second.to(device))
        return {"text_embeds": text, "pooled": pooled}

    def noise_shapes(self, examples: Tensors) -> dict[str, tuple[int, ...]]:
        shape = tuple(examples["latent_mean"].shape[1:])
        return {"latent": shape, "noise": shape}

    def denoise(
        self,
        modules: Mapping[str, nn.Module],
        examples: Tensors,
        noise: Tensors,
        u: Tensor,
        min_snr_gamma: float | None = None,
    ) -> Prediction:
        unet = modules["unet"]
        dtype = next(unet.parameters()).dtype
        if "text_embeds" in examples:
            text, pooled = examples["text_embeds"], examples["pooled"]
        else:
            text, pooled = _embed(modules, examples["input_ids"], examples["input_ids_2"])
        clean = sample_latents(examples, noise["latent"])
        height, width = (side * self.pixels_per_latent for side in clean.shape[-2:])
        # Original size, crop, and target size (SDXL paper, section 2.2): the images are not cropped.
        sizes = torch.tensor([height, width, 0, 0, height, width], device=clean.device, dtype=dtype)
        conditions = {"text_embeds": pooled.to(dtype), "time_ids": sizes.expand(len(clean), -1)}

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return unet(
                noisy.to(dtype), timesteps, encoder_hidden_states=text.to(dtype), added_cond_kwargs=conditions
            ).sample

        return ddpm_prediction(self.noise_scheduler, predict, clean, noise["noise"], u, min_snr_gamma)


def _embed(modules: Mapping[str, nn.Module], first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The penultimate hidden states of both text encoders, [N, L, D], and the projection of the second, [N, E]."""
    outputs = [
        modules[name](ids, output_hidden_states=True) for name, ids in zip(TEXT_ENCODERS, (first, second), strict=True)
    ]
    return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[1].text_embeds


class StableDiffusionXL:
    """Stable Diffusion XL: see `StableDiffusionXLStage`."""

    name = "stable-diffusion-xl"
    denoiser = "unet"
    text_encoders = tuple(TEXT_ENCODERS)
    trainable_text_encoders = text_encoders
    image_encoders = ("vae",)
    extensible_text_encoders: Mapping[str, str] = {
        "text_encoder": "tokenizer",
        "text_encoder_2": "tokenizer_2",
    }

    load_ip_adapter = staticmethod(load_ip_adapter)

    def open(self, folder: Path, modules: Collection[str], *, empty: bool = False) -> StableDiffusionXLStage:
        return StableDiffusionXLStage(
            {name: open_module(CLASSES[name], folder / name, empty=empty) for name in modules},
            (
                CLIPTokenizer.from_pretrained(folder / "tokenizer"),
                CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
            ),
            open_ddpm_scheduler(folder),
            pixels_per_latent(folder),
        )

    def pipeline(self, folder: Path, dtype: torch.dtype, **modules: nn.Module) -> StableDiffusionXLPipeline:
        pipeline = _load_pipeline(folder, dtype, **modules)
        prepare_decoder(pipeline.vae, dtype)
        return pipeline

    def embed_prompts(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        with torch.no_grad():
            text, no_text, pooled, no_pooled = pipeline.encode_prompt(
                list(prompts), device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=True
            )
        return {
            "prompt_embeds": text,
            "negative_prompt_embeds": no_text,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": no_pooled,
        }

    def image_shapes(self, folder: Path, side: int) -> dict[str, tuple[int, ...]]:
        return latent_shapes(folder, side)

    def lora_target_modules(self) -> dict[str, list[str]]:
        attention = ["to_q", "to_k", "to_v", "to_out.0"]
        text = ["q_proj", "k_proj", "v_proj", "out_proj"]
        return {
            "unet": [*attention, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2"],
            **dict.fromkeys(TEXT_ENCODERS, text),
        }

    def save(self, base: Path, modules: Mapping[str, nn.Module], target: Path) -> None:
        save_pipeline(_load_pipeline, base, CLASSES, modules, target)
        for name in TEXT_ENCODERS:
            set_fp32_config(target / name)

    def save_adapter(
        self, adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]], target: Path
    ) -> None:
        arguments: dict[str, Any] = {}
        for name, (weights, config) in adapters.items():
            layers = with_text_model_prefix(weights) if name in TEXT_ENCODERS else dict(weights)
            arguments |= {f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": dict(config)}
        StableDiffusionXLPipeline.save_lora_weights(target, weight_name=ADAPTER_FILE, **arguments)

    def save_kohya_adapter(self, folder: Path, target: Path, info: AdapterInfo) -> None:
        config = json.loads((folder / "unet" / "config.json").read_text())
        to_kohya_layout(
            folder / ADAPTER_FILE,
            target,
            sdxl_metadata(info),
            {"lora_te1_": ("lora_te1_", "text_encoder"), "lora_te2_": ("lora_te2_", "text_encoder_2")},
            # sd-scripts trains the U-Net of SDXL in its original layout.
            lambda layer: unet_key(f"{layer}.weight", config).removesuffix(".weight"),
        )

    def save_single_file(self, folder: Path, target: Path) -> None:
        sdxl_to_original_layout(folder, target)


def _load_pipeline(
    folder: Path, dtype: torch.dtype | dict[str, torch.dtype], **modules: nn.Module
) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, add_watermarker=False, **modules
    )
