"""A client whose jobs are run by a fake, in real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth import Client, process
from dreambooth_trainer.store.file_lock import holder

FAKE = Path(__file__).parent / "dreambooth_fake.py"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(process, "COMMAND", (sys.executable, str(FAKE)))
    monkeypatch.setattr("dreambooth.waiting.POLL_SECONDS", 0.05)
    yield Client(folder=tmp_path)
    for lock in tmp_path.glob("*/work/lock"):
        if running := holder(lock):
            with contextlib.suppress(ProcessLookupError):
                os.kill(running, signal.SIGKILL)
