"""Stage 5: trains the image encoder of the IP-Adapter, a small `CLIPVisionModelWithProjection`.

The targets are the attributes of the rendered subject, which are known exactly, and not those of its scene. The
evaluator has no part in it: the network that conditions generation is not the one that measures the result.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from dreambooth_trainer.sprites.train_evaluator import SubjectViews
from dreambooth_trainer.sprites.training import Checkpoint, make_optimizer, train
from dreambooth_trainer.sprites.world import CLASSES, PATTERNS, SIZE, Subject

COLOR_VALUES, SHAPE_VALUES = 6, 3
"""Two colors of three channels, and the proportions of `Subject.shape`."""


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Size and training settings of the image encoder."""

    width: int = 96
    layers: int = 2
    heads: int = 4
    patch: int = 8
    projection: int = 64
    steps: int = 1_500
    batch: int = 64
    rate: float = 1e-3


@dataclass(frozen=True)
class Attributes:
    """What the encoder learns to recognize, of N subjects."""

    classes: torch.Tensor
    """int64 [N], index into `CLASSES`."""
    patterns: torch.Tensor
    """int64 [N], index into `PATTERNS`."""
    values: torch.Tensor
    """float [N, 9]: the two colors and the shape, each -1..1."""


def attributes_of(subjects: list[Subject]) -> Attributes:
    """The attributes of subjects as tensors."""
    values = [
        [*(channel / 127.5 - 1 for channel in (*subject.body, *subject.accent)), *subject.shape] for subject in subjects
    ]
    return Attributes(
        torch.tensor([CLASSES.index(subject.cls) for subject in subjects]),
        torch.tensor([PATTERNS.index(subject.pattern) for subject in subjects]),
        torch.tensor(values),
    )


def build_image_encoder(config: ImageEncoderConfig) -> CLIPVisionModelWithProjection:
    """Build a CLIP vision model for images of 32 x 32 pixels."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=config.width,
            intermediate_size=2 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            image_size=SIZE,
            patch_size=config.patch,
            projection_dim=config.projection,
        )
    )


def to_pixel_values(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [N, 32, 32, 3] -> float [N, 3, 32, 32], as diffusers' IP-Adapter loader does it (`CLIPImageProcessor`)."""
    processor = CLIPImageProcessor()
    mean, std = torch.tensor(cast("Any", processor.image_mean)), torch.tensor(cast("Any", processor.image_std))
    return ((torch.as_tensor(images).float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


class Recognizer(nn.Module):
    """The encoder, and a linear layer that reads the attributes from its features. Only the encoder is kept."""

    def __init__(self, encoder: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.encoder = encoder
        outputs = len(CLASSES) + len(PATTERNS) + COLOR_VALUES + SHAPE_VALUES
        self.head = nn.Linear(encoder.config.projection_dim, outputs)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[N, 3, 32, 32] -> logits of classes [N, 8] and patterns [N, 3], and values [N, 9]."""
        features = self.encoder(pixel_values).image_embeds
        classes, patterns, values = self.head(features).split(
            [len(CLASSES), len(PATTERNS), COLOR_VALUES + SHAPE_VALUES], dim=1
        )
        return classes, patterns, values


def train_image_encoder(
    views: SubjectViews, work: Path, config: ImageEncoderConfig, seed: int, console: Console
) -> CLIPVisionModelWithProjection:
    """Train on images of random subjects, resuming from `work/image_encoder.ckpt`."""
    torch.manual_seed(seed)
    model = Recognizer(build_image_encoder(config)).train()
    optimizer, schedule = make_optimizer(list(model.parameters()), config.rate, config.steps)
    checkpoint = Checkpoint(work / "image_encoder.ckpt", model=model, optimizer=optimizer, schedule=schedule)
    attributes = attributes_of(views.subjects)

    def loss_of(generator: torch.Generator) -> tuple[torch.Tensor, str]:
        loss, accuracy = _loss(model, views, attributes, config.batch, generator)
        return loss, f"loss {loss.item():.3f} class {accuracy:.2f}"

    train("image encoder", checkpoint, (optimizer, schedule), config.steps, seed, console, loss_of)
    return model.encoder.eval()


def _loss(
    model: Recognizer, views: SubjectViews, attributes: Attributes, batch: int, generator: torch.Generator
) -> tuple[torch.Tensor, float]:
    """The loss of one batch, and the share of subjects whose class was recognized."""
    rows = torch.randint(len(views.subjects), (batch,), generator=generator)
    columns = torch.randint(views.images.shape[1], (batch,), generator=generator)
    classes, patterns, values = model(to_pixel_values(views.images[rows.numpy(), columns.numpy()]))
    loss = (
        cross_entropy(classes, attributes.classes[rows])
        + cross_entropy(patterns, attributes.patterns[rows])
        + 4 * mse_loss(values, attributes.values[rows])
    )
    return loss, (classes.argmax(dim=1) == attributes.classes[rows]).float().mean().item()
