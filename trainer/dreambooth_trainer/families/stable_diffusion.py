"""Stable Diffusion 1.x and 2.x, and models with the same architecture."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth_trainer.families.autoencoder import encode_to_latents, latent_shapes, prepare_decoder, sample_latents
from dreambooth_trainer.families.base import AdapterInfo, Prediction, Tensors, TextSlot
from dreambooth_trainer.families.clip import set_fp32_config, token_ids, with_text_model_prefix
from dreambooth_trainer.families.ddpm import ddpm_prediction
from dreambooth_trainer.families.ip_adapter import load_ip_adapter
from dreambooth_trainer.families.kohya import kohya_metadata, to_kohya_layout
from dreambooth_trainer.families.modules import open_ddpm_scheduler, open_module, save_pipeline
from dreambooth_trainer.families.single_file import has_open_clip, to_original_layout
from dreambooth_trainer.models.files import ADAPTER_FILE

if TYPE_CHECKING:
    from PIL import Image

CLASSES: dict[str, Any] = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "vae": AutoencoderKL}


@dataclass
class StableDiffusionStage:
    """A U-Net in the latent space of a KL autoencoder, conditioned on CLIP text embeddings.

    Examples: `latent_mean` and `latent_std` [N, C, h, w]; `text_embeds` [N, L, D], or `input_ids` [N, L] if the text
    encoder is trained. Noise: `latent`, to sample the latents, and `noise`, of the forward diffusion.
    """

    modules: dict[str, nn.Module]
    tokenizer: CLIPTokenizer
    noise_scheduler: DDPMScheduler
    denoiser: str = "unet"

    @property
    def text(self) -> tuple[TextSlot, ...]:
        return (TextSlot("text_encoder", self.tokenizer, "tokenizer"),)

    def encode_images(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        return encode_to_latents(self.modules["vae"], images)

    def encode_prompts(self, prompts: Sequence[str], live: Collection[str] = ()) -> dict[str, Tensor]:
        ids = token_ids(self.tokenizer, prompts)
        if "text_encoder" in live:
            return {"input_ids": ids}
        text_encoder = self.modules["text_encoder"]
        with torch.no_grad():
            return {"text_embeds": _embed(text_encoder, ids.to(next(text_encoder.parameters()).device))}

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
            text = examples["text_embeds"]
        else:
            text = _embed(modules["text_encoder"], examples["input_ids"])

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return unet(noisy.to(dtype), timesteps, encoder_hidden_states=text.to(dtype)).sample

        clean = sample_latents(examples, noise["latent"])
        return ddpm_prediction(self.noise_scheduler, predict, clean, noise["noise"], u, min_snr_gamma)


def _embed(text_encoder: nn.Module, input_ids: Tensor) -> Tensor:
    return text_encoder(input_ids).last_hidden_state


class StableDiffusion:
    """Stable Diffusion 1 and 2: see `StableDiffusionStage`."""

    name = "stable-diffusion"
    denoiser = "unet"
    text_encoders = ("text_encoder",)
    trainable_text_encoders = text_encoders
    image_encoders = ("vae",)
    extensible_text_encoders: Mapping[str, str] = {"text_encoder": "tokenizer"}

    load_ip_adapter = staticmethod(load_ip_adapter)

    def open(self, folder: Path, modules: Collection[str], *, empty: bool = False) -> StableDiffusionStage:
        return StableDiffusionStage(
            {name: open_module(CLASSES[name], folder / name, empty=empty) for name in modules},
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            open_ddpm_scheduler(folder),
        )

    def pipeline(self, folder: Path, dtype: torch.dtype, **modules: nn.Module) -> StableDiffusionPipeline:
        pipeline = _load_pipeline(folder, dtype, **modules)
        prepare_decoder(pipeline.vae, dtype)
        return pipeline

    def embed_prompts(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        with torch.no_grad():
            conditional, unconditional = pipeline.encode_prompt(
                list(prompts), pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=True
            )
        return {"prompt_embeds": conditional, "negative_prompt_embeds": unconditional}

    def image_shapes(self, folder: Path, side: int) -> dict[str, tuple[int, ...]]:
        return latent_shapes(folder, side)

    def lora_target_modules(self) -> dict[str, list[str]]:
        attention = ["to_q", "to_k", "to_v", "to_out.0"]
        return {
            "unet": [*attention, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2"],
            "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
        }

    def save(self, base: Path, modules: Mapping[str, nn.Module], target: Path) -> None:
        save_pipeline(_load_pipeline, base, CLASSES, modules, target)
        set_fp32_config(target / "text_encoder")

    def save_adapter(
        self, adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]], target: Path
    ) -> None:
        arguments: dict[str, Any] = {}
        for name, (weights, config) in adapters.items():
            # Not convert_state_dict_to_diffusers: the loader skips the attention layers that it renames.
            layers = with_text_model_prefix(weights) if name == "text_encoder" else dict(weights)
            arguments |= {f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": dict(config)}
        StableDiffusionPipeline.save_lora_weights(target, weight_name=ADAPTER_FILE, **arguments)

    def save_kohya_adapter(self, folder: Path, target: Path, info: AdapterInfo) -> None:
        scheduler: dict[str, Any] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        version = 2 if has_open_clip(folder) else 1
        metadata = kohya_metadata(info, version=version, prediction_type=scheduler.get("prediction_type", "epsilon"))
        # Tools read lora_te1_ as the first of two text encoders.
        to_kohya_layout(folder / ADAPTER_FILE, target, metadata, {"lora_te1_": ("lora_te_", "text_encoder")})

    def save_single_file(self, folder: Path, target: Path) -> None:
        to_original_layout(folder, target)


def _load_pipeline(
    folder: Path, dtype: torch.dtype | dict[str, torch.dtype], **modules: nn.Module
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, safety_checker=None, requires_safety_checker=False, **modules
    )
