"""Writes the progress of a run to a log, as lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.progress.console import PhaseProgress, Reporter, format_facts

PROGRESS_SECONDS = 60.0


@dataclass
class LogReporter:
    """Forwards progress to another reporter, and writes it to a log."""

    inner: Reporter
    write: Callable[[str], None]

    @contextlib.contextmanager
    def phase(self, name: TrainerPhase) -> Iterator[PhaseProgress]:
        self.write(f"{name} started")
        with self.inner.phase(name) as inner:
            progress = _LoggedProgress(inner, self.write, name)
            yield progress
        self.write(progress.line("completed"))

    def skipped(self, name: TrainerPhase) -> None:
        self.write(f"{name} already complete")
        self.inner.skipped(name)

    def finished(self, name: TrainerPhase, result: Mapping[str, JsonValue]) -> None:
        self.inner.finished(name, result)

    def note(self, text: str) -> None:
        self.write(text)
        self.inner.note(text)


@dataclass
class _LoggedProgress:
    inner: PhaseProgress
    write: Callable[[str], None]
    name: TrainerPhase
    start: float = field(default_factory=time.monotonic)
    written: float = field(default_factory=time.monotonic)
    count: int = 0
    of: int = 0
    facts: dict[str, float | int | str] = field(default_factory=dict)

    def line(self, state: str) -> str:
        """The progress so far, for example "Train running 120/800 in 63 s loss 0.12"."""
        total = f"/{self.of}" if self.of else ""
        seconds = time.monotonic() - self.start
        return f"{self.name} {state} {self.count}{total} in {seconds:.0f} s  {format_facts(self.facts)}".rstrip()

    def total(self, count: int) -> None:
        self.of = count
        self.inner.total(count)

    def done(self, count: int, **facts: float | int | str) -> None:
        self.count, self.facts = count, facts
        if time.monotonic() - self.written >= PROGRESS_SECONDS:
            self.written = time.monotonic()
            self.write(self.line("running"))
        self.inner.done(count, **facts)
