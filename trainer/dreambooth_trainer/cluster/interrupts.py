"""SIGTERM interrupts a run as Ctrl-C does. The same command continues the run."""

from __future__ import annotations

import signal
import threading

_received = threading.Event()


def handle_sigterm() -> None:
    """Raise KeyboardInterrupt in the main thread on SIGTERM."""
    _received.clear()
    signal.signal(signal.SIGTERM, _interrupt)


def interrupt() -> None:
    """Interrupt jobs that run in other threads: they check it."""
    _received.set()


def check_interrupted() -> None:
    """Raise KeyboardInterrupt if SIGTERM was received, or after `interrupt`.

    Python drops what a signal handler raises inside of a destructor or of a callback of a library. Other threads than
    the main one are not interrupted by signals.
    """
    if _received.is_set():
        raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    _received.set()
    raise KeyboardInterrupt
