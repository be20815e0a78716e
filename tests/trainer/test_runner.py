"""The order in which a run does its phases, and what it does between them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from inline_pool import InlinePool
from PIL import Image
from rich.console import Console
from test_plan import make_plan

from dreambooth_api.status import TrainerPhase
from dreambooth_trainer import runner
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.progress.console import LineReporter
from dreambooth_trainer.runner import PreparedJob, run_phases
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.validations import Validations

VALIDATED = {"steps": 4, "validation": {"prompts": ["a {} on the beach"], "everySteps": 2}}
Work = Callable[[Context], None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[TrainerPhase, Work]], None]:
    """Run phases that do other work, in the order of a job."""
    monkeypatch.setattr(runner, "ray_cluster", contextlib.nullcontext)
    plan = make_plan({"training": VALIDATED})
    planned: Any = SimpleNamespace(plan=plan, hardware=SimpleNamespace(memory_bytes=1))
    pool: Any = InlinePool()

    def phase(name: TrainerPhase, work: Work) -> Phase:
        return Phase(name, lambda _: name.value, lambda _: True, lambda context, _: work(context) or {})

    def run_all(works: dict[TrainerPhase, Work]) -> None:
        phases = tuple(phase(name, works.get(name, lambda _: None)) for name in TrainerPhase)
        monkeypatch.setattr(runner, "PHASES", phases)
        run_phases(PreparedJob(planned, (), ()), JobFolder(tmp_path), "", LineReporter(Console(quiet=True)), pool)

    return run_all


@pytest.mark.usefixtures("sigterm_handler")
def test_a_run_whose_interrupt_was_dropped_ends_before_the_next_phase(run: Callable[..., None]) -> None:
    def dropped(_: Context) -> None:
        with contextlib.suppress(KeyboardInterrupt):  # as Python does in destructors
            signal.raise_signal(signal.SIGTERM)

    works = {TrainerPhase.CLASS_IMAGES: dropped, TrainerPhase.ENCODE: lambda _: pytest.fail("the run went on")}
    with pytest.raises(KeyboardInterrupt):
        run(works)


def test_images_of_another_training_are_gone_before_the_first_phase(run: Callable[..., None], tmp_path: Path) -> None:
    """Who looks at the folder would take them for those of this training."""
    old = Validations(tmp_path / "validation", "old", 1)
    old.prepare()
    old.put(0, 0, Image.new("RGB", (8, 8)))
    seen: list[list[Path]] = []
    run({TrainerPhase.PREPARE: lambda _: seen.append(list(old.root.glob("step-*")))})
    assert seen == [[]]
    old.prepare()
    old.put(0, 0, Image.new("RGB", (8, 8)))
    run({TrainerPhase.PREPARE: lambda _: pytest.fail("complete phases run again")})
    assert old.steps() == [0], "a training that is complete keeps what is there"
