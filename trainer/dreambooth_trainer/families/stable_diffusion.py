"""Stable Diffusion 1.x and 2.x, and models with the same architecture."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth_trainer.families.base import PARTS, AdapterInfo, Components, Part
from dreambooth_trainer.families.kohya import kohya_metadata, to_kohya_layout
from dreambooth_trainer.families.single_file import has_open_clip, to_original_layout
from dreambooth_trainer.families.stored_dtype import stored_dtype
from dreambooth_trainer.models.files import ADAPTER_FILE

if TYPE_CHECKING:
    from PIL import Image

# The autoencoder encodes and decodes larger images in tiles of this side length, to bound its memory.
TILE_PIXELS = 768
FOLDERS: dict[Part, str] = {"denoiser": "unet", "text_encoder": "text_encoder", "vae": "vae"}
CLASSES: dict[Part, Any] = {"denoiser": UNet2DConditionModel, "text_encoder": CLIPTextModel, "vae": AutoencoderKL}


class StableDiffusion:
    """A U-Net in the latent space of a KL autoencoder, conditioned on CLIP text embeddings."""

    name = "stable-diffusion"

    def load(self, folder: Path, parts: Collection[Part] = PARTS) -> Components:
        modules: dict[Part, nn.Module] = {}
        for part in parts:
            module = CLASSES[part].from_pretrained(folder / FOLDERS[part], dtype=torch.float32, use_safetensors=True)
            modules[part] = _in_tiles(module) if part == "vae" else module
        return Components(
            modules,
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            cast("DDPMScheduler", DDPMScheduler.from_pretrained(folder / "scheduler")),
        )

    def build(self, folder: Path, part: Part) -> nn.Module:
        path = folder / FOLDERS[part]
        if part == "text_encoder":
            return CLIPTextModel(CLIPTextConfig.from_pretrained(path))
        module = CLASSES[part].from_config(CLASSES[part].load_config(path))
        return _in_tiles(module) if part == "vae" else module

    def pipeline(self, folder: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
        pipeline = _load_pipeline(folder, dtype)
        vae = _in_tiles(pipeline.vae)
        if vae.config["force_upcast"] and dtype != torch.float32:
            vae.float()
            for first in (vae.post_quant_conv, vae.decoder):
                if first is not None:
                    # The pipeline decodes latents in the dtype of the U-Net.
                    first.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(), *inputs[1:]))
        return pipeline

    def embed_prompts(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        with torch.no_grad():
            conditional, unconditional = pipeline.encode_prompt(
                list(prompts), pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=True
            )
        return {"prompt_embeds": conditional, "negative_prompt_embeds": unconditional}

    def latent_shape(self, folder: Path, side: int) -> tuple[int, int, int]:
        config: dict[str, Any] = json.loads((folder / "vae" / "config.json").read_text())
        latent_side = side // 2 ** (len(config["block_out_channels"]) - 1)
        return config["latent_channels"], latent_side, latent_side

    def encode_images(self, components: Components, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        vae: Any = components.vae
        pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
        pixels = pixels.permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        return (latents.mean - shift) * scale, latents.std * scale

    def tokenize(self, components: Components, prompts: Sequence[str]) -> Tensor:
        tokenizer = components.tokenizer
        return tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    def encode_prompts(self, text_encoder: nn.Module, token_ids: Tensor) -> Tensor:
        return text_encoder(token_ids).last_hidden_state

    def predict(self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        return denoiser(noisy, timesteps, encoder_hidden_states=conditioning).sample

    def loss_target(self, scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        prediction_type = cast("Any", scheduler.config).prediction_type
        if prediction_type == "epsilon":
            return noise
        if prediction_type == "v_prediction":
            return scheduler.get_velocity(latents, noise, cast("torch.IntTensor", timesteps))
        raise ValueError(
            f"scheduler/scheduler_config.json: prediction_type {prediction_type!r} is neither epsilon nor v_prediction"
        )

    def lora_target_modules(self) -> dict[str, list[str]]:
        attention = ["to_q", "to_k", "to_v", "to_out.0"]
        return {
            "denoiser": [*attention, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2"],
            "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
        }

    def stored_dtype(self, folder: Path, part: Part) -> torch.dtype:
        return stored_dtype(folder / FOLDERS[part])

    def save(self, base: Path, modules: Mapping[str, nn.Module], target: Path) -> None:
        dtypes = {FOLDERS[part]: self.stored_dtype(base, part) for part in PARTS}
        # The pipeline loads only the modules that it is not given.
        folders = {FOLDERS[cast("Part", part)]: module for part, module in modules.items()}
        given = {folder: module.to(dtypes[folder]) for folder, module in folders.items()}
        _load_pipeline(base, dtypes, **given).save_pretrained(target, safe_serialization=True)
        # from_pretrained loads the text encoder in the dtype of its configuration, and the U-Net in fp32. With float32
        # in the configuration, both have the same dtype.
        config = target / "text_encoder" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")

    def save_adapter(
        self, adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]], target: Path
    ) -> None:
        arguments: dict[str, Any] = {}
        for component, (weights, config) in adapters.items():
            name = FOLDERS[cast("Part", component)]
            # Not convert_state_dict_to_diffusers: the loader skips the attention layers that it renames.
            layers = dict(weights)
            if component == "text_encoder":
                # transformers 5 removed the prefix that older versions and other tools expect; diffusers reads both.
                layers = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in layers.items()}
            arguments |= {f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": dict(config)}
        StableDiffusionPipeline.save_lora_weights(target, weight_name=ADAPTER_FILE, **arguments)

    def save_kohya_adapter(self, folder: Path, target: Path, info: AdapterInfo) -> None:
        scheduler: dict[str, Any] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        version = 2 if has_open_clip(folder) else 1
        metadata = kohya_metadata(info, version=version, prediction_type=scheduler.get("prediction_type", "epsilon"))
        to_kohya_layout(folder / ADAPTER_FILE, target, metadata)

    def save_single_file(self, folder: Path, target: Path) -> None:
        to_original_layout(folder, target)


def _load_pipeline(
    folder: Path, dtype: torch.dtype | dict[str, torch.dtype], **modules: nn.Module
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, safety_checker=None, requires_safety_checker=False, **modules
    )


def _in_tiles(vae: AutoencoderKL) -> AutoencoderKL:
    vae.enable_tiling()
    vae.enable_slicing()  # one image at a time
    vae.tile_sample_min_size = TILE_PIXELS
    vae.tile_latent_min_size = TILE_PIXELS // 2 ** (len(vae.config["block_out_channels"]) - 1)
    return vae
