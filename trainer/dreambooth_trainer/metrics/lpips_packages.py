"""Whether a job computes LPIPS, without importing the packages that it needs."""

from __future__ import annotations

import importlib.util

from dreambooth_api.uris import BUILTIN_SPRITES

PACKAGES = ("torchmetrics", "torchvision")  # the extra `lpips`


def wants_lpips(dino: str) -> bool:
    """Whether DIV should be computed. LPIPS was trained on photos; with the encoder for sprites it is not loaded."""
    return dino != BUILTIN_SPRITES


def missing_packages() -> list[str]:
    """Packages of LPIPS that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]
