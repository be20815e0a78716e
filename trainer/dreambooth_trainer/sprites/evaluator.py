"""The evaluator of sprites, which replaces DINO (subject features) and CLIP (image and text features).

A small convolutional network with two heads, and a bag-of-words text head. It is trained separately from the base
model and on other images.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import normalize

from dreambooth_trainer.sprites import EVALUATOR_WEIGHTS
from dreambooth_trainer.sprites.captions import RARE_TOKENS, WORDS
from dreambooth_trainer.sprites.world import SIZE

Sprite = Image.Image | NDArray[np.uint8] | torch.Tensor
"""One image: PIL, or uint8 [H, W, 3]."""


@dataclass(frozen=True)
class EvaluatorConfig:
    """Widths of the network."""

    channels: tuple[int, int, int] = (32, 64, 96)
    hidden: int = 128
    subject_size: int = 64
    joint_size: int = 64
    words: tuple[str, ...] = tuple(word for word in WORDS if word not in RARE_TOKENS)


class EvaluatorNet(nn.Module):
    """Maps images [N, 3, 32, 32] in -1..1 and word counts [N, words] to features that are not yet centered.

    The spelling of the `*_centre` buffers is that of the keys in the embedded weights.
    """

    subject_centre: torch.Tensor
    joint_centre: torch.Tensor
    text_centre: torch.Tensor

    def __init__(self, config: EvaluatorConfig) -> None:
        super().__init__()
        first, second, third = config.channels
        self.config = config
        self.trunk = nn.Sequential(
            *_block(3, first, stride=1),
            *_block(first, second, stride=2),
            *_block(second, second, stride=1),
            *_block(second, third, stride=2),
            *_block(third, third, stride=2),
            nn.Flatten(),
            nn.Linear(third * 16, config.hidden),
            nn.ReLU(),
        )
        self.subject = nn.Linear(config.hidden, config.subject_size)
        self.joint = nn.Linear(config.hidden, config.joint_size)
        self.text = nn.Sequential(
            nn.Linear(len(config.words), config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.joint_size)
        )
        self.log_scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("subject_centre", torch.zeros(config.subject_size))
        self.register_buffer("joint_centre", torch.zeros(config.joint_size))
        self.register_buffer("text_centre", torch.zeros(config.joint_size))


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class SpritesEvaluator:
    """L2-normalized features of sprites and captions. Random pairs have a cosine near zero."""

    def __init__(self, net: EvaluatorNet) -> None:
        self.net = net.eval()

    @torch.no_grad()
    def image_features_subject(self, images: Sequence[Sprite]) -> torch.Tensor:
        """Features of the subject's identity, float [N, 64]. Other subjects of the same class are dissimilar."""
        return normalize(normalize(self.net.subject(self._hidden(images)), dim=1) - self.net.subject_centre, dim=1)

    @torch.no_grad()
    def image_features(self, images: Sequence[Sprite]) -> torch.Tensor:
        """Features of the content, float [N, 64], in the same space as `text_features`."""
        return normalize(normalize(self.net.joint(self._hidden(images)), dim=1) - self.net.joint_centre, dim=1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Features of captions, float [N, 64]. Unknown words such as an identifier are ignored."""
        counts = bag_of_words(texts, self.net.config.words)
        return normalize(normalize(self.net.text(counts), dim=1) - self.net.text_centre, dim=1)

    def classify(self, images: Sequence[Sprite], labels: Sequence[str]) -> list[int]:
        """Zero-shot classification: index of the most similar label for each image."""
        similarity = self.image_features(images) @ self.text_features(labels).T
        return similarity.argmax(dim=1).tolist()

    def _hidden(self, images: Sequence[Sprite]) -> torch.Tensor:
        return self.net.trunk(as_batch(images))

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` (float16)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self.net.config), indent=1) + "\n")
        state = {
            name: value.half() if value.is_floating_point() else value for name, value in self.net.state_dict().items()
        }
        save_file(state, folder / "model.safetensors")


def load_evaluator(path: Path | None = None) -> SpritesEvaluator:
    """Load an evaluator; by default the embedded one."""
    folder = path or EVALUATOR_WEIGHTS
    stored: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config = EvaluatorConfig(**{**stored, "channels": tuple(stored["channels"]), "words": tuple(stored["words"])})
    net = EvaluatorNet(config)
    net.load_state_dict(
        {
            name: value.float() if value.is_floating_point() else value
            for name, value in load_file(folder / "model.safetensors").items()
        }
    )
    return SpritesEvaluator(net)


def as_batch(images: Sequence[Sprite]) -> torch.Tensor:
    """Convert images of any type and size to float [N, 3, 32, 32] in -1..1. Larger images are averaged."""
    return torch.stack([_as_tensor(image) for image in images])


def _as_tensor(image: Sprite) -> torch.Tensor:
    if isinstance(image, torch.Tensor):
        image = image.numpy()
    pil = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    pil = pil.convert("RGB")
    if pil.size != (SIZE, SIZE):
        pil = pil.resize((SIZE, SIZE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(pil)).permute(2, 0, 1).float() / 127.5 - 1


def bag_of_words(texts: Sequence[str], words: tuple[str, ...]) -> torch.Tensor:
    """Which known words each text contains, float [N, words]. The order of words in captions has no meaning."""
    index = {word: position for position, word in enumerate(words)}
    counts = torch.zeros(len(texts), len(words))
    for row, text in enumerate(texts):
        for word in re.findall(r"[a-z]+", text.lower()):
            if word in index:
                counts[row, index[word]] = 1.0
    return counts
