"""A real job through the client, on the embedded model: suspended while it trains, resumed, used and deleted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dreambooth import Client, Job, Phase
from dreambooth_trainer.store.file_lock import holder

pytestmark = pytest.mark.long

SETTINGS = {
    "priorPreservation.numClassImages": 4,
    "priorPreservation.sampler.steps": 4,
    "training.steps": 60,
    "training.checkpointEverySteps": 5,
    "evaluation.enabled": False,
}


def wait_for_steps(job: Job, steps: int) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        training = job.status.training
        if training and (training.saved_step or 0) >= steps:
            return
        assert job.status.phase in (Phase.STARTING, Phase.RUNNING), "\n".join(job.logs())
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint of step {steps} within 400 s: {job.status}")


def test_a_job_is_suspended_resumed_used_and_deleted(tmp_path: Path) -> None:
    client = Client(folder=tmp_path / "out", store=str(tmp_path / "store"))
    job = client.run(images="builtin:sprites/dog-pink-blue", class_="dog", name="pink-dog", settings=SETTINGS)
    wait_for_steps(job, 5)
    job.suspend()
    job.wait(200, "Suspended")
    lock = tmp_path / "out" / "pink-dog" / "work" / "lock"
    assert holder(lock) is None
    saved = job.status.training
    assert saved and saved.saved_step and 5 <= saved.saved_step < 60

    # A client in another notebook continues it.
    other = Client(folder=tmp_path / "out", store=str(tmp_path / "store")).get("pink-dog")
    other.resume()
    other.wait(500)
    status = other.status
    assert (status.phase, status.attempts) == (Phase.SUCCEEDED, 2)
    assert status.training and status.training.progress == "60/60"
    log = "\n".join(other.logs())
    assert "ClassImages already complete" in log
    assert {condition.type for condition in status.conditions} >= {"Trained", "Published", "Succeeded"}
    assert all(path.exists() for path in job.images())
    assert "<img" in job._repr_html_()
    image = job.load_pipeline()("a sks dog", num_inference_steps=2).images[0]
    assert image.size == (32, 32)

    job.delete()
    assert client.list() == []
    assert not (tmp_path / "out" / "pink-dog").exists()
    assert any((tmp_path / "store").rglob("*.png")), "class images are shared"
