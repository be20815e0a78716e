"""LPIPS (Zhang et al. 2018) with AlexNet, the distance of the paper's DIV: from torchmetrics, the extra `lpips`."""

from __future__ import annotations

import contextlib
import pickle
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreambooth_trainer.metrics import fidelity
from dreambooth_trainer.metrics.lpips_packages import missing_packages

DOWNLOAD_TIMEOUT_SECONDS = 10.0


class LpipsUnavailableError(Exception):
    """A package or the weights are missing."""


class Lpips:
    """LPIPS distances of images."""

    name = "AlexNet"

    def __init__(self, metric: Any, device: str) -> None:
        self._metric, self._device = metric, device

    def mean_distance(self, images: Sequence[Image.Image]) -> float | None:
        """Mean over all pairs of images of one size; None for fewer than two."""
        pixels_K3HW = torch.stack([_pixels(image) for image in images])
        return fidelity.diversity([pixels_K3HW], self._distance)

    def _distance(self, first_P3HW: Tensor, second_P3HW: Tensor) -> Tensor:
        with torch.no_grad():
            distances = self._metric(first_P3HW.to(self._device), second_P3HW.to(self._device))
        return distances.reshape(-1).cpu()


def load(device: str) -> Lpips:
    """Load LPIPS; downloads the weights of AlexNet (233 MB) to torch's cache if they are not there.

    Raises:
        LpipsUnavailableError: a package is not installed, or the weights cannot be had.
    """
    if missing := missing_packages():
        verb = "are" if len(missing) > 1 else "is"
        raise LpipsUnavailableError(
            f"{' and '.join(missing)} {verb} not installed; pip install 'dreambooth-operator[lpips]'"
        )
    _check_weights()
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity  # pyright: ignore[reportMissingImports]

    metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", reduction="none", normalize=True)
    return Lpips(metric.to(device).eval(), device)


def _check_weights() -> None:
    """Download the weights if needed, and check that they contain no code: torchmetrics reads them as a pickle."""
    from huggingface_hub import constants
    from torchvision.models import AlexNet_Weights  # pyright: ignore[reportMissingImports]

    weights = AlexNet_Weights.DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
    if not file.exists() and constants.is_offline_mode():
        raise LpipsUnavailableError(f"{file} does not exist, and HF_HUB_OFFLINE is set")
    try:
        with _timeout(DOWNLOAD_TIMEOUT_SECONDS):
            weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LpipsUnavailableError(f"{weights.url} cannot be loaded ({reason}); save it as {file}") from error


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    # torch.hub has no timeout of its own: where packets are dropped, it would wait for minutes.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _pixels(image: Image.Image) -> Tensor:
    """RGB in 0..1, [3, H, W]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
