"""The conversion of a checkpoint to another world size, without DeepSpeed. Its result is tested in test_training.py."""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_trainer.training import checkpoint
from dreambooth_trainer.training.checkpoint import TAG, convert_to_universal, num_readers, scratch_folder
from dreambooth_trainer.training.only_weights import only_weights

GIB = 2**30


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint with two shards."""
    shards = tmp_path / "checkpoint" / TAG
    shards.mkdir(parents=True)
    for rank in range(2):
        (shards / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(bytes(1000))
    return shards.parent


class Converter:
    """Takes the place of DeepSpeed's command."""

    def __init__(self, error: str = "") -> None:
        self.commands: list[list[str]] = []
        self.error = error

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        output = Path(command[command.index("--output_folder") + 1])
        (output / "zero" / "weight").mkdir(parents=True)
        (output / "zero" / "weight" / "fp32.pt").write_text("weight")
        return subprocess.CompletedProcess(command, int(bool(self.error)), "", self.error)


class Planted:
    """An object whose pickle runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_with_code_is_not_loaded(tmp_path: Path) -> None:
    file, trace = tmp_path / "mp_rank_00_model_states.pt", tmp_path / "trace"
    torch.save({"module": Planted(trace)}, file)
    with only_weights(), pytest.raises(pickle.UnpicklingError, match="unsupported GLOBAL posix"):
        torch.load(file, weights_only=False)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists(), "outside of the block, as DeepSpeed would"


def test_a_checkpoint_with_code_is_not_converted(saved: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for rank in range(2):
        shard = saved / TAG / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": Planted(trace)}, shard)
    torch.save({"module": Planted(trace)}, saved / TAG / "mp_rank_00_model_states.pt")
    with pytest.raises(RuntimeError, match="another world size: a file contains objects that could run code"):
        convert_to_universal(saved)
    assert not trace.exists()


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_a_checkpoint_is_converted_once_with_all_cores_in_local_scratch(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, converter = tmp_path / "scratch", Converter()
    scratch.mkdir()
    monkeypatch.setattr(checkpoint.tempfile, "gettempdir", lambda: str(scratch))
    monkeypatch.setattr(checkpoint, "machine_cores", lambda: 8)
    monkeypatch.setattr(checkpoint.subprocess, "run", converter.run)
    for _ in range(2):
        convert_to_universal(saved)
    (command,) = converter.commands
    assert option(command, "--input_folder") == str(saved / TAG)
    assert Path(option(command, "--output_folder")).is_relative_to(scratch)
    assert option(command, "--num_extract_workers") == "2"
    assert option(command, "--num_merge_workers") == "8"
    assert (saved / "universal" / "zero" / "weight" / "fp32.pt").read_text() == "weight"
    assert (saved / "latest_universal").read_text() == "universal"
    assert list(scratch.iterdir()) == []


def test_a_failed_conversion_names_the_checkpoint_and_the_reason(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converter = Converter("Traceback (most recent call last):\nKeyError: 'step'\n")
    monkeypatch.setattr(checkpoint.subprocess, "run", converter.run)
    with pytest.raises(RuntimeError, match=r"the checkpoint .*/step cannot be converted .*: KeyError: 'step'$"):
        convert_to_universal(saved)
    assert not (saved / "latest_universal").exists()
    assert not (saved / "universal").exists()


@pytest.mark.parametrize(
    ("shards", "cores", "free", "readers"),
    [(8, 16, 100, 8), (8, 4, 100, 4), (8, 16, 5, 2), (1, 16, 0, 1)],
)
def test_shards_are_read_in_parallel_as_far_as_cores_and_memory_allow(
    shards: int, cores: int, free: int, readers: int
) -> None:
    assert num_readers([2 * GIB] * shards, cores, free * GIB) == readers


def test_a_full_scratch_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.tempfile, "gettempdir", lambda: str(tmp_path))
    assert scratch_folder(Path("/checkpoint"), 1000) == tmp_path
    assert scratch_folder(Path("/checkpoint"), 2**60) == Path("/checkpoint")
