"""Who judges: DINO and CLIP through transformers, or the embedded evaluator of the sprite world.

Every encoder returns unit rows, float32 on the CPU: [N, D]. `pretrained` (transformers, seconds to import) and the
sprite world are imported only by a job that asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.metrics.batches import unit_rows

PAPER_DINO = "facebook/dino-vits16"
PAPER_CLIP = "openai/clip-vit-base-patch32"


class ImageEncoder(Protocol):
    """Turns images into unit vectors."""

    @property
    def name(self) -> str:
        """What the user wrote: hub id, folder, or builtin:sprites."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """float32 [N, D], rows of length 1; N = 0 is allowed."""
        ...


class TextImageEncoder(ImageEncoder, Protocol):
    """Turns images and texts into unit vectors of one space."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """float32 [N, D], rows of length 1."""
        ...


@dataclass(frozen=True)
class Encoders:
    """DINO judges the subject, CLIP the subject (CLIP-I) and the prompt (CLIP-T)."""

    dino: ImageEncoder
    clip: TextImageEncoder

    @property
    def comparable_with_paper(self) -> bool:
        """True for the paper's two encoders, by id or by a folder named as they are."""
        names = [(self.dino.name, PAPER_DINO), (self.clip.name, PAPER_CLIP)]
        return all(Path(got).name == Path(paper).name for got, paper in names)


class SpriteEvaluator(Protocol):
    """What `sprites.evaluator.load_evaluator()` returns; every method gives unit rows [N, D]."""

    def image_features_subject(self, images: Sequence[Image.Image]) -> Tensor:
        """Features of the subject alone, whatever the background: DINO's part."""
        ...

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Features of the whole picture, in the texts' space: CLIP's part."""
        ...

    def text_features(self, texts: list[str]) -> Tensor:
        """Features of captions."""
        ...


@dataclass(frozen=True)
class SpriteSubjectEncoder:
    """The embedded evaluator in DINO's part."""

    evaluator: SpriteEvaluator
    name: str = BUILTIN_SPRITES

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """float32 [N, D]."""
        return unit_rows(images, self.evaluator.image_features_subject)


@dataclass(frozen=True)
class SpriteTextEncoder:
    """The embedded evaluator in CLIP's part."""

    evaluator: SpriteEvaluator
    name: str = BUILTIN_SPRITES

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """float32 [N, D]."""
        return unit_rows(images, self.evaluator.image_features)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """float32 [N, D]."""
        return unit_rows(texts, lambda batch: self.evaluator.text_features(list(batch)))


def load_encoders(dino: str, clip: str, device: str = "cpu") -> Encoders:
    """Load both encoders; call it before the training, so that missing weights cost no time.

    Args:
        dino: hub id, local folder or builtin:sprites (`spec.evaluation.encoders.dino`).
        clip: the same for `spec.evaluation.encoders.clip`.
        device: torch device of the models; features always come back on the CPU.

    Raises:
        UserError: a model cannot be had or is of another kind; both encoders' issues at once.
    """
    issues: list[ValidationIssue] = []
    dino_encoder, clip_encoder = None, None
    try:
        dino_encoder = _load_dino(dino, device)
    except UserError as error:
        issues += error.issues
    try:
        clip_encoder = _load_clip(clip, device)
    except UserError as error:
        issues += error.issues
    if dino_encoder is None or clip_encoder is None:
        raise UserError(issues)
    return Encoders(dino=dino_encoder, clip=clip_encoder)


def _load_dino(name: str, device: str) -> ImageEncoder:
    if name == BUILTIN_SPRITES:
        return SpriteSubjectEncoder(_sprite_evaluator())
    from dreambooth_trainer.metrics import pretrained

    return pretrained.load_dino(name, device)


def _load_clip(name: str, device: str) -> TextImageEncoder:
    if name == BUILTIN_SPRITES:
        return SpriteTextEncoder(_sprite_evaluator())
    from dreambooth_trainer.metrics import pretrained

    return pretrained.load_clip(name, device)


def _sprite_evaluator() -> SpriteEvaluator:
    from dreambooth_trainer.sprites.evaluator import load_evaluator

    return load_evaluator()
