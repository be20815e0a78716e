"""Saves checkpoints of a training run to where Ray Train keeps them."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch

from dreambooth_trainer.cluster.hardware import free_memory, machine_memory
from dreambooth_trainer.store.candidates import Candidates
from dreambooth_trainer.store.folder import atomic_directory
from dreambooth_trainer.training.checkpoint import CheckpointMetadata, write_metadata
from dreambooth_trainer.training.engine import Engine
from dreambooth_trainer.training.messages import RECORDS_FILE, ReportCallback, StepRecord
from dreambooth_trainer.training.snapshot import fits_in_memory, snapshot_bytes, write_snapshot
from dreambooth_trainer.training.worker import report_fatal_error

ASYNC, SYNC = ray.train.CheckpointUploadMode.ASYNC, ray.train.CheckpointUploadMode.SYNC


@dataclass
class CheckpointSaver:
    """Saves the checkpoints of one worker. Ray Train commits a checkpoint once all workers have saved their parts.

    Attributes:
        report: called with a fatal error, for example if the disk is full.
    """

    engine: Engine
    rank: int
    report: ReportCallback
    _written: threading.Event = field(default_factory=threading.Event)
    _error: Exception | None = None

    def __post_init__(self) -> None:
        self._written.set()

    def save(self, metadata: CheckpointMetadata, records: list[StepRecord]) -> None:
        """Save in the background if host memory suffices for a copy of the state, which training changes meanwhile."""
        self._written.wait()  # one copy at a time
        # DeepSpeed synchronizes the workers while it saves: all of them must do the same.
        (too_large,) = any_rank((not self._fits_in_memory(metadata.world_size),), self.engine.device)
        if too_large:
            self.save_now(metadata, records)
            return
        snapshot = self.engine.snapshot()
        self._written.clear()
        self._report(lambda folder: write_snapshot(snapshot, folder), metadata, records, ASYNC)

    def save_now(self, metadata: CheckpointMetadata, records: list[StepRecord]) -> None:
        """Save and wait until the checkpoint is written."""
        self._report(self.engine.save, metadata, records, SYNC)

    def save_weights(self, metadata: CheckpointMetadata, records: list[StepRecord]) -> None:
        """Save the trained weights only, after the last step, and wait until they are written.

        Training does not continue from such a checkpoint.
        """
        self._report(lambda folder: self.engine.save_weights(folder, self.rank), metadata, records, SYNC)

    def _fits_in_memory(self, world_size: int) -> bool:
        processes = ray.train.get_context().get_local_world_size()
        size = processes * snapshot_bytes(self.engine.module, world_size)
        return fits_in_memory(size, free_memory(), machine_memory())

    def _report(
        self,
        write: Callable[[Path], None],
        metadata: CheckpointMetadata,
        records: list[StepRecord],
        mode: ray.train.CheckpointUploadMode,
    ) -> None:
        if self._error is not None:
            raise self._error
        storage: Any = ray.train.get_context().get_storage()
        lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)

        def upload(unused: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            del unused
            folder = Path(storage.build_checkpoint_path_from_name(name))
            try:
                with _os_errors(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    write(folder)
                    if self.rank == 0:
                        write_metadata(folder, metadata)
                        (folder / RECORDS_FILE).write_text(lines)
            except Exception as error:  # in the background, no other code of ours sees it
                self._error = error
                report_fatal_error(self.report, error)
                raise
            finally:
                self._written.set()
            return ray.train.Checkpoint(str(folder), storage.storage_filesystem)

        # Ray agrees on the name with all workers; without an upload function it would copy the files once more.
        ray.train.report(
            {"step": metadata.step},
            checkpoint=ray.train.Checkpoint(storage.experiment_fs_path, storage.storage_filesystem),
            checkpoint_upload_mode=mode,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=False,
        )


def save_candidate(
    engine: Engine, candidates: Candidates, step: int, rank: int, agree: Callable[[tuple[bool, ...]], list[bool]]
) -> None:
    """Save the weights of a validated step, unless they exist. All ranks must call this after the same step.

    A run that continues may repeat a step with slightly different weights. Those that exist belong to its images.

    Args:
        agree: `any_rank` of this worker's device.
    """
    wanted = rank == 0 and not candidates.has(step) and not candidates.given_up()
    if not agree((wanted,))[0]:
        return
    if rank != 0:
        engine.save_weights(candidates.root, rank)  # takes part, and writes nothing
        return
    candidates.root.mkdir(parents=True, exist_ok=True)
    with _os_errors(candidates.root), atomic_directory(candidates.folder(step)) as draft:
        engine.save_weights(draft, rank)


def any_rank(flags: tuple[bool, ...], device: torch.device) -> list[bool]:
    """Each flag, true if it is true on any rank."""
    if ray.train.get_context().get_world_size() == 1:
        return list(flags)
    reduced = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(reduced, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in reduced.tolist()]


@contextlib.contextmanager
def _os_errors(folder: Path) -> Iterator[None]:
    """Raise the operating system's error, such as a full disk, where torch or safetensors hide its number."""
    try:
        yield
    except OSError:
        raise
    except Exception:
        probe = folder / f"probe-{os.getpid()}"
        try:
            probe.write_bytes(bytes(2**20))
        finally:
            probe.unlink(missing_ok=True)
        raise
