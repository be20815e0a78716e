"""Processes that the kernel kills for lack of memory: one error with the remedy, and no retries."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_ray import FakeActor, FakeRay
from ray.exceptions import ActorDiedError, RayActorError, WorkerCrashedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from dreambooth_trainer.cluster import oom_kills as counter
from dreambooth_trainer.cluster import pool
from dreambooth_trainer.cluster.memory_errors import InsufficientMemoryError, out_of_memory
from dreambooth_trainer.cluster.oom_kills import oom_kills
from dreambooth_trainer.cluster.pool import MAX_RETRIES, WorkerPool

# Moves itself into a control group, and prints the count before and after the kernel has killed a child.
VICTIM = """
import os, pathlib, subprocess, sys
from dreambooth_trainer.cluster.oom_kills import oom_kills
pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
before = oom_kills()
child = subprocess.run([sys.executable, "-c", "bytearray(2**30)"])
print(child.returncode, oom_kills() - before)
"""


@pytest.fixture
def limited_cgroup() -> Iterator[Path]:
    """A control group with 128 MiB of memory."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root, f"dreambooth-test-{os.getpid()}")
        try:
            group.mkdir()
            (group / limit).write_text(str(2**27))
        except OSError:
            if group.exists():
                group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("requires root to create a control group")


def test_the_kernel_counts_the_processes_of_a_container_that_it_killed(limited_cgroup: Path) -> None:
    command = [sys.executable, "-c", VICTIM, str(limited_cgroup)]
    assert subprocess.check_output(command, text=True).split() == ["-9", "1"]


@pytest.mark.parametrize(
    ("own", "files", "count"),
    [
        ("0::/\n", {"cgroup/memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 1\n"}, 2),
        ("0::/a/b\n", {"cgroup/a/b/memory.events": "oom_kill 4\n"}, 4),
        ("0::/outside/of/the/container\n", {"cgroup/memory.events": "oom_kill 5\n"}, 5),
        ("4:memory:/a\n0::/\n", {"cgroup/memory/a/memory.oom_control": "under_oom 0\noom_kill 6\n"}, 6),
        ("4:memory:/x\n0::/\n", {"cgroup/memory/memory.oom_control": "oom_kill 7\n"}, 7),
        ("0::/\n", {"vmstat": "nr_free_pages 1\noom_kill 8\n"}, 8),
        ("0::/\n", {}, 0),
    ],
    ids=["v2", "v2 session", "v2 without namespace", "v1", "v1 container", "machine", "unknown"],
)
def test_the_count_is_of_the_own_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], count: int
) -> None:
    for name, text in {"own": own, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(counter, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(counter, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(counter, "MACHINE", tmp_path / "vmstat")
    assert oom_kills() == count


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The kernel's count, in `number`."""
    kills = SimpleNamespace(number=3)
    for module in ("cluster.pool", "cluster.memory_errors", "training.worker_group"):
        monkeypatch.setattr(f"dreambooth_trainer.{module}.oom_kills", lambda: kills.number)
    return kills


@pytest.mark.parametrize("killed", [True, False])
def test_a_pool_does_not_replace_a_worker_that_the_kernel_killed(
    monkeypatch: pytest.MonkeyPatch, kills: SimpleNamespace, killed: bool
) -> None:
    fake = FakeRay(CPU=2)
    monkeypatch.setattr(pool, "ray", fake)

    def die(actor: FakeActor) -> Any:
        kills.number += killed
        actor.die()

    with pytest.raises(InsufficientMemoryError if killed else RayActorError) as caught:
        WorkerPool(1).call(die)
    assert len(fake.actors) == (1 if killed else MAX_RETRIES + 1)
    if killed:
        assert "the kernel killed a process during image generation, encoding or scoring" in str(caught.value)
        assert "spec.cluster.resources.memory" in str(caught.value)


@pytest.mark.parametrize(
    "lost", [ActorDiedError(), WorkerCrashedError(), RayActorError()], ids=lambda e: type(e).__name__
)
def test_ray_train_does_not_restart_workers_that_the_kernel_killed(kills: SimpleNamespace, lost: Exception) -> None:
    from dreambooth_trainer.training.worker_group import WorkerGroupCleanup

    reported: list[Any] = []
    callback = WorkerGroupCleanup(reported.append)
    status: Any = SimpleNamespace(errors={0: WorkerHealthCheckFailedError("A worker died.", lost)})
    callback.after_worker_group_poll_status(status)
    assert reported == []
    kills.number += 1
    callback.after_worker_group_poll_status(status)
    (fatal,) = reported
    assert "the kernel killed a process during training" in fatal.message
    assert isinstance(fatal.error, InsufficientMemoryError)


def test_an_error_of_a_worker_that_is_alive_is_not_a_kill(kills: SimpleNamespace) -> None:
    assert out_of_memory(RuntimeError("x"), "training", kills_before=kills.number - 1) is None


@pytest.mark.parametrize(
    ("activity", "settings"), [("training", "training.gradientCheckpointing"), ("scoring", "training.resolution")]
)
def test_the_remedy_for_a_gpu_names_settings_of_the_activity(activity: str, settings: str) -> None:
    import torch

    message = str(out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), activity))
    assert settings in message
    assert ("globalBatchSize" in message) == (activity == "training")
    assert "use GPUs with more memory" in message
    assert "spec.cluster.resources.memory" not in message
