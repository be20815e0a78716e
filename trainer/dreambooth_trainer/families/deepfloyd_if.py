"""DeepFloyd IF (DeepFloyd 2023): a cascade of pixel diffusion models, as the paper's Imagen.

Each stage is a model of its own: a base model that generates images of 64 px, and a super-resolution model that
enlarges them to 256 px. Both are conditioned on the embeddings of one T5 text encoder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, T5EncoderModel

from dreambooth_trainer.families.base import Embeddings, Prediction, Tensors
from dreambooth_trainer.families.ddpm import ddpm_prediction
from dreambooth_trainer.families.modules import open_ddpm_scheduler, open_module, save_pipeline
from dreambooth_trainer.families.stored_dtype import stored_dtype
from dreambooth_trainer.models.files import ADAPTER_FILE
from dreambooth_trainer.planning.cascade import GUIDANCE_SCALE, MAX_STEPS, NOISE_LEVEL, SCALE

if TYPE_CHECKING:
    from PIL import Image

# As in diffusers' pipelines: the models were trained with this length.
MAX_TOKENS = 77
CHANNELS = 3
CLASSES: dict[str, Any] = {"unet": UNet2DConditionModel, "text_encoder": T5EncoderModel}
UNUSED: dict[str, Any] = {"safety_checker": None, "watermarker": None, "requires_safety_checker": False}


@dataclass
class PixelStage:
    """A U-Net that denoises pixels, conditioned on T5 text embeddings.

    Examples: `pixels` [N, 3, H, W] in [-1, 1], and `text_embeds` [N, L, D]. Noise: `noise`, of the forward diffusion.
    """

    modules: dict[str, nn.Module]
    noise_scheduler: DDPMScheduler
    tokenizer: Any
    denoiser: str = field(default="unet", init=False)

    @property
    def text(self) -> tuple[()]:
        """None: the pipelines load no new tokens."""
        return ()

    def encode_images(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
        return {"pixels": pixels.permute(0, 3, 1, 2) / 127.5 - 1}

    def encode_prompts(self, prompts: Sequence[str], live: Collection[str] = ()) -> dict[str, Tensor]:
        del live  # T5 is never trained
        encoder = self.modules["text_encoder"]
        inputs = self.tokenizer(
            [prompt.lower().strip() for prompt in prompts],
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(next(encoder.parameters()).device)
        mask = None if inputs.input_ids.is_meta else inputs.attention_mask  # transformers reads its values
        with torch.no_grad():
            return {"text_embeds": encoder(inputs.input_ids, attention_mask=mask).last_hidden_state}

    def noise_shapes(self, examples: Tensors) -> dict[str, tuple[int, ...]]:
        return {"noise": tuple(examples["pixels"].shape[1:])}

    def denoise(
        self,
        modules: Mapping[str, nn.Module],
        examples: Tensors,
        noise: Tensors,
        u: Tensor,
        min_snr_gamma: float | None = None,
    ) -> Prediction:
        """As `Stage.denoise`. The second half of the U-Net's output, which is the variance, is not trained."""
        unet = modules["unet"]
        dtype = next(unet.parameters()).dtype
        condition, arguments = self._condition(examples, noise)

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            inputs = torch.cat([noisy, *condition], dim=1).to(dtype)
            text = examples["text_embeds"].to(dtype)
            return unet(inputs, timesteps, encoder_hidden_states=text, **arguments).sample[:, :CHANNELS]

        return ddpm_prediction(self.noise_scheduler, predict, examples["pixels"], noise["noise"], u, min_snr_gamma)

    def _condition(self, examples: Tensors, noise: Tensors) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Additional input channels, and further arguments of the U-Net."""
        del examples, noise
        return [], {}


class DeepFloydIF:
    """The base model: see `PixelStage`."""

    name = "deepfloyd-if"
    denoiser = "unet"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    trainable_text_encoders: tuple[str, ...] = ()
    image_encoders: tuple[str, ...] = ()
    extensible_text_encoders: Mapping[str, str] = {}
    pipeline_class: ClassVar[Any] = IFPipeline

    def open(self, folder: Path, modules: Collection[str], *, empty: bool = False) -> PixelStage:
        opened = {
            name: open_module(CLASSES[name], folder / name, empty=empty, dtype=_loading_dtype(folder, name))
            for name in modules
        }
        return PixelStage(opened, open_ddpm_scheduler(folder), AutoTokenizer.from_pretrained(folder / "tokenizer"))

    def pipeline(self, folder: Path, dtype: torch.dtype, **modules: nn.Module) -> Any:
        names = [name for name in self.text_encoders if _loading_dtype(folder, name) == torch.bfloat16]
        return self._load(folder, {"default": dtype, **dict.fromkeys(names, torch.bfloat16)}, **modules)

    def _load(self, folder: Path, dtypes: Mapping[str, torch.dtype], **modules: Any) -> Any:
        return self.pipeline_class.from_pretrained(
            folder, dtype=dict(dtypes), use_safetensors=True, **UNUSED, **modules
        )

    def embed_prompts(self, pipeline: Any, prompts: Sequence[str]) -> Mapping[str, Embeddings]:
        text, no_text = pipeline.encode_prompt(list(prompts), device=pipeline.device)
        dtype = pipeline.unet.dtype
        return {"prompt_embeds": text.to(dtype), "negative_prompt_embeds": no_text.to(dtype)}

    def image_shapes(self, folder: Path, side: int) -> dict[str, tuple[int, ...]]:
        del folder
        return {"pixels": (CHANNELS, side, side)}

    def lora_target_modules(self) -> dict[str, list[str]]:
        return {"unet": ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]}

    def fine_tuned_scheduler(self, scheduler: Any) -> Any:
        """The variance is not trained, so sampling uses a fixed one, as in diffusers' example scripts."""
        if scheduler.config.get("variance_type") in ("learned", "learned_range"):
            return scheduler.from_config(scheduler.config, variance_type="fixed_small")
        return scheduler

    def save(self, base: Path, modules: Mapping[str, nn.Module], target: Path) -> None:
        def load(folder: Path, dtypes: Mapping[str, torch.dtype], **given: nn.Module) -> Any:
            pipeline = self._load(folder, dtypes, **given)
            pipeline.scheduler = self.fine_tuned_scheduler(pipeline.scheduler)
            return pipeline

        save_pipeline(load, base, {name: CLASSES[name] for name in ("unet", *self.text_encoders)}, modules, target)

    def save_adapter(
        self, adapters: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]], target: Path
    ) -> None:
        weights, config = adapters["unet"]
        self.pipeline_class.save_lora_weights(
            target,
            unet_lora_layers=dict(weights),
            unet_lora_adapter_metadata=dict(config),
            weight_name=ADAPTER_FILE,
        )


def _loading_dtype(folder: Path, name: str) -> torch.dtype:
    """bf16 for a T5 that is stored in bf16, otherwise fp32."""
    is_low = name == "text_encoder" and stored_dtype(folder / name) == torch.bfloat16
    return torch.bfloat16 if is_low else torch.float32


@dataclass
class SuperResolutionStage(PixelStage):
    """A U-Net that denoises pixels, and sees the enlarged image of the stage before it as additional channels.

    That image has some noise, whose level is an input of the U-Net (noise conditioning augmentation, Ho et al. 2021).
    Noise: also `augmentation`, of the enlarged image.
    """

    image_noising_scheduler: DDPMScheduler
    text_width: int

    def encode_prompts(self, prompts: Sequence[str], live: Collection[str] = ()) -> dict[str, Tensor]:
        """Shapes only, to count memory: the base model encodes the prompts of both stages."""
        del live
        return {"text_embeds": torch.zeros(len(prompts), MAX_TOKENS, self.text_width, device="meta")}

    def noise_shapes(self, examples: Tensors) -> dict[str, tuple[int, ...]]:
        shape = tuple(examples["pixels"].shape[1:])
        return {"noise": shape, "augmentation": shape}

    def _condition(self, examples: Tensors, noise: Tensors) -> tuple[list[Tensor], dict[str, Tensor]]:
        pixels = examples["pixels"]
        side = pixels.shape[-1]
        small = functional.interpolate(pixels, side // SCALE, mode="bilinear", antialias=True)
        enlarged = functional.interpolate(small, side, mode="bilinear", align_corners=True)  # as in the pipeline
        level = torch.full(pixels.shape[:1], NOISE_LEVEL, device=pixels.device)
        timesteps: Any = level
        return [self.image_noising_scheduler.add_noise(enlarged, noise["augmentation"], timesteps)], {
            "class_labels": level
        }


class DeepFloydIFSuperResolution(DeepFloydIF):
    """The super-resolution model: see `SuperResolutionStage`. Its files of T5 are not used."""

    name = "deepfloyd-if-super-resolution"
    text_encoders = ()
    pipeline_class: ClassVar[Any] = IFSuperResolutionPipeline

    def open(self, folder: Path, modules: Collection[str], *, empty: bool = False) -> SuperResolutionStage:
        config: Any = UNet2DConditionModel.load_config(folder / "unet")
        with torch.device("cpu"):
            noising: Any = DDPMScheduler.from_pretrained(folder / "image_noising_scheduler")
        return SuperResolutionStage(
            {name: open_module(CLASSES[name], folder / name, empty=empty) for name in modules},
            open_ddpm_scheduler(folder),
            None,
            noising,
            config["encoder_hid_dim"] or config["cross_attention_dim"],
        )

    def _load(self, folder: Path, dtypes: Mapping[str, torch.dtype], **modules: Any) -> Any:
        return super()._load(folder, dtypes, text_encoder=None, tokenizer=None, **modules)

    def upscale(
        self, pipeline: Any, images: Any, embeddings: Mapping[str, Embeddings], steps: int, generators: Sequence[Any]
    ) -> list[Image.Image]:
        return pipeline(
            image=images,
            **embeddings,
            num_inference_steps=min(steps, MAX_STEPS),
            guidance_scale=GUIDANCE_SCALE,
            noise_level=NOISE_LEVEL,
            height=SCALE * images.shape[-2],
            width=SCALE * images.shape[-1],
            generator=list(generators),
        ).images
