"""Renders sprites: images of 32 x 32 pixels of a subject in a scene.

An image is a pure function of its subject and scene, so its ground truth is known exactly. Geometry is rendered on a
canvas with four times the resolution (`CANVAS` = 128 units per side) and downsampled with a box filter.
"""

import colorsys
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from dreambooth_trainer.sprites.backgrounds import BACKGROUNDS, VARIANTS, paint_background
from dreambooth_trainer.sprites.shapes import PARTS

SIZE = 32
"""Side length of a sprite in pixels."""
SUPERSAMPLE = 4
CANVAS = SIZE * SUPERSAMPLE

CLASSES: tuple[str, ...] = tuple(PARTS)

PATTERNS: tuple[str, ...] = ("plain", "striped", "spotted")

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.000, 0.85, 0.85),
    "orange": (0.075, 0.90, 0.97),
    "yellow": (0.150, 0.80, 0.98),
    "green": (0.370, 0.75, 0.62),
    "blue": (0.600, 0.80, 0.85),
    "purple": (0.765, 0.65, 0.68),
    "pink": (0.930, 0.38, 0.99),
    "white": (0.100, 0.03, 0.98),
    "brown": (0.065, 0.66, 0.45),
}
"""Hue, saturation and value (0..1) of the colors that occur in captions."""

UNNAMED_COLORS: dict[str, tuple[float, float, float]] = {
    "teal": (0.490, 0.72, 0.80),
    "lime": (0.235, 0.78, 0.88),
    "magenta": (0.860, 0.85, 0.85),
    "slate": (0.600, 0.28, 0.48),
}
"""Colors that occur in images, but not in captions, so that prompts cannot describe subjects with these colors."""

ALL_COLORS = COLORS | UNNAMED_COLORS

Rgb = tuple[int, int, int]
Size = Literal["small", "medium", "big"]
Pixels = NDArray[np.uint8]

SCALES: dict[Size, float] = {"small": 35.0, "medium": 46.0, "big": 57.0}
"""Half the height of a subject in canvas units (four per pixel)."""

POSITIONS: dict[Size, tuple[tuple[int, ...], int]] = {
    "small": ((48, 64, 80), 82),
    "medium": ((48, 64, 80), 72),
    "big": ((64,), 66),
}
"""Possible centers of a subject in canvas units: x coordinates and y. The distance of 16 is two latent positions, so
that a shift is a translation of the latents, and the model need not learn each shape at each sub-pixel offset."""

INK: Rgb = (28, 24, 30)
PAPER: Rgb = (250, 250, 250)
MIN_CONTRAST = 170
"""Minimum L1 distance of a subject's two colors in 8-bit RGB, so that patterns are visible."""


@dataclass(frozen=True)
class Subject:
    """The attributes of a subject, which are the same in all scenes."""

    cls: str
    body_name: str
    body: Rgb
    accent_name: str
    accent: Rgb
    pattern: str
    shape: tuple[float, float, float]
    """Three class-specific proportions (ear length, head size ...), each -1..1."""


@dataclass(frozen=True)
class Scene:
    """Background, size, position and direction of a subject in an image."""

    background: str
    variant: int
    """Index of the background's layout, below `VARIANTS`."""
    size: Size
    center: tuple[int, int]
    """Canvas units."""
    flip: bool
    """Whether the subject faces left."""


def shade(rng: random.Random, name: str) -> Rgb:
    """A random variation of a named color."""
    hue, saturation, value = ALL_COLORS[name]
    hue = (hue + rng.uniform(-0.012, 0.012)) % 1
    if saturation > 0.1:
        saturation = min(1.0, saturation + rng.uniform(-0.06, 0.06))
    value = min(1.0, value + rng.uniform(-0.05, 0.03))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def random_subject(rng: random.Random, cls: str | None = None) -> Subject:
    """Sample a subject whose two colors differ by more than `MIN_CONTRAST`."""
    names = tuple(ALL_COLORS)
    body_name = rng.choice(names)
    body = shade(rng, body_name)
    while True:
        accent_name = rng.choice(names)
        accent = shade(rng, accent_name)
        if accent_name != body_name and sum(abs(a - b) for a, b in zip(body, accent, strict=True)) > MIN_CONTRAST:
            break
    shape = (rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(-1, 1))
    pattern = rng.choice(PATTERNS)
    return Subject(cls or rng.choice(CLASSES), body_name, body, accent_name, accent, pattern, shape)


def random_scene(rng: random.Random, background: str | None = None, size: Size | None = None) -> Scene:
    """Sample a scene. The subject is always inside the image and near the ground."""
    size = size or rng.choices(("small", "medium", "big"), weights=(1, 2, 1))[0]
    columns, row = POSITIONS[size]
    return Scene(
        background=background or rng.choice(tuple(BACKGROUNDS)),
        variant=rng.randrange(VARIANTS),
        size=size,
        center=(rng.choice(columns), row),
        flip=rng.random() < 0.5,
    )


def render(subject: Subject, scene: Scene) -> Pixels:
    """The sprite, uint8 [32, 32, 3]."""
    canvas = paint_background(scene.background, scene.variant).copy()
    roles, local_x, local_y = _rasterize(subject, scene)
    outline = np.asarray(Image.fromarray(np.where(roles > 0, 255, 0).astype(np.uint8)).filter(ImageFilter.MaxFilter(5)))
    canvas[outline > 0] = INK
    marked = _pattern(subject.pattern, local_x, local_y)
    canvas[(roles == ROLE["body"]) & ~marked] = subject.body
    canvas[(roles == ROLE["body"]) & marked] = subject.accent
    canvas[roles == ROLE["accent"]] = subject.accent
    canvas[roles == ROLE["ink"]] = INK
    canvas[roles == ROLE["paper"]] = PAPER
    return box_down(canvas)


def box_down(canvas: Pixels) -> Pixels:
    """Average blocks of `SUPERSAMPLE` x `SUPERSAMPLE`: uint8 [128, 128, 3] -> uint8 [32, 32, 3]."""
    blocks = canvas.reshape(SIZE, SUPERSAMPLE, SIZE, SUPERSAMPLE, 3)
    return (blocks.sum(axis=(1, 3), dtype=np.uint16) // SUPERSAMPLE**2).astype(np.uint8)


ROLE = {"body": 1, "accent": 2, "ink": 3, "paper": 4}


@lru_cache(maxsize=1)
def _grid() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    return x, y


def _rasterize(subject: Subject, scene: Scene) -> tuple[Pixels, NDArray[np.floating], NDArray[np.floating]]:
    """Role of each canvas unit [128, 128], and its coordinates relative to the subject."""
    (cx, cy), scale = scene.center, SCALES[scene.size]
    mirror = -1.0 if scene.flip else 1.0
    image = Image.new("L", (CANVAS, CANVAS), 0)
    draw = ImageDraw.Draw(image)
    for part in PARTS[subject.cls](*subject.shape):
        points = part.outline * (mirror * scale, scale) + (cx, cy)
        path = [(float(x), float(y)) for x, y in points]
        if part.stroke:
            draw.line(path, fill=ROLE[part.role], width=max(4, round(scale * part.stroke)), joint="curve")
        else:
            draw.polygon(path, fill=ROLE[part.role])
    x, y = _grid()
    return np.asarray(image), (x - cx) / (mirror * scale), (y - cy) / scale


def _pattern(pattern: str, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Mask of the accent color on the body. Periods are in coordinates relative to the subject."""
    if pattern == "striped":
        return np.mod(x + 0.25 * y + 0.12, 0.5) < 0.25
    if pattern == "spotted":
        row = np.floor(y / 0.42)
        across = (np.mod(x / 0.5 + 0.5 * np.mod(row, 2), 1) - 0.5) * 0.5
        down = (np.mod(y / 0.42, 1) - 0.5) * 0.42
        return across**2 + down**2 < 0.15**2
    return np.zeros(x.shape, dtype=np.bool_)
