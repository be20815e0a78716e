"""SIGTERM of a run."""

from __future__ import annotations

import signal

import pytest

from dreambooth_trainer.cluster import interrupts

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
