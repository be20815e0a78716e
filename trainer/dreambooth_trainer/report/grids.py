"""Labelled grids of pictures, as images: for a model card, or wherever HTML cannot go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from dreambooth_trainer.report.contents import Comparison

TILE = 192
"""Side of a picture in a grid, pixels."""
GAP = 8
TEXT_SIZE = 18
WHITE, INK, MUTED = (255, 255, 255), (24, 24, 27), (113, 113, 122)


@dataclass(frozen=True)
class Row:
    """Pictures side by side under one line of text; groups stand apart from each other."""

    label: str
    groups: tuple[tuple[Image.Image, ...], ...]


def fit(image: Image.Image, side: int) -> Image.Image:
    """The whole picture, RGB, in the middle of a white square of `side` pixels.

    A picture of at most half that size is enlarged by a whole factor with NEAREST, so that each pixel of a sprite stays
    a sharp square; any other is resized with LANCZOS.
    """
    image = image.convert("RGB")
    factor = side // max(image.size)
    if factor >= 2:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        scale = side / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), WHITE)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def labelled_grid(rows: Sequence[Row], headings: Sequence[str] = (), tile: int = TILE) -> Image.Image:
    """Rows of pictures with a label above each row and headings above the first row's groups.

    Args:
        rows: at least one; all are laid out like the widest.
        headings: one for each group, or none.
        tile: side of a picture, pixels.
    """
    columns = [
        max((len(row.groups[g]) for row in rows if g < len(row.groups)), default=0) for g in range(_groups(rows))
    ]
    starts = [GAP + sum(columns[:g]) * (tile + GAP) + 3 * GAP * g for g in range(len(columns))]
    width = starts[-1] + columns[-1] * (tile + GAP)
    line = TEXT_SIZE + 2 * GAP
    top = line if headings else 0
    grid = Image.new("RGB", (width, top + len(rows) * (line + tile) + GAP), WHITE)
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(TEXT_SIZE)
    for start, heading in zip(starts, headings, strict=bool(headings)):
        draw.text((start, GAP), heading, fill=MUTED, font=font)
    for index, row in enumerate(rows):
        y = top + index * (line + tile)
        draw.text((GAP, y + GAP), shorten(row.label, font, width - 2 * GAP), fill=INK, font=font)
        for start, group in zip(starts, row.groups, strict=False):
            for place, image in enumerate(group):
                grid.paste(fit(image, tile), (start + place * (tile + GAP), y + line))
    return grid


def comparison_grid(comparisons: Sequence[Comparison], tile: int = TILE, most: int = 4) -> Image.Image:
    """Before on the left, after on the right, a row a prompt; at most `most` pictures on each side."""
    rows = [Row(c.prompt, (c.before[:most], c.after[:most])) for c in comparisons]
    return labelled_grid(rows, headings=("before", "after"), tile=tile)


def shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text` if it fits into `width` pixels, else its beginning and an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _groups(rows: Sequence[Row]) -> int:
    count = max((len(row.groups) for row in rows), default=0)
    if count == 0:
        raise ValueError("a grid needs at least one row of pictures")
    return count
