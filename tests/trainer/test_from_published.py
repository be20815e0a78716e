"""The number format in which a published model is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dreambooth_trainer.sampling import pipeline as sampling


class FakePipeline:
    scheduler = None

    def to(self, device: str) -> None:
        pass

    def set_progress_bar_config(self, *, disable: bool) -> None:
        pass


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda", torch.bfloat16), ("cuda:1", torch.bfloat16), ("cpu", torch.float32)]
)
def test_all_names_of_a_gpu_select_its_number_format(
    device: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    used: list[torch.dtype] = []

    def load(_: Path, dtype: torch.dtype) -> Any:
        used.append(dtype)
        return FakePipeline()

    monkeypatch.setattr(sampling, "open_family", lambda _: SimpleNamespace(pipeline=load))
    sampling.load_pipeline(tmp_path, "bf16", device)
    assert used == [expected]
