"""Resources of a worker group that fails to start are released for the next one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import ray
from test_training import make_plan

from dreambooth_trainer.phases.train import build_trainer
from dreambooth_trainer.store.folder import JobFolder


def test_a_failed_start_releases_its_resources(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    from dreambooth_trainer.training.worker_group import WorkerGroupCleanup

    class KillOnce(WorkerGroupCallback):
        killed = False

        def after_worker_group_start(self, worker_group: Any) -> None:
            if not self.killed:
                self.killed = True
                (worker,) = worker_group.get_workers()
                ray.kill(worker.actor)
                while True:  # a kill takes a moment; the death must be noticed here, before training is launched
                    ray.get(worker.execute_async(len, ""))

    def train(config: dict[str, Any]) -> None:
        Path(config["done"]).touch()

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    trainer = TorchTrainer(
        train,
        train_loop_config={"done": str(tmp_path / "done")},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": int(ray.cluster_resources()["CPU"])}),
        run_config=RunConfig(
            storage_path=str(tmp_path),
            failure_config=FailureConfig(controller_failure_limit=1),
            callbacks=[KillOnce(), WorkerGroupCleanup(print)],
        ),
    )
    trainer.fit()
    assert (tmp_path / "done").exists()


def test_every_trainer_has_the_cleanup_callback(ray_here: None, tiny_model: Path, tmp_path: Path) -> None:
    from dreambooth_trainer.training.worker_group import WorkerGroupCleanup

    callbacks = build_trainer(make_plan(tiny_model), JobFolder(tmp_path), "key", print, cores=1).run_config.callbacks
    assert any(isinstance(callback, WorkerGroupCleanup) for callback in callbacks or [])


def test_trainings_on_one_machine_start_no_process_that_asks_a_dashboard(
    ray_here: None, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each training waited at its end up to 12 s for the answer of a dashboard that a local session does not have."""
    from dreambooth_trainer.training.local_trainer import UNUSED

    def types_of_callbacks() -> set[type]:
        trainer = build_trainer(make_plan(tiny_model), JobFolder(tmp_path), "key", print, cores=1)
        return {type(callback) for callback in trainer._create_default_callbacks()}

    local = types_of_callbacks()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    on_cluster = types_of_callbacks()
    assert on_cluster - local == set(UNUSED)
    assert local < on_cluster
    assert os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"
