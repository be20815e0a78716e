"""Checkpoints are written while training continues. Without Ray and DeepSpeed; test_stopping.py is with them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray.train
import torch

from dreambooth_trainer.training import saving
from dreambooth_trainer.training.checkpoint import METADATA_FILE, CheckpointMetadata
from dreambooth_trainer.training.messages import FatalWorkerError, StepRecord, read_records
from dreambooth_trainer.training.saving import CheckpointSaver
from dreambooth_trainer.training.snapshot import copy_to_host, fits_in_memory, snapshot_bytes

GIB = 2**30
FILE = "step/state.pt"
SECONDS = 20  # until a test fails


class Run:
    """Takes the place of Ray Train and of an engine, whose state is one weight.

    Attributes:
        gate: closed while the storage is slow.
        saved: folders of the checkpoints, in the order in which they were written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.gate = folder, threading.Event()
        self.weight = torch.zeros(2)
        self.module, self.device = torch.nn.Linear(1, 1), torch.device("cpu")
        self.saved: list[Path] = []
        self.errors: list[Any] = []
        self.modes: list[object] = []
        self.threads: list[threading.Thread] = []

    def get_storage(self) -> Any:
        return SimpleNamespace(
            build_checkpoint_path_from_name=lambda name: str(self.folder / name),
            experiment_fs_path=str(self.folder),
            storage_filesystem=None,
        )

    def get_world_size(self) -> int:
        return 1

    get_local_world_size = get_world_size

    def save(self, folder: Path) -> None:
        (folder / "step").mkdir()
        torch.save(self.weight, folder / FILE)

    def snapshot(self) -> dict[str, Any]:
        return {FILE: copy_to_host(self.weight)}

    def save_weights(self, folder: Path, rank: int) -> None:
        torch.save(self.weight, folder / f"weights-{rank}")

    def report(
        self, metrics: dict[str, Any], *, checkpoint_upload_mode: Any, checkpoint_upload_fn: Any, **_: Any
    ) -> None:
        self.modes.append(checkpoint_upload_mode)

        def upload() -> None:
            if checkpoint_upload_mode is saving.ASYNC:
                assert self.gate.wait(SECONDS)
            checkpoint = checkpoint_upload_fn(None, f"checkpoint_{metrics['step']}")
            self.saved.append(Path(checkpoint.path))

        if checkpoint_upload_mode is saving.SYNC:
            upload()
            return
        self.threads.append(threading.Thread(target=upload))
        self.threads[-1].start()

    def finish(self) -> None:
        self.gate.set()
        for thread in self.threads:
            thread.join(SECONDS)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    run = Run(tmp_path)
    monkeypatch.setattr(ray.train, "get_context", lambda: run)
    monkeypatch.setattr(ray.train, "report", run.report)
    monkeypatch.setattr(ray.train, "Checkpoint", lambda path, _: SimpleNamespace(path=path))
    monkeypatch.setattr(saving, "free_memory", lambda: 50 * GIB)
    monkeypatch.setattr(saving, "machine_memory", lambda: 100 * GIB)
    return run


def saver(run: Run) -> CheckpointSaver:
    return CheckpointSaver(cast("Any", run), rank=0, report=run.errors.append)


def metadata(step: int) -> CheckpointMetadata:
    return CheckpointMetadata(step, world_size=1, zero_stage=1, precision="fp32")


def records(step: int) -> list[StepRecord]:
    return [StepRecord(n + 1, 1.0, 1.0, None, 1e-4, 1) for n in range(step)]


def test_steps_go_on_while_a_checkpoint_is_written_to_slow_storage(run: Run) -> None:
    checkpoints, log = saver(run), records(2)
    checkpoints.save(metadata(2), log)
    assert run.saved == []
    run.weight += 1  # the next step
    log.append(records(3)[-1])
    run.finish()
    (folder,) = run.saved
    assert torch.load(folder / FILE).tolist() == [0, 0]
    assert [record.step for record in read_records(folder)] == [1, 2]


def test_only_one_copy_of_the_state_is_kept(run: Run) -> None:
    checkpoints = saver(run)
    checkpoints.save(metadata(1), records(1))
    second = threading.Thread(target=checkpoints.save, args=(metadata(2), records(2)))
    second.start()
    second.join(0.5)
    assert second.is_alive()
    run.gate.set()
    second.join(SECONDS)
    run.finish()
    assert [folder.name for folder in run.saved] == ["checkpoint_1", "checkpoint_2"]


def test_a_state_that_does_not_fit_into_memory_twice_is_written_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "free_memory", lambda: 15 * GIB)
    saver(run).save(metadata(1), records(1))
    assert run.modes == [saving.SYNC]
    assert torch.load(run.saved[0] / FILE).tolist() == [0, 0]


@pytest.mark.parametrize("save", [CheckpointSaver.save_now, CheckpointSaver.save_weights])
def test_the_last_checkpoint_and_that_of_a_stopped_worker_are_written_at_once(
    run: Run, save: Callable[..., None]
) -> None:
    save(saver(run), metadata(1), records(1))
    assert run.modes == [saving.SYNC]
    assert (run.saved[0] / METADATA_FILE).exists()


def test_an_error_in_the_background_is_reported_and_no_other_checkpoint_is_begun(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_snapshot", fail)
    monkeypatch.setattr(ray, "get", lambda sent: sent)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # Ray raises the error in the training loop
    checkpoints = saver(run)
    checkpoints.save(metadata(1), records(1))
    run.finish()
    assert run.errors == [
        FatalWorkerError("training cannot continue: No space left on device ([Errno 28] No space left on device)")
    ]
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(metadata(2), records(2))
    assert [folder.name for folder in run.folder.iterdir()] == ["checkpoint_1"]


@pytest.mark.parametrize(("need", "free", "fits"), [(30, 50, True), (36, 50, False), (1, 15, False)])
def test_a_copy_leaves_memory_free(need: int, free: int, fits: bool) -> None:
    assert fits_in_memory(need * GIB, free * GIB, 100 * GIB) is fits


def test_a_copy_contains_the_optimizer_share_of_a_process_and_the_weights() -> None:
    module = torch.nn.Linear(10, 10, bias=False)
    module.register_parameter("frozen", torch.nn.Parameter(torch.zeros(1000), requires_grad=False))
    assert snapshot_bytes(module, 1) == 1600
    assert snapshot_bytes(module, 4) == 700


def test_a_copy_shares_nothing_and_keeps_types() -> None:
    weight = torch.zeros(2)
    state = OrderedDict(a=[weight, {"b": (weight, 1)}], shape=weight.shape, scale=SimpleNamespace(value=1))
    copied = copy_to_host(state)
    weight += 1
    state["scale"].value = 2
    assert type(copied) is OrderedDict
    assert copied["a"][0].tolist() == copied["a"][1]["b"][0].tolist() == [0, 0]
    assert copied["shape"] == torch.Size([2])
    assert copied["scale"].value == 1
