"""How a run tells people where it is: bars on a terminal, a line a phase elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class PhaseProgress(Protocol):
    """One phase under way."""

    def total(self, count: int) -> None:
        """How many there are to do."""
        ...

    def done(self, count: int, **facts: float | int | str) -> None:
        """How many are done by now, with what else is worth telling (loss=0.12)."""
        ...


class Reporter(Protocol):
    """Where progress goes."""

    def phase(self, name: str) -> contextlib.AbstractContextManager[PhaseProgress]:
        """Announce a phase for the time of a with block."""
        ...

    def skipped(self, name: str) -> None:
        """A phase that had been done before."""
        ...

    def finished(self, name: str, result: Mapping[str, JsonValue]) -> None:
        """What a phase brought, whether just now or before."""
        ...

    def note(self, text: str) -> None:
        """A sentence for the user."""
        ...


def choose_reporter(console: Console) -> Reporter:
    """Bars where a person watches, lines where a file or a log does."""
    return BarReporter(console) if console.is_terminal else LineReporter(console)


def _shown(facts: dict[str, float | int | str]) -> str:
    return " ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())


@dataclass
class BarReporter:
    """A bar a phase, with rate and time left."""

    console: Console

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[PhaseProgress]:
        columns = (
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[facts]}"),
        )
        with Progress(*columns, console=self.console) as bars:
            task = bars.add_task(name, total=None, facts="")
            yield _Bar(bars, task)
            bars.update(
                task, total=max(1, int(bars.tasks[0].completed)), completed=max(1, int(bars.tasks[0].completed))
            )

    def skipped(self, name: str) -> None:
        self.console.print(f"[green]✓[/] {name:<9} [dim]done before")

    def finished(self, name: str, result: Mapping[str, JsonValue]) -> None:
        del name, result

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)


@dataclass
class _Bar:
    bars: Progress
    task: TaskID

    def total(self, count: int) -> None:
        self.bars.update(self.task, total=count)

    def done(self, count: int, **facts: float | int | str) -> None:
        self.bars.update(self.task, completed=count, facts=_shown(facts))


@dataclass
class LineReporter:
    """One line a phase, when it ends."""

    console: Console

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[PhaseProgress]:
        start, line = time.monotonic(), _Line()
        yield line
        count = f"{line.count} " if line.count else ""
        text = f"{name:<9} {count}in {time.monotonic() - start:.1f} s  {_shown(line.facts)}".rstrip()
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def skipped(self, name: str) -> None:
        self.console.print(f"{name:<9} done before", highlight=False, markup=False)

    def finished(self, name: str, result: Mapping[str, JsonValue]) -> None:
        del name, result

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@dataclass
class _Line:
    count: int = 0
    facts: dict[str, float | int | str] = field(default_factory=dict)

    def total(self, count: int) -> None:
        del count

    def done(self, count: int, **facts: float | int | str) -> None:
        self.count, self.facts = count, facts
