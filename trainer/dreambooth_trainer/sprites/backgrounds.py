"""Renders the eight backgrounds: two or three flat zones and one object next to the subject.

There are only `VARIANTS` fixed layouts per background, so that a small network can learn them, and so that rendered
backgrounds can be cached.
"""

import random
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dreambooth_trainer.sprites.randomness import seeded

BACKGROUNDS: dict[str, str] = {
    "beach": "on the beach",
    "snow": "in the snow",
    "jungle": "in the jungle",
    "city": "in the city",
    "night": "at night",
    "meadow": "in the meadow",
    "desert": "in the desert",
    "room": "in a room",
}
"""Background -> its phrase in captions."""

VARIANTS = 4
"""Layouts per background: object left or right, horizon high or low."""
CANVAS = 128
"""Canvas units per side, four per pixel. Edges are on multiples of four, so that they remain sharp."""

Draw = ImageDraw.ImageDraw
Rgb = tuple[int, int, int]


@lru_cache(maxsize=len(BACKGROUNDS) * VARIANTS)
def paint_background(name: str, variant: int) -> NDArray[np.uint8]:
    """A background without a subject, uint8 [128, 128, 3]. It is cached and read-only: copy it before drawing."""
    rng = seeded(f"{name}/{variant}")
    image = Image.new("RGB", (CANVAS, CANVAS))
    _PAINTERS[name](ImageDraw.Draw(image), rng, (64, 72)[variant // 2], variant % 2 == 0)
    canvas = np.array(image)
    canvas.flags.writeable = False
    return canvas


def _zone(draw: Draw, top: float, bottom: float, color: Rgb) -> None:
    draw.rectangle((0, top, CANVAS, bottom - 1), fill=color)


def _box(draw: Draw, left: float, top: float, right: float, bottom: float, color: Rgb) -> None:
    draw.rectangle((left, top, right - 1, bottom - 1), fill=color)


def _disc(draw: Draw, x: float, y: float, radius: float, color: Rgb) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _side(left: bool, inset: float) -> float:
    """Canvas x, `inset` units from the left or the right edge."""
    return inset if left else CANVAS - inset


def _beach(draw: Draw, rng: random.Random, horizon: int, left: bool) -> None:
    _zone(draw, 0, horizon - 20, (155, 215, 250))
    _zone(draw, horizon - 20, horizon + 12, (35, 120, 205))
    _zone(draw, horizon + 12, CANVAS, (242, 216, 150))
    _disc(draw, _side(left, 16), 16, 12, (255, 236, 100))


def _snow(draw: Draw, rng: random.Random, horizon: int, left: bool) -> None:
    _zone(draw, 0, horizon, (186, 203, 228))
    _zone(draw, horizon, CANVAS, (246, 249, 253))
    x = _side(left, 14)
    draw.polygon([(x - 16, horizon + 12), (x, horizon - 48), (x + 16, horizon + 12)], fill=(50, 105, 95))
    draw.polygon([(x - 8, horizon - 22), (x, horizon - 48), (x + 8, horizon - 22)], fill=(246, 249, 253))


def _jungle(draw: Draw, rng: random.Random, horizon: int, left: bool) -> None:
    _zone(draw, 0, CANVAS, (24, 92, 44))
    _zone(draw, 108, CANVAS, (16, 60, 32))
    x = _side(left, 14)
    _box(draw, x - 6, 0, x + 6, 112, (92, 62, 34))
    for k in range(5):
        _disc(draw, 32 * k, 4, 14, (46, 142, 58))


def _city(draw: Draw, rng: random.Random, horizon: int, left: bool) -> None:
    _zone(draw, 0, CANVAS, (176, 188, 202))
    tops = [4 * rng.randint(2, 6), 4 * rng.randint(7, 10), 4 * rng.randint(2, 6)]
    for top, (start, end), tone in zip(tops, ((0, 44), (44, 84), (84, 128)), (98, 126, 108), strict=True):
        _box(draw, start, top, end, 108, (tone, tone, tone + 12))
        for y in range(top + 8, 96, 20):
            for x in (start + 8, start + 24):
                _box(draw, x, y, x + 8, y + 8, (250, 222, 120))
    _zone(draw, 108, CANVAS, (66, 66, 72))


def _night(draw: Draw, rng: random.Random, horizon: int, left: bool) -> None:
    _zone(draw, 0, CANVAS, (16, 20, 62))
    _zone(draw, horizon + 28, CANVAS, (22, 44, 44))
    _disc(draw, _side(left, 18), 18, 13, (244, 242, 214))
    for k in range(4):
        x, y = _side(not left, 12 + 24 * k), (8, 28, 12, 32)[k]
        _box(draw, x, y, x + 4, y + 4, (255, 255, 225))


def _meadow(draw: Draw, rng: random.Random, horizon: int, left: bool) -> None:
    _zone(draw, 0, horizon, (170, 222, 255))
    _zone(draw, horizon, CANVAS, (106, 192, 70))
    x = _side(left, 24)
    for shift in (-11, 0, 11):
        _disc(draw, x + shift, 16, 11 if shift else 14, (255, 255, 255))
    for k, color in enumerate(((252, 232, 80), (250, 110, 150), (255, 255, 255))):
        _box(draw, 12 + 44 * k, 112, 20 + 44 * k, 120, color)


def _desert(draw: Draw, rng: random.Random, horizon: int, left: bool) -> None:
    _zone(draw, 0, CANVAS, (252, 196, 124))
    top = horizon + 8
    draw.polygon(
        [(0, top), (_side(left, 84), top - 24), (CANVAS, top), (CANVAS, CANVAS), (0, CANVAS)], fill=(208, 134, 66)
    )
    x = _side(left, 16)
    _box(draw, x - 5, top - 56, x + 5, top + 12, (48, 122, 62))
    _box(draw, x - 13, top - 40, x - 7, top - 20, (48, 122, 62))
    _box(draw, x - 13, top - 24, x, top - 18, (48, 122, 62))


def _room(draw: Draw, rng: random.Random, horizon: int, left: bool) -> None:
    _zone(draw, 0, 96, (226, 196, 208))
    _zone(draw, 96, CANVAS, (138, 88, 52))
    x = 4 if left else 92
    _box(draw, x, 8, x + 32, 44, (252, 252, 252))
    _box(draw, x + 4, 12, x + 28, 40, (130, 196, 240))


_PAINTERS: dict[str, Callable[[Draw, random.Random, int, bool], None]] = {
    "beach": _beach,
    "snow": _snow,
    "jungle": _jungle,
    "city": _city,
    "night": _night,
    "meadow": _meadow,
    "desert": _desert,
    "room": _room,
}
