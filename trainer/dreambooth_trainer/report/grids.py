"""Labeled image grids, for model cards and other places without HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from dreambooth_trainer.report.contents import Comparison

TILE = 192
"""Side of an image in a grid, pixels."""
GAP = 8
"""Space between images, pixels."""
TEXT_SIZE = 18
_WHITE, _BLACK, _GRAY = (255, 255, 255), (24, 24, 27), (113, 113, 122)


@dataclass(frozen=True)
class Row:
    """Groups of images side by side, below one label."""

    label: str
    groups: tuple[tuple[Image.Image, ...], ...]


def fit(image: Image.Image, side: int) -> Image.Image:
    """Fit an image into a white square of `side` pixels, centered, RGB.

    An image of at most half that size is enlarged by an integer factor with NEAREST, so that the pixels of a sprite
    stay sharp. Other images are resized with LANCZOS.
    """
    image = image.convert("RGB")
    factor = side // max(image.size)
    if factor >= 2:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        scale = side / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), _WHITE)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def labeled_grid(rows: Sequence[Row], headings: Sequence[str] = (), tile: int = TILE) -> Image.Image:
    """Draw rows of images with a label above each row and headings above the groups of the first row.

    Args:
        rows: at least one. All rows have the column widths of the widest.
        headings: one for each group, or none.
        tile: side of an image, pixels.

    Raises:
        ValueError: there are no rows, or none with images.
    """
    columns = [
        max((len(row.groups[g]) for row in rows if g < len(row.groups)), default=0) for g in range(_num_groups(rows))
    ]
    starts = [GAP + sum(columns[:g]) * (tile + GAP) + 3 * GAP * g for g in range(len(columns))]
    width = starts[-1] + columns[-1] * (tile + GAP)
    line = TEXT_SIZE + 2 * GAP
    top = line if headings else 0
    grid = Image.new("RGB", (width, top + len(rows) * (line + tile) + GAP), _WHITE)
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(TEXT_SIZE)
    for start, heading in zip(starts, headings, strict=bool(headings)):
        draw.text((start, GAP), heading, fill=_GRAY, font=font)
    for index, row in enumerate(rows):
        y = top + index * (line + tile)
        draw.text((GAP, y + GAP), _shorten(row.label, font, width - 2 * GAP), fill=_BLACK, font=font)
        for start, group in zip(starts, row.groups, strict=False):
            for column, image in enumerate(group):
                grid.paste(fit(image, tile), (start + column * (tile + GAP), y + line))
    return grid


def comparison_grid(
    comparisons: Sequence[Comparison], tile: int = TILE, max_images: int = 4, *, pairs: int = 1
) -> Image.Image:
    """One row per prompt: images before training on the left, those after training from the same noise next to them.

    Args:
        max_images: of the trained model in a row. Those without a counterpart from the same noise are on the right.
        pairs: maximum number of images with a counterpart in a row.
    """
    groups: list[tuple[tuple[Image.Image, ...], ...]] = []
    for comparison in comparisons:
        count = min(pairs, comparison.pairs)
        before, after = comparison.before[:count], comparison.after[:max_images]
        groups.append((before, after[:count], after[count:]))
    headings = ("Before", "After", "After, from other noise")
    if not any(more for _, _, more in groups):
        groups, headings = [group[:2] for group in groups], headings[:2]
    rows = [Row(c.prompt, group) for c, group in zip(comparisons, groups, strict=True)]
    return labeled_grid(rows, headings=headings, tile=tile)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Truncate `text` with an ellipsis so that it fits into `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _num_groups(rows: Sequence[Row]) -> int:
    count = max((len(row.groups) for row in rows), default=0)
    if count == 0:
        raise ValueError("a grid needs at least one row of images")
    return count
