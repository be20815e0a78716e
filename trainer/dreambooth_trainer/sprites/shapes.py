"""The shapes of the eight classes, as polygons in coordinates of about -1..1 (y increases downward).

The function of each class takes three proportions in -1..1 and returns its parts from back to front.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Role = Literal["body", "accent", "ink", "paper"]
Outline = NDArray[np.float64]


class Part(NamedTuple):
    """A filled polygon or, if `stroke` (a width in subject coordinates) is set, an open line."""

    role: Role
    outline: Outline
    """[points, 2]"""
    stroke: float = 0.0


def ellipse(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0, points: int = 24) -> Outline:
    """Polygon of an ellipse, rotated by `turn` radians, [points, 2]."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    x, y = rx * np.cos(angle), ry * np.sin(angle)
    return np.stack([cx + x * np.cos(turn) - y * np.sin(turn), cy + x * np.sin(turn) + y * np.cos(turn)], axis=1)


def rectangle(left: float, top: float, right: float, bottom: float) -> Outline:
    """Polygon of an upright rectangle, [4, 2]."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=np.float64)


def polygon(*points: tuple[float, float]) -> Outline:
    """[points, 2]"""
    return np.array(points, dtype=np.float64)


def ring(cx: float, cy: float, rx: float, ry: float) -> Outline:
    """A closed ellipse for a part with `stroke`, [26, 2]."""
    once = ellipse(cx, cy, rx, ry)
    return np.concatenate([once, once[:2]])


def dog(head: float, ear: float, tail: float) -> list[Part]:
    """From the side, looking right, with one hanging ear."""
    radius, drop = 0.40 + 0.05 * head, 0.34 + 0.10 * ear
    return [
        Part("accent", polygon((-0.55, 0.2), (-1.0, -0.35 - 0.2 * tail), (-0.76, -0.45 - 0.2 * tail), (-0.4, 0.1))),
        Part("body", rectangle(-0.70, 0.3, -0.38, 0.95)),
        Part("body", rectangle(0.12, 0.3, 0.44, 0.95)),
        Part("body", ellipse(-0.12, 0.27, 0.66, 0.36)),
        Part("body", ellipse(0.76, -0.24, 0.27, 0.20)),
        Part("body", ellipse(0.40, -0.42, radius, radius)),
        Part("accent", ellipse(0.12, -0.34, 0.17, drop, turn=0.25)),
        Part("ink", ellipse(0.52, -0.52, 0.09, 0.10)),
        Part("ink", ellipse(0.95, -0.32, 0.11, 0.09)),
    ]


def cat(head: float, ear: float, tail: float) -> list[Part]:
    """Sitting, from the front, with pointed ears and a curled tail."""
    width, point = 0.48 + 0.05 * head, 0.26 + 0.08 * ear
    return [
        Part(
            "accent",
            polygon(
                (0.3, 0.9), (0.98, 0.7), (0.95, 0.0 + 0.2 * tail), (0.68, 0.05 + 0.2 * tail), (0.68, 0.5), (0.3, 0.6)
            ),
        ),
        Part("body", ellipse(0, 0.5, 0.48, 0.48)),
        Part("body", polygon((-0.48, -0.3), (-0.46, -0.68 - point), (-0.04, -0.62))),
        Part("body", polygon((0.48, -0.3), (0.46, -0.68 - point), (0.04, -0.62))),
        Part("body", ellipse(0, -0.32, width, 0.42)),
        Part("paper", ellipse(-0.2, -0.36, 0.15, 0.16)),
        Part("paper", ellipse(0.2, -0.36, 0.15, 0.16)),
        Part("ink", ellipse(-0.18, -0.36, 0.07, 0.13)),
        Part("ink", ellipse(0.18, -0.36, 0.07, 0.13)),
        Part("accent", ellipse(0, -0.12, 0.11, 0.08)),
    ]


def duck(head: float, tail: float, bill: float) -> list[Part]:
    """Swimming to the right."""
    radius = 0.36 + 0.05 * head
    return [
        Part("body", polygon((-0.7, 0.35), (-1.02, -0.12 - 0.14 * tail), (-0.4, 0.1))),
        Part("body", ellipse(-0.1, 0.48, 0.78, 0.46)),
        Part("body", polygon((0.1, -0.3), (0.05, 0.4), (0.6, 0.5), (0.66, -0.2))),
        Part("body", ellipse(0.36, -0.42, radius, radius)),
        Part("accent", polygon((0.62, -0.56), (1.02 + 0.1 * bill, -0.30), (0.62, -0.16))),
        Part("accent", ellipse(-0.22, 0.42, 0.40, 0.22, turn=-0.2)),
        Part("ink", ellipse(0.44, -0.54, 0.10, 0.11)),
    ]


def robot(head: float, chest: float, lamp: float) -> list[Part]:
    """From the front: square, with an antenna and a lamp on its chest."""
    skull, trunk = 0.42 + 0.06 * head, 0.44 + 0.06 * chest
    return [
        Part("ink", rectangle(-0.05, -1.0, 0.05, -0.7)),
        Part("accent", ellipse(0, -0.98, 0.13, 0.12)),
        Part("accent", rectangle(-trunk - 0.26, -0.04, -trunk - 0.04, 0.5)),
        Part("accent", rectangle(trunk + 0.04, -0.04, trunk + 0.26, 0.5)),
        Part("accent", rectangle(-0.38, 0.55, -0.10, 0.98)),
        Part("accent", rectangle(0.10, 0.55, 0.38, 0.98)),
        Part("body", rectangle(-trunk, -0.10, trunk, 0.62)),
        Part("body", rectangle(-skull, -0.80, skull, -0.14)),
        Part("paper", rectangle(-0.31, -0.64, -0.07, -0.42)),
        Part("paper", rectangle(0.07, -0.64, 0.31, -0.42)),
        Part("ink", rectangle(-0.22, -0.32, 0.22, -0.23)),
        Part("accent", ellipse(0, 0.26 + 0.06 * lamp, 0.18, 0.18)),
    ]


def teapot(belly: float, spout: float, knob: float) -> list[Part]:
    """Spout to the right, ring handle to the left."""
    height = 0.52 + 0.06 * belly
    return [
        Part("body", polygon((0.35, 0.5), (0.86 + 0.06 * spout, -0.30), (1.06 + 0.06 * spout, -0.20), (0.55, 0.72))),
        Part("accent", ring(-0.66, 0.22, 0.30, 0.34), stroke=0.17),
        Part("body", ellipse(0, 0.28, 0.66, height)),
        Part("accent", ellipse(0, -0.22, 0.40, 0.17)),
        Part("accent", ellipse(0, -0.46 - 0.08 * knob, 0.15, 0.15)),
        Part("accent", rectangle(-0.38, 0.72, 0.38, 0.90)),
    ]


def vase(belly: float, neck: float, band: float) -> list[Part]:
    """A narrow neck on a round belly, with a rim and a foot."""
    wide, narrow = 0.58 + 0.10 * belly, 0.24 + 0.05 * neck
    half = [(narrow, -0.70), (narrow, -0.38), (wide, 0.08), (wide, 0.36), (0.32, 0.86)]
    return [
        Part("body", polygon(*half, *[(-x, y) for x, y in reversed(half)])),
        Part("accent", rectangle(-narrow - 0.18, -0.94, narrow + 0.18, -0.70)),
        Part("accent", rectangle(-0.40, 0.80, 0.40, 0.98)),
        Part("accent", ellipse(0, -0.40 - 0.05 * band, narrow + 0.08, 0.09)),
    ]


def backpack(width: float, pocket: float, zip_: float) -> list[Part]:
    """Rounded top, side pockets, one front pocket, a carrying loop."""
    half = 0.54 + 0.06 * width
    top = ellipse(0, -0.25, half, 0.56)[12:]
    return [
        Part("accent", ring(0, -0.78, 0.22, 0.20), stroke=0.15),
        Part("accent", rectangle(-half - 0.24, -0.10, -half, 0.78)),
        Part("accent", rectangle(half, -0.10, half + 0.24, 0.78)),
        Part("body", np.concatenate([top, polygon((half, 0.95), (-half, 0.95))])),
        Part("accent", rectangle(-0.38, 0.24 + 0.06 * pocket, 0.38, 0.80)),
        Part("ink", rectangle(-0.38, 0.24 + 0.06 * pocket, 0.38, 0.34 + 0.06 * pocket)),
        Part("ink", rectangle(-0.32, -0.20 + 0.10 * zip_, 0.32, -0.11 + 0.10 * zip_)),
    ]


def clock(face: float, hand: float, bells: float) -> list[Part]:
    """An alarm clock: two bells, two feet, a white dial."""
    radius, bell = 0.70 + 0.04 * face, 0.27 + 0.04 * bells
    reach = 0.30 + 0.08 * hand
    return [
        Part("accent", ellipse(-0.48, -0.66, bell, 0.22, turn=-0.7)),
        Part("accent", ellipse(0.48, -0.66, bell, 0.22, turn=0.7)),
        Part("accent", polygon((-0.55, 0.5), (-0.25, 0.7), (-0.5, 1.0), (-0.72, 0.95))),
        Part("accent", polygon((0.55, 0.5), (0.25, 0.7), (0.5, 1.0), (0.72, 0.95))),
        Part("body", ellipse(0, 0.12, radius, radius, points=32)),
        Part("paper", ellipse(0, 0.12, radius - 0.26, radius - 0.26, points=28)),
        Part("ink", rectangle(-0.06, -0.24, 0.06, 0.16)),
        Part("ink", rectangle(-0.06, 0.06, reach, 0.18)),
    ]


PARTS: dict[str, Callable[[float, float, float], list[Part]]] = {
    "dog": dog,
    "cat": cat,
    "duck": duck,
    "robot": robot,
    "teapot": teapot,
    "vase": vase,
    "backpack": backpack,
    "clock": clock,
}
