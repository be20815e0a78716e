"""LPIPS: loaded where packages and weights are available, and otherwise reported before training."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreambooth_trainer.metrics import encoder_files, encoders, lpips
from dreambooth_trainer.metrics.lpips import LpipsUnavailableError
from dreambooth_trainer.metrics.lpips_packages import missing_packages, wants_lpips
from dreambooth_trainer.phases import evaluate
from dreambooth_trainer.planning.plan import Plan

IMAGES = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue")]
needs_packages = pytest.mark.skipif(bool(missing_packages()), reason="needs the extra lpips")


def test_distances_are_means_over_pairs_in_batches() -> None:
    sizes: list[int] = []

    def metric(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        sizes.append(len(first))
        assert first.min() >= 0
        assert first.max() <= 1
        return (first - second).abs().mean(dim=(1, 2, 3)).squeeze()  # torchmetrics squeezes as well

    network = lpips.Lpips(metric, "cpu")
    assert network.mean_distance(IMAGES[:1]) is None
    grey = [Image.new("L", (2, 2), level) for level in (0, 51, 255)]
    assert network.mean_distance(grey) == pytest.approx((0.2 + 1 + 0.8) / 3)
    network.mean_distance([IMAGES[0]] * 9)
    assert sizes == [3, 32, 4]


def test_sprites_are_scored_without_lpips() -> None:
    assert wants_lpips("facebook/dino-vits16")
    assert not wants_lpips("builtin:sprites")
    loaded = encoders.load_encoders("builtin:sprites", "builtin:sprites")
    assert (loaded.lpips, loaded.without_lpips) == (None, "")


def test_missing_packages_are_reported_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips, "missing_packages", lambda: ["torchmetrics", "torchvision"])
    assert encoders.load_lpips("cpu") == (
        None,
        "DIV is not computed: torchmetrics and torchvision are not installed; pip install 'dreambooth-operator[lpips]'",
    )


def test_the_note_is_returned_before_the_first_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: Any = type("Loaded", (), {"without_lpips": "DIV is not computed: no network"})
    monkeypatch.setattr(encoders, "load_encoders", lambda dino, clip, commits: loaded)
    monkeypatch.setattr(encoder_files, "pinned_commits", lambda dino, clip: {})
    plan = Plan.model_construct(dino="facebook/dino-vits16", clip="c", job=enabled_job())
    assert evaluate.check_encoders(plan)[1] == "DIV is not computed: no network"


def enabled_job() -> Any:
    from test_plan import job_of

    return job_of({})


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of torch's weights, empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@needs_packages
def test_weights_that_cannot_be_downloaded_are_reported(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(LpipsUnavailableError, match=r"cannot be loaded \(no route to host\); save it as .*alexnet"):
        lpips.load("cpu")


@needs_packages
def test_offline_mode_downloads_nothing(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("downloaded"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LpipsUnavailableError, match="HF_HUB_OFFLINE is set"):
        lpips.load("cpu")


@needs_packages
def test_cached_weights_are_used_and_code_in_them_is_not_run(torch_home: Path) -> None:
    from torchvision.models import AlexNet_Weights, alexnet

    file = torch_home / AlexNet_Weights.DEFAULT.url.rsplit("/", 1)[1]
    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), file)
    network = lpips.load("cpu")
    same, other = (network.mean_distance(images) for images in ([IMAGES[0]] * 2, IMAGES))
    assert same == pytest.approx(0, abs=1e-6)
    assert other is not None
    assert other > 0.001

    class Touch:
        def __reduce__(self) -> tuple[Any, tuple[Path]]:
            return Path.touch, (torch_home / "touched",)

    file.write_bytes(pickle.dumps(Touch()))
    with pytest.raises(LpipsUnavailableError):
        lpips.load("cpu")
    assert not (torch_home / "touched").exists()
