"""A training worker that receives SIGTERM saves its last step, and training continues from there."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_training import make_data, make_plan

from dreambooth_trainer.phases.train import build_trainer
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.training.checkpoint import METADATA_FILE, trained_weights
from dreambooth_trainer.training.messages import WorkerMessage, read_records

pytestmark = pytest.mark.trainer

STEPS = 160
STOP_AT = 20


def reporter(folder: Path, *, stop: bool) -> Callable[[WorkerMessage], None]:
    """Logs the steps of rank 0 and of the checkpoints, and sends its process SIGTERM once if `stop` is true."""

    # A nested function, because workers cannot import this module.
    def report(message: WorkerMessage) -> None:
        step: Any = message
        name = "steps" if hasattr(step, "loss") else "saved"
        with (folder / name).open("a") as log:
            log.write(f"{step.step}\n")
        stopped = folder / "stopped"
        if stop and name == "steps" and step.step >= STOP_AT and not stopped.exists():
            stopped.touch()
            os.kill(os.getpid(), signal.SIGTERM)

    return report


def train(model: Path, latents: Path, folder: Path, *, stop: bool) -> tuple[list[int], list[float], Path]:
    """Train with two workers; returns the steps in the order in which they were run, the losses, the checkpoint."""
    job = JobFolder(folder)
    job.latents.parent.mkdir(parents=True)
    shutil.copy(latents, job.latents)
    plan = make_plan(model, steps=STEPS, workers=2)
    result = build_trainer(plan, job, "key", reporter(folder, stop=stop), cores=1).fit()
    assert result.checkpoint is not None
    checkpoint = Path(result.checkpoint.path)
    steps = [int(line) for line in (folder / "steps").read_text().split()]
    return steps, [record.loss for record in read_records(checkpoint)], checkpoint


def test_a_terminated_worker_saves_its_step_and_training_continues_there(
    ray_here: None, tiny_model: Path, tmp_path: Path
) -> None:
    latents = make_data(tmp_path / "latents.safetensors")
    steps, losses, _ = train(tiny_model, latents, tmp_path / "whole", stop=False)
    assert steps == list(range(1, STEPS + 1))
    resumed_steps, resumed_losses, checkpoint = train(tiny_model, latents, tmp_path / "stopped", stop=True)
    # No step is lost and none is repeated: training continues from the step at which the workers ended.
    assert resumed_steps == steps
    assert resumed_losses == pytest.approx(losses, rel=1e-4)
    assert json.loads((checkpoint / METADATA_FILE).read_text())["step"] == STEPS
    first_saved, last_saved = map(int, (tmp_path / "stopped" / "saved").read_text().split())
    assert STOP_AT <= first_saved < STEPS == last_saved
    # The last checkpoint holds the weights and no optimizer state.
    assert trained_weights(checkpoint)
    assert not list(checkpoint.glob("**/*optim_states*"))
