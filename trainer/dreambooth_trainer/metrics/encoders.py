"""Networks used for scoring: DINO and CLIP from transformers, or the built-in encoder for sprites, and LPIPS.

Every encoder returns L2-normalized features, float32 [N, D] on the CPU. `pretrained` and the sprites package are
imported only by jobs that use them, because importing transformers takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.metrics.batching import encode_normalized
from dreambooth_trainer.metrics.lpips_packages import wants_lpips


class ImageEncoder(Protocol):
    """Encodes images."""

    @property
    def name(self) -> str:
        """As in the job: Hub ID, folder, or builtin:sprites."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Normalized features, float32 [N, D]. N may be 0."""
        ...


class TextImageEncoder(ImageEncoder, Protocol):
    """Encodes images and texts into a joint embedding space."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Normalized features, float32 [N, D]."""
        ...


class ImageDistance(Protocol):
    """A perceptual distance of images."""

    @property
    def name(self) -> str:
        """Name of its network."""
        ...

    def mean_distance(self, images: Sequence[Image.Image]) -> float | None:
        """Mean over all pairs of images of one size; None for fewer than two."""
        ...


@dataclass(frozen=True)
class Encoders:
    """The networks of an evaluation.

    Attributes:
        dino: image encoder of DINO, PRES and the two diversities.
        clip: image and text encoder of CLIP-I and CLIP-T.
        lpips: distance of DIV; None if it is not available.
        without_lpips: a line for the user if LPIPS is wanted but not available, or empty.
    """

    dino: ImageEncoder
    clip: TextImageEncoder
    lpips: ImageDistance | None = None
    without_lpips: str = ""


class SpriteEvaluator(Protocol):
    """The return type of `sprites.evaluator.load_evaluator`. All features are normalized, [N, D]."""

    def image_features_subject(self, images: Sequence[Image.Image]) -> Tensor:
        """Features of the subject, independent of the background, as those of DINO."""
        ...

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Features of the image in the joint space with texts, as those of CLIP."""
        ...

    def text_features(self, texts: list[str]) -> Tensor:
        """Features of captions in the joint space with images."""
        ...


@dataclass(frozen=True)
class SpriteSubjectEncoder:
    """The built-in encoder in place of DINO."""

    evaluator: SpriteEvaluator
    name: str = BUILTIN_SPRITES

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Normalized features, float32 [N, D]."""
        return encode_normalized(images, self.evaluator.image_features_subject)


@dataclass(frozen=True)
class SpriteTextEncoder:
    """The built-in encoder in place of CLIP."""

    evaluator: SpriteEvaluator
    name: str = BUILTIN_SPRITES

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Normalized features, float32 [N, D]."""
        return encode_normalized(images, self.evaluator.image_features)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Normalized features, float32 [N, D]."""
        return encode_normalized(texts, lambda batch: self.evaluator.text_features(list(batch)))


def load_encoders(
    dino: str, clip: str, device: str = "cpu", commits: Mapping[str, str] | None = None, *, lpips: bool = True
) -> Encoders:
    """Load both encoders, and LPIPS if it is wanted and available.

    Args:
        dino: Hub ID, local folder or builtin:sprites (`spec.evaluation.encoders.dino`).
        clip: the same for `spec.evaluation.encoders.clip`.
        device: torch device of the models. Features are always returned on the CPU.
        commits: commit of each model from the Hub, by ID. Without it, the Hub is asked for the latest.
        lpips: whether LPIPS is wanted, if the other networks are those of the paper.

    Raises:
        UserError: a model is not available or of another type. Contains the issues of both encoders.
    """
    issues: list[ValidationIssue] = []
    dino_encoder, clip_encoder, commits = None, None, commits or {}
    try:
        dino_encoder = _load_dino(dino, device, commits.get(dino))
    except UserError as error:
        issues += error.issues
    try:
        clip_encoder = _load_clip(clip, device, commits.get(clip))
    except UserError as error:
        issues += error.issues
    if dino_encoder is None or clip_encoder is None:
        raise UserError(issues)
    distance, reason = load_lpips(device) if lpips and wants_lpips(dino) else (None, "")
    return Encoders(dino_encoder, clip_encoder, distance, reason)


def load_lpips(device: str) -> tuple[ImageDistance | None, str]:
    """LPIPS, or None and a line for the user. DIV has no substitute, because other distances have other scales."""
    from dreambooth_trainer.metrics import lpips

    try:
        return lpips.load(device), ""
    except lpips.LpipsUnavailableError as error:
        return None, f"DIV is not computed: {error}"


def _load_dino(name: str, device: str, commit: str | None) -> ImageEncoder:
    if name == BUILTIN_SPRITES:
        return SpriteSubjectEncoder(_sprite_evaluator())
    from dreambooth_trainer.metrics import pretrained

    return pretrained.load_dino(name, device, commit)


def _load_clip(name: str, device: str, commit: str | None) -> TextImageEncoder:
    if name == BUILTIN_SPRITES:
        return SpriteTextEncoder(_sprite_evaluator())
    from dreambooth_trainer.metrics import pretrained

    return pretrained.load_clip(name, device, commit)


def _sprite_evaluator() -> SpriteEvaluator:
    from dreambooth_trainer.sprites.evaluator import load_evaluator

    return load_evaluator()
