"""Console progress of a run: progress bars on a terminal, otherwise one line per phase."""

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

from dreambooth_api.status import TrainerPhase, printable


class PhaseProgress(Protocol):
    """Progress of a running phase, in units that depend on the phase: images, optimizer steps, files."""

    def total(self, count: int) -> None:
        """Set the total number of units."""
        ...

    def done(self, count: int, **facts: float | int | str) -> None:
        """Set the number of completed units, and values to show, for example loss=0.12."""
        ...


class Reporter(Protocol):
    """Receives the progress of a run."""

    def phase(self, name: TrainerPhase) -> contextlib.AbstractContextManager[PhaseProgress]:
        """Report a phase as running until the block ends."""
        ...

    def skipped(self, name: TrainerPhase) -> None:
        """Report a phase that an earlier run has completed."""
        ...

    def finished(self, name: TrainerPhase, result: Mapping[str, JsonValue]) -> None:
        """Report the result of a phase. It is also called for skipped phases."""
        ...

    def note(self, text: str) -> None:
        """Show a message to the user."""
        ...


def choose_reporter(console: Console) -> Reporter:
    """A `BarReporter` on a terminal, otherwise a `LineReporter`."""
    return BarReporter(console) if console.is_terminal else LineReporter(console)


def format_facts(facts: dict[str, float | int | str]) -> str:
    """Facts about a phase on one line, for example "loss 0.12 world size 2"."""
    return " ".join(
        f"{name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in facts.items()
    )


@dataclass
class BarReporter:
    """Shows one progress bar per phase, with the estimated remaining time."""

    console: Console

    @contextlib.contextmanager
    def phase(self, name: TrainerPhase) -> Iterator[PhaseProgress]:
        columns = (
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("remaining"),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[facts]}"),
        )
        with Progress(*columns, console=self.console) as bars:
            task = bars.add_task(name, total=None, facts="")
            yield _Bar(bars, task)
            bars.update(
                task, total=max(1, int(bars.tasks[0].completed)), completed=max(1, int(bars.tasks[0].completed))
            )

    def skipped(self, name: TrainerPhase) -> None:
        self.console.print(f"[green]✓[/] {name:<11} [dim]already complete")

    def finished(self, name: TrainerPhase, result: Mapping[str, JsonValue]) -> None:
        del name, result

    def note(self, text: str) -> None:
        self.console.print(printable(text), highlight=False, markup=False)


@dataclass
class _Bar:
    bars: Progress
    task: TaskID

    def total(self, count: int) -> None:
        self.bars.update(self.task, total=count)

    def done(self, count: int, **facts: float | int | str) -> None:
        self.bars.update(self.task, completed=count, facts=format_facts(facts))


@dataclass
class LineReporter:
    """Prints one line per phase when it ends."""

    console: Console

    @contextlib.contextmanager
    def phase(self, name: TrainerPhase) -> Iterator[PhaseProgress]:
        start, line = time.monotonic(), _Line()
        yield line
        count = f"{line.count} " if line.count else ""
        text = f"{name:<11} {count}in {time.monotonic() - start:.1f} s  {format_facts(line.facts)}".rstrip()
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def skipped(self, name: TrainerPhase) -> None:
        self.console.print(f"{name:<11} already complete", highlight=False, markup=False)

    def finished(self, name: TrainerPhase, result: Mapping[str, JsonValue]) -> None:
        del name, result

    def note(self, text: str) -> None:
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)


@dataclass
class _Line:
    count: int = 0
    facts: dict[str, float | int | str] = field(default_factory=dict)

    def total(self, count: int) -> None:
        del count

    def done(self, count: int, **facts: float | int | str) -> None:
        self.count, self.facts = count, facts
