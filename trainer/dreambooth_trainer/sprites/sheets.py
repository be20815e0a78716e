"""Contact sheets: sprites in a grid, upscaled without smoothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def contact_sheet(sprites: Sequence[NDArray[np.uint8]], columns: int, path: Path, zoom: int = 4, gap: int = 2) -> None:
    """Write sprites (uint8 [32, 32, 3] each), row by row, to a PNG file."""
    side = sprites[0].shape[0] * zoom
    rows = -(-len(sprites) // columns)
    sheet = Image.new("RGB", (columns * (side + gap), rows * (side + gap)), (255, 255, 255))
    for index, sprite in enumerate(sprites):
        row, column = divmod(index, columns)
        tile = Image.fromarray(sprite).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(tile, (column * (side + gap), row * (side + gap)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
