"""New tokens for the identifiers of subjects, with embeddings of their own.

Pipelines of diffusers and `families.clip.token_ids` replace the first token of a subject in a prompt by all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_trainer.methods.base import Trainee
from dreambooth_trainer.models.clip_pooling import pool_at_end
from dreambooth_trainer.planning.plan import Plan


class ExtendedEmbedding(nn.Module):
    """A frozen embedding, and trainable rows for the tokens after it.

    A parameter of their own keeps gradients and optimizer state to the new rows, and works with all ZeRO stages. The
    rows keep the norms that they start with, so that a new token weighs as much in attention as other words.
    """

    def __init__(self, base: nn.Embedding, first: int, rows: Tensor) -> None:
        """Extend an embedding.

        Args:
            first: ID of the first new token.
            rows: initial embeddings of the new tokens, [V, D].
        """
        super().__init__()
        self.base, self.first = base, first
        self.rows = nn.Parameter(rows.detach().clone())
        self.register_buffer("norms", self.rows.detach().float().norm(dim=-1, keepdim=True))
        self.norms: Tensor

    def vectors(self) -> Tensor:
        """Embeddings of the new tokens, [V, D]."""
        # DeepSpeed casts parameters, but no buffers.
        return (self.rows * (self.norms / self.rows.norm(dim=-1, keepdim=True))).to(self.rows.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of token IDs."""
        new = self.vectors()[(ids - self.first).clamp(min=0)]
        known = self.base(ids.clamp(max=self.first - 1))
        return torch.where((ids >= self.first).unsqueeze(-1), new, known)


def add_tokens(stage: Trainee, plan: Plan) -> None:
    """Add the new tokens of a plan, if there are any, to the tokenizers of a stage. The plan was checked."""
    for slot in stage.text if plan.new_tokens else ():
        slot.tokenizer.add_tokens([token for own in plan.new_tokens.values() for token in own])


def extend(stage: Trainee, plan: Plan) -> list[nn.Parameter]:
    """Add the new tokens to the tokenizers and to the open text encoders of a stage; returns the trainable rows.

    Each starts as the embedding of the class noun's last token (Gal et al. 2023, section 5: a coarse descriptor).
    """
    firsts = {slot.module: len(slot.tokenizer) for slot in stage.text}
    nouns = {slot.module: [_last_token(slot.tokenizer, s.class_) for s in plan.subjects] for slot in stage.text}
    add_tokens(stage, plan)
    rows: list[nn.Parameter] = []
    for slot in stage.text:
        if slot.module not in stage.modules:
            continue
        encoder: Any = stage.modules[slot.module]
        base: nn.Embedding = encoder.get_input_embeddings()
        ids = [noun for noun in nouns[slot.module] for _ in range(plan.spec.training.vectors)]
        extended = ExtendedEmbedding(base, firsts[slot.module], base.weight[torch.tensor(ids, device="cpu")])
        encoder.set_input_embeddings(extended)
        pool_at_end(encoder, slot.tokenizer)
        rows.append(extended.rows)
    return rows


def _last_token(tokenizer: Any, noun: str) -> int:
    return tokenizer(noun, add_special_tokens=False).input_ids[-1]


def merge_tokens(encoder: Any, rows: Tensor, num_tokens: int) -> Tensor:
    """Put trained rows into an ordinary embedding of a text encoder that `extend` prepared.

    Args:
        num_tokens: size of the tokenizer with the new tokens.

    Returns:
        The embeddings of the new tokens, [V, D].
    """
    extended: ExtendedEmbedding = encoder.get_input_embeddings()
    extended.rows.data.copy_(rows)
    vectors = extended.vectors().detach()
    encoder.set_input_embeddings(extended.base)
    # Tables may have more rows than the tokenizer has tokens, as T5's.
    encoder.resize_token_embeddings(max(num_tokens, len(extended.base.weight)), mean_resizing=False)
    encoder.get_input_embeddings().weight.data[extended.first : num_tokens] = vectors
    return vectors
