"""Z-Image, and models with the same architecture (Alibaba Tongyi 2025)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen3Model

from dreambooth_trainer.families.autoencoder import sample_latents
from dreambooth_trainer.families.base import Prediction, Tensors
from dreambooth_trainer.families.clip import token_ids
from dreambooth_trainer.families.flow_matching import flow_matching_prediction, open_flow_scheduler, refuse_min_snr
from dreambooth_trainer.families.latent_transformer import LatentTransformer, LatentTransformerStage

# As in diffusers' pipeline.
MAX_TOKENS = 512


@dataclass
class ZImageStage(LatentTransformerStage):
    """A transformer conditioned on the penultimate hidden states of a language model, which reads a chat message.

    Examples: `text_embeds` [N, L, D], and `text_mask` [N, L], which is nonzero where there is text and not padding.
    """

    tokenizer: Any

    def encode_prompts(self, prompts: Sequence[str], live: Collection[str] = ()) -> dict[str, Tensor]:
        del live  # the language model is never trained
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        texts = [self.tokenizer.apply_chat_template(chat, **options) for chat in chats]
        encoder = self.modules["text_encoder"]
        ids = token_ids(self.tokenizer, texts, MAX_TOKENS).to(next(encoder.parameters()).device)
        mask = ids != self.tokenizer.pad_token_id
        readable = None if ids.is_meta else mask  # transformers reads the values of the mask
        with torch.no_grad():
            states = encoder(ids, attention_mask=readable, output_hidden_states=True).hidden_states
        return {"text_embeds": states[-2], "text_mask": mask}

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
        text = list(examples["text_embeds"].to(dtype))
        if u.device.type != "meta":  # where the lengths are not known, the longest prompts are counted
            text = [row[mask] for row, mask in zip(text, examples["text_mask"], strict=True)]

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            # Frames of one image each. The transformer predicts clean - noise, and its time runs from noise to image.
            frames = list(noisy.to(dtype).unsqueeze(2))
            return -torch.stack(transformer(frames, 1 - timesteps / 1000, text).sample).squeeze(2)

        clean = sample_latents(examples, noise["latent"])
        return flow_matching_prediction(self.noise_scheduler, predict, clean, noise["noise"], u)


class ZImage(LatentTransformer):
    """Z-Image: see `ZImageStage`."""

    name = "z-image"
    pipeline_class: ClassVar[Any] = ZImagePipeline
    transformer_class: ClassVar[Any] = ZImageTransformer2DModel
    text_encoder_classes: ClassVar[Mapping[str, Any]] = {"text_encoder": Qwen3Model}
    text_encoders = ("text_encoder",)
    trainable_text_encoders = ()

    def open(self, folder: Path, modules: Collection[str], *, empty: bool = False) -> ZImageStage:
        return ZImageStage(
            self.open_modules(folder, modules, empty=empty),
            open_flow_scheduler(folder),
            AutoTokenizer.from_pretrained(folder / "tokenizer"),
        )

    def embed_prompts(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, list[Tensor]]:
        with torch.no_grad():
            text, no_text = pipeline.encode_prompt(list(prompts), device=pipeline.device)
        dtype = pipeline.transformer.dtype
        embeddings = {"prompt_embeds": text, "negative_prompt_embeds": no_text}
        return {name: [row.to(dtype) for row in rows] for name, rows in embeddings.items()}

    def guidance_argument(self, scale: float) -> float:
        # The pipeline adds the difference of both predictions to the one with the prompt, not to the one without.
        return scale - 1

    def lora_target_modules(self) -> dict[str, list[str]]:
        return {"transformer": ["to_q", "to_k", "to_v", "to_out.0"]}
