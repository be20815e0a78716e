"""Progress of the jobs of a benchmark. On a terminal, jobs that run at the same time have a bar each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dreambooth_api.status import TrainerPhase, printable
from dreambooth_trainer.progress.console import PhaseProgress, Reporter, choose_reporter, format_facts

ReporterOf = Callable[[str], contextlib.AbstractContextManager[Reporter]]
"""The reporter of the job with a title, until the block ends."""


@contextlib.contextmanager
def job_reporters(console: Console, parallel: int) -> Iterator[ReporterOf]:
    """Reporters of jobs, `parallel` of which run at the same time."""
    if parallel == 1:
        reporter = choose_reporter(console)

        @contextlib.contextmanager
        def in_turn(title: str) -> Iterator[Reporter]:
            reporter.note(f"\n{title}")
            yield reporter

        yield in_turn
        return
    columns = (
        TextColumn("{task.description}"),
        TextColumn("{task.fields[phase]:<11}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[facts]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        @contextlib.contextmanager
        def with_bar(title: str) -> Iterator[Reporter]:
            task = bars.add_task(escape(printable(title)), total=None, phase="", facts="")
            reporter = _JobReporter(bars, task, title)
            try:
                yield reporter
            except Exception as error:
                reporter.note(f"failed: {error}")  # the command shows the first error of all jobs only
                raise
            finally:
                bars.remove_task(task)

        yield with_bar


@dataclass
class _JobReporter:
    """A bar with the phase that runs. Messages have the title of the job."""

    bars: Progress
    task: TaskID
    title: str

    @contextlib.contextmanager
    def phase(self, name: TrainerPhase) -> Iterator[PhaseProgress]:
        self.bars.reset(self.task, total=None, phase=name, facts="")
        yield self

    def total(self, count: int) -> None:
        self.bars.update(self.task, total=count)

    def done(self, count: int, **facts: float | int | str) -> None:
        self.bars.update(self.task, completed=count, facts=format_facts(facts))

    def skipped(self, name: TrainerPhase) -> None:
        """Nothing: the next phase follows at once."""

    def finished(self, name: TrainerPhase, result: Mapping[str, JsonValue]) -> None:
        """Nothing: the results are in the table."""

    def note(self, text: str) -> None:
        message = printable(f"{self.title}: {text.strip()}")
        self.bars.console.print(message, highlight=False, markup=False, soft_wrap=True)
