"""FLUX.1, and models with the same architecture (Black Forest Labs 2024)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel

from dreambooth_trainer.families.autoencoder import sample_latents
from dreambooth_trainer.families.base import Prediction, Tensors, TextSlot
from dreambooth_trainer.families.clip import token_ids
from dreambooth_trainer.families.flow_matching import flow_matching_prediction, open_flow_scheduler, refuse_min_snr
from dreambooth_trainer.families.latent_transformer import LatentTransformer, LatentTransformerStage
from dreambooth_trainer.families.modules import without_dropout

CLIP, T5 = "text_encoder", "text_encoder_2"
# As in diffusers' pipeline.
T5_TOKENS = 512
# Input of models that are distilled from guided ones, as in diffusers' example script.
GUIDANCE_SCALE = 3.5
# The transformer gets patches of 2 x 2 latents.
PATCH = 2


@dataclass
class FluxStage(LatentTransformerStage):
    """A transformer conditioned on T5, on the pooled output of a CLIP text encoder, and possibly on a guidance scale.

    Examples: `text_embeds` [N, L, D] of T5, or `t5_ids` [N, L] if it gets new tokens; `pooled` [N, E] of CLIP, or
    `input_ids` [N, K] if CLIP is trained or gets new tokens.
    """

    tokenizer: CLIPTokenizer
    t5_tokenizer: Any
    has_guidance: bool

    @property
    def text(self) -> tuple[TextSlot, ...]:
        return (
            TextSlot(CLIP, self.tokenizer, "tokenizer", "clip_l"),
            TextSlot(T5, self.t5_tokenizer, "tokenizer_2", "t5"),
        )

    def encode_prompts(self, prompts: Sequence[str], live: Collection[str] = ()) -> dict[str, Tensor]:
        inputs = {
            "input_ids": token_ids(self.tokenizer, prompts),
            "t5_ids": token_ids(self.t5_tokenizer, prompts, T5_TOKENS),
        }
        frozen = {name: module for name, module in self.modules.items() if name not in live}
        devices = {name: next(module.parameters()).device for name, module in frozen.items()}
        with torch.no_grad():
            if T5 not in live:
                inputs["text_embeds"] = frozen[T5](inputs.pop("t5_ids").to(devices[T5])).last_hidden_state
            if CLIP not in live:
                inputs["pooled"] = frozen[CLIP](inputs.pop("input_ids").to(devices[CLIP])).pooler_output
        return inputs

    def denoise(
        self,
        modules: Mapping[str, nn.Module],
        examples: Tensors,
        noise: Tensors,
        u: Tensor,
        min_snr_gamma: float | None = None,
    ) -> Prediction:
        refuse_min_snr(min_snr_gamma)
        transformer = modules["transformer"]
        dtype = next(transformer.parameters()).dtype
        pooled = examples["pooled"] if "pooled" in examples else modules[CLIP](examples["input_ids"]).pooler_output
        embeds = examples.get("text_embeds")
        text = (modules[T5](examples["t5_ids"]).last_hidden_state if embeds is None else embeds).to(dtype)
        clean = sample_latents(examples, noise["latent"])
        size = clean.shape[-2] // PATCH, clean.shape[-1] // PATCH
        positions = {
            "img_ids": torch.cartesian_prod(*(torch.arange(float(n), device=u.device) for n in (1, *size))),
            "txt_ids": torch.zeros(text.shape[1], 3, device=u.device),
        }
        guidance = torch.full_like(u, GUIDANCE_SCALE) if self.has_guidance else None

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            patches = functional.pixel_unshuffle(noisy, PATCH).flatten(2).transpose(1, 2)
            predicted = transformer(
                patches.to(dtype),
                encoder_hidden_states=text,
                pooled_projections=pooled.to(dtype),
                timestep=timesteps / 1000,
                guidance=guidance,
                **positions,
            ).sample
            return functional.pixel_shuffle(predicted.transpose(1, 2).unflatten(2, size), PATCH)

        return flow_matching_prediction(self.noise_scheduler, predict, clean, noise["noise"], u)


class Flux(LatentTransformer):
    """FLUX.1: see `FluxStage`."""

    name = "flux"
    pipeline_class: ClassVar[Any] = FluxPipeline
    transformer_class: ClassVar[Any] = FluxTransformer2DModel
    text_encoder_classes: ClassVar[Mapping[str, Any]] = {CLIP: CLIPTextModel, T5: T5EncoderModel}
    text_encoders = (CLIP, T5)
    trainable_text_encoders = (CLIP,)
    # Only T5 sees the words of a prompt one by one: CLIP contributes one vector. New tokens therefore need both.
    extensible_text_encoders: Mapping[str, str] = {CLIP: "tokenizer", T5: "tokenizer_2"}

    def open(self, folder: Path, modules: Collection[str], *, empty: bool = False) -> FluxStage:
        config: Any = FluxTransformer2DModel.load_config(folder / "transformer")
        opened = self.open_modules(folder, modules, empty=empty)
        if T5 in opened:
            without_dropout(opened[T5])
        return FluxStage(
            opened,
            open_flow_scheduler(folder),
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            AutoTokenizer.from_pretrained(folder / "tokenizer_2"),
            config.get("guidance_embeds", False),
        )

    def embed_prompts(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        with torch.no_grad():
            text, pooled, _ = pipeline.encode_prompt(list(prompts), device=pipeline.device)
        dtype = pipeline.transformer.dtype
        return {"prompt_embeds": text.to(dtype), "pooled_prompt_embeds": pooled.to(dtype)}

    def lora_target_modules(self) -> dict[str, list[str]]:
        attention = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
        layers = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]
        return {"transformer": [*attention, *layers], CLIP: ["q_proj", "k_proj", "v_proj", "out_proj"]}
