"""SIGTERM of a run."""

from __future__ import annotations

import signal
import threading
from unittest.mock import Mock

import pytest
from fake_ray import FakeRay

from dreambooth_trainer.cluster import interrupts, pool
from dreambooth_trainer.phases import train

pytestmark = pytest.mark.usefixtures("sigterm_handler")


class Deleted:
    """An object in whose destructor SIGTERM arrives."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_sigterm_is_an_interrupt() -> None:
    interrupts.check_interrupted()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_sigterm_whose_exception_python_drops_is_not_lost() -> None:
    Deleted()  # Python ignores exceptions of destructors
    with pytest.raises(KeyboardInterrupt):
        interrupts.check_interrupted()


def test_jobs_in_other_threads_are_interrupted() -> None:
    interrupts.interrupt()
    with pytest.raises(KeyboardInterrupt):
        interrupts.check_interrupted()


def test_a_phase_that_waits_for_calls_of_workers_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ray", FakeRay(CPU=2))
    interrupts.interrupt()
    with pytest.raises(KeyboardInterrupt):
        pool.WorkerPool(1).call(lambda actor: actor)


def test_a_phase_that_waits_for_a_training_is_interrupted() -> None:
    end, trainer = threading.Event(), Mock()
    trainer.fit = end.wait
    interrupts.interrupt()
    with pytest.raises(KeyboardInterrupt):
        train._fit(trainer, Mock(), Mock(), Mock())
    end.set()
