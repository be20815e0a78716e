"""The preStop hook of a Ray pod: lets training save a checkpoint before the pod ends.

Kubernetes sends SIGTERM to the container's first process only, which is `ray start`; it would kill the workers at once.
Run as `python -m dreambooth_trainer.cluster.pre_stop`. Uses /proc, which every pod has, and no package.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Hashable
from pathlib import Path

from dreambooth_api.environment import OUT, SAVE_SECONDS

# Ray's process titles.
_WORKER = b"RayTrainWorker"
_CONTROLLER = b"TrainController"
_POLL_SECONDS = 0.5
_REPORT_SECONDS = 4  # the driver reports progress every two seconds


def main() -> None:
    """Ask the training workers of this pod to save and wait until they have ended.

    On the head pod, where Ray Train's controller runs, wait until it has registered a checkpoint, and the
    driver has reported it.
    """
    deadline = time.monotonic() + SAVE_SECONDS
    workers = find_processes(_WORKER)
    for process_id in workers:
        os.kill(process_id, signal.SIGTERM)
    if workers:
        wait_until(lambda: not find_processes(_WORKER), deadline)
    elif find_processes(_CONTROLLER):
        folder = Path(os.environ[OUT])
        before = registered(folder)
        wait_until(lambda: registered(folder) != before or not find_processes(_CONTROLLER), deadline)
        if registered(folder) != before:
            time.sleep(_REPORT_SECONDS)


def find_processes(title: bytes, proc: Path = Path("/proc")) -> list[int]:
    """Process IDs of the running Ray actors of a class."""
    found = []
    for path in proc.glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # the process has ended
            continue
        if command.startswith(b"ray::") and title in command:
            found.append(int(path.parent.name))
    return found


def registered(folder: Path) -> Hashable:
    """Changes when Ray Train registers a checkpoint of the job in `folder`."""
    snapshots = (folder / "work" / "checkpoints").glob("*/checkpoint_manager_snapshot.json")
    return frozenset((path, path.stat().st_mtime_ns) for path in snapshots)


def wait_until(condition: Callable[[], bool], deadline: float) -> None:
    """Poll a condition until it is true or the monotonic clock passes the deadline."""
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    main()
