"""Stable Diffusion 3 and 3.5, and models with the same architecture (Esser et al. 2024)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

from dreambooth_trainer.families.autoencoder import sample_latents
from dreambooth_trainer.families.base import Prediction, Tensors
from dreambooth_trainer.families.clip import token_ids
from dreambooth_trainer.families.flow_matching import flow_matching_prediction, open_flow_scheduler, refuse_min_snr
from dreambooth_trainer.families.latent_transformer import LatentTransformer, LatentTransformerStage
from dreambooth_trainer.families.modules import has_module

CLIP_ENCODERS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"
# As in diffusers' pipeline. The paper used 77.
T5_TOKENS = 256


@dataclass
class StableDiffusion3Stage(LatentTransformerStage):
    """A transformer conditioned on two CLIP text encoders, and on T5 if the model has it.

    Examples: `text_embeds` [N, L, D] of all text encoders and `pooled` [N, E] of the CLIP encoders, or `input_ids` and
    `input_ids_2` [N, K] and `t5_embeds` [N, T, D] if the CLIP encoders are trained.
    """

    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]
    t5_tokenizer: Any
    text_width: int

    def encode_prompts(self, prompts: Sequence[str], live: Collection[str] = ()) -> dict[str, Tensor]:
        first, second = (token_ids(tokenizer, prompts) for tokenizer in self.tokenizers)
        t5_embeds = self._embed_t5(prompts)
        if live:
            return {"input_ids": first, "input_ids_2": second, "t5_embeds": t5_embeds}
        device = next(self.modules["text_encoder"].parameters()).device
        with torch.no_grad():
            text, pooled = _embed(self.modules, first.to(device), second.to(device), t5_embeds.to(device))
        return {"text_embeds": text, "pooled": pooled}

    def _embed_t5(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings by T5, [N, T, D]: zeros if the model has none, as in training (section 5.3)."""
        if self.t5_tokenizer is None:
            return torch.zeros(len(prompts), T5_TOKENS, self.text_width)
        encoder = self.modules[T5]
        ids = token_ids(self.t5_tokenizer, prompts, T5_TOKENS).to(next(encoder.parameters()).device)
        with torch.no_grad():
            return encoder(ids).last_hidden_state

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
        if "text_embeds" in examples:
            text, pooled = examples["text_embeds"], examples["pooled"]
        else:
            text, pooled = _embed(modules, examples["input_ids"], examples["input_ids_2"], examples["t5_embeds"])

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return transformer(
                noisy.to(dtype),
                timestep=timesteps,
                encoder_hidden_states=text.to(dtype),
                pooled_projections=pooled.to(dtype),
            ).sample

        clean = sample_latents(examples, noise["latent"])
        return flow_matching_prediction(
            self.noise_scheduler, predict, clean, noise["noise"], u, density="logit-normal", error_in_clean=True
        )


def _embed(modules: Mapping[str, nn.Module], first: Tensor, second: Tensor, t5_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """The text embeddings, [N, L, D], and the projections of the CLIP encoders, [N, E].

    The penultimate hidden states of the CLIP encoders are side by side, padded to the width of T5's, which follow them.
    """
    outputs = [
        modules[name](ids, output_hidden_states=True) for name, ids in zip(CLIP_ENCODERS, (first, second), strict=True)
    ]
    clip = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    clip = functional.pad(clip, (0, t5_embeds.shape[-1] - clip.shape[-1]))
    pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
    return torch.cat([clip, t5_embeds.to(clip.dtype)], dim=1), pooled


class StableDiffusion3(LatentTransformer):
    """Stable Diffusion 3 and 3.5: see `StableDiffusion3Stage`."""

    name = "stable-diffusion-3"
    pipeline_class: ClassVar[Any] = StableDiffusion3Pipeline
    transformer_class: ClassVar[Any] = SD3Transformer2DModel
    text_encoder_classes: ClassVar[Mapping[str, Any]] = {
        **dict.fromkeys(CLIP_ENCODERS, CLIPTextModelWithProjection),
        T5: T5EncoderModel,
    }
    text_encoders = (*CLIP_ENCODERS, T5)
    trainable_text_encoders = CLIP_ENCODERS

    def open(self, folder: Path, modules: Collection[str], *, empty: bool = False) -> StableDiffusion3Stage:
        has_t5 = has_module(folder, T5)
        config: Any = SD3Transformer2DModel.load_config(folder / "transformer")
        return StableDiffusion3Stage(
            self.open_modules(folder, modules, empty=empty),
            open_flow_scheduler(folder),
            (
                CLIPTokenizer.from_pretrained(folder / "tokenizer"),
                CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
            ),
            AutoTokenizer.from_pretrained(folder / "tokenizer_3") if has_t5 else None,
            config["joint_attention_dim"],
        )

    def embed_prompts(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
        with torch.no_grad():
            text, no_text, pooled, no_pooled = pipeline.encode_prompt(
                list(prompts), None, None, device=pipeline.device, do_classifier_free_guidance=True
            )
        embeddings = {
            "prompt_embeds": text,
            "negative_prompt_embeds": no_text,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": no_pooled,
        }
        return {name: tensor.to(pipeline.transformer.dtype) for name, tensor in embeddings.items()}

    def lora_target_modules(self) -> dict[str, list[str]]:
        attention = ["to_q", "to_k", "to_v", "to_out.0"]
        context = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
        text = ["q_proj", "k_proj", "v_proj", "out_proj"]
        return {"transformer": [*attention, *context], **dict.fromkeys(CLIP_ENCODERS, text)}
