"""What experiment trackers store, read back by their own libraries."""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from PIL import Image
from test_plan import make_plan

from dreambooth_api.errors import UserError
from dreambooth_trainer.phases import trackers
from dreambooth_trainer.phases.trackers import Trackers
from dreambooth_trainer.planning.precision import check_packages
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.training.messages import StepRecord

ALL = ["tensorboard", "wandb", "mlflow"]
LOSSES = {1: 0.5, 2: 0.25, 3: 0.125}


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ERROR_REPORTING"),
        *("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_DISABLE_TELEMETRY"),
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def in_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is in a Git repository with a branch and a remote."""
    from git import Actor, Repo
    from mlflow.tracking.context import registry

    repository = Repo.init(tmp_path / "repository", initial_branch="private-branch")
    repository.create_remote("origin", "https://example.com/private.git")
    program = tmp_path / "repository" / "program.py"
    program.touch()
    author = Actor("private", "private@example.com")
    repository.index.add([program.name])
    repository.index.commit("private", author=author, committer=author)
    monkeypatch.setattr(sys, "argv", [str(program)])
    for provider in registry._run_context_provider_registry:  # which keep what they have found out once
        getattr(provider, "_cache", {}).clear()


def records(*steps: int) -> list[StepRecord]:
    return [StepRecord(step, LOSSES[step], LOSSES[step] / 2, None, 1e-4, 1) for step in steps]


def image(folder: Path, color: str) -> list[tuple[str, Path]]:
    Image.new("RGB", (8, 8), color).save(folder / f"{color}.png")
    return [("a sks dog on the beach", folder / f"{color}.png")]


def track(folder: Path, names: list[str], warnings: list[str]) -> Path:
    """Two steps, an interruption after which the second one is repeated, and the third."""
    plan = make_plan({"training": {"reportTo": names, "steps": 3}})
    job = JobFolder(folder / "job")
    first = Trackers(plan, job, "key", warnings.append)
    first.log_validation(0, image(folder, "red"), {"dino": 0.25})
    first.log_losses(records(1))
    first.log_losses(records(1, 2))
    first.close(succeeded=False)
    second = Trackers(plan, job, "key", warnings.append)
    second.log_validation(0, image(folder, "red"), {"dino": 0.25})
    second.log_losses(records(2, 3))
    second.log_validation(2, image(folder, "blue"), {"dino": 0.5})
    second.close(succeeded=True)
    return job.trackers


def events_of(run: Path) -> Any:
    """The events that TensorBoard reads in the folder of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"images": 0})
    return events.Reload()


def losses(run: Path) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events_of(run).Scalars("loss")]


def test_tensorboard_has_each_step_once(tmp_path: Path) -> None:
    warnings: list[str] = []
    (run,) = (track(tmp_path, ["tensorboard"], warnings) / "tensorboard").iterdir()
    events = events_of(run)
    assert losses(run) == list(LOSSES.items())
    assert [(event.step, event.value) for event in events.Scalars("validation/dino")] == [(0, 0.25), (2, 0.5)]
    assert [event.step for event in events.Images("validation/0")] == [0, 2]
    assert "prior_loss" not in events.Tags()["scalars"], "without class images"
    assert warnings == []


@pytest.mark.usefixtures("in_repository")
def test_mlflow_has_each_step_once_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TAGS", '{"team": "research"}')

    warnings: list[str] = []
    client = MlflowClient((track(tmp_path, ["mlflow"], warnings) / "mlflow").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'dreambooth'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == list(LOSSES.items())
    assert (run.info.status, run.info.run_name, run.data.params["method"]) == ("FINISHED", "my-dog", "Full")
    assert run.data.metrics["validation/dino"] == 0.5
    images = [file.path for file in client.list_artifacts(run.info.run_id, "validation/step-000002")]
    assert images == ["validation/step-000002/blue.png"]
    assert {name: value for name, value in run.data.tags.items() if value} == {
        "mlflow.user": "dreambooth", "mlflow.source.name": "dreambooth", "mlflow.source.type": "JOB",
        "mlflow.runName": "my-dog", "team": "research",
    }  # fmt: skip
    assert MLFLOW_DISABLE_TELEMETRY.get()
    assert "MLFLOW_TRACKING_URI" not in os.environ, "another job of this process has its own folder"
    assert warnings == []


def test_mlflow_has_the_result_of_a_training_that_failed(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    plan = make_plan({"training": {"reportTo": ["mlflow"]}})
    opened = Trackers(plan, JobFolder(tmp_path), "key", pytest.fail)
    opened.close(succeeded=False)
    client = MlflowClient((tmp_path / "trackers" / "mlflow").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'dreambooth'")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]


def wandb_records(folder: Path) -> list[Any]:
    """The records in the files of W&B, which have the format of LevelDB's logs after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    found, block = [], 2**15
    for path in sorted(folder.rglob("*.wandb")):
        content, at, data = path.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if block - at % block < 7:  # the rest of a block is too small for a record
                at += block - at % block
            size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
            data += content[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # whole, or the last part
                found.append(wandb_internal_pb2.Record.FromString(data))
                data = b""
    return found


def test_wandb_without_a_key_is_offline_and_gets_each_step_once(tmp_path: Path) -> None:
    from wandb.env import error_reporting_enabled

    warnings: list[str] = []
    stored = track(tmp_path, ["wandb"], warnings) / "wandb"
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(stored)
        if record.HasField("history")
    ]
    assert [(row["step"], row["loss"]) for row in history if "loss" in row] == list(LOSSES.items())
    assert [(row["step"], row["validation/dino"]) for row in history if "validation/dino" in row] == [
        (0, 0.25),
        (2, 0.5),
    ]
    assert len(list(stored.rglob("media/images/**/*.png"))) == 2
    metrics = {(one.metric.glob_name, one.metric.step_metric) for one in wandb_records(stored)}
    assert ("*", "step") in metrics, "W&B would drop validations, whose steps are lower than those of losses before"
    exits = [record.exit.exit_code for record in wandb_records(stored) if record.HasField("exit")]
    assert exits == [1, 0], "the first attempt failed"
    runs = {record.run.run_id for record in wandb_records(stored) if record.HasField("run")}
    assert len(runs) == 1, "both attempts are one run"
    assert runs != {"key"}, "another job with the same inputs is another run"
    assert not error_reporting_enabled()
    assert warnings == [f"reportTo: WANDB_API_KEY is not set; wandb writes an offline run to {stored}"] * 2


def test_wandb_watches_neither_the_console_nor_the_machine(tmp_path: Path) -> None:
    import wandb

    plan, warnings = make_plan({"training": {"reportTo": ["wandb"]}}), list[str]()
    opened = Trackers(plan, JobFolder(tmp_path), "key", warnings.append)
    assert wandb.run
    settings = wandb.run.settings  # in effect, after W&B's own defaults
    opened.close(succeeded=True)
    assert (settings.console, settings.program, settings.host) == ("off", "dreambooth", "dreambooth")
    assert (settings.x_disable_meta, settings.x_disable_stats, settings.x_disable_machine_info) == (True, True, True)
    assert (settings.disable_code, settings.disable_git, settings.save_code) == (True, True, False)
    assert not settings.x_save_requirements


@pytest.mark.parametrize("name", ALL)
def test_trackers_get_neither_host_nor_user_nor_command(name: str, tmp_path: Path) -> None:
    warnings: list[str] = []
    stored = track(tmp_path, [name], warnings)
    assert not [warning for warning in warnings if "failed" in warning]
    private = {socket.gethostname(), sys.argv[0], sys.executable, "origin", str(Path.cwd())}
    if getpass.getuser() != "root":  # a word of many paths
        private.add(getpass.getuser())
    for path in stored.rglob("*"):
        # Names of event files, which stay in the job's folder, have the host's name.
        content = path.read_bytes() if path.is_file() else b""
        found = [text for text in private if any(form in content for form in written_forms(text))]
        assert not found, path


def written_forms(text: str) -> list[bytes]:
    """How a text stands in a file. Two or three letters, as some hosts have, also occur in random bytes by chance.

    So these are found only as a whole field of JSON or of a protocol buffer, which begins with the length.
    """
    content = text.encode()
    return [content] if len(content) > 3 else [b'"%b"' % content, bytes([len(content)]) + content]


def test_data_that_is_not_uploaded_in_time_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate.tracking

    class Slow:
        tracker: Any = MagicMock()

        def __init__(self, *_: object, settings: Any, **__: object) -> None:
            raises = settings.finish_timeout > 0 and settings.finish_timeout_raises
            self.tracker.finish.side_effect = TimeoutError("Timed out finishing run.") if raises else None

        def start(self) -> None: ...

        def store_init_configuration(self, values: object) -> None: ...

    monkeypatch.setattr(accelerate.tracking, "WandBTracker", Slow)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    warnings: list[str] = []
    opened = Trackers(make_plan({"training": {"reportTo": ["wandb"]}}), JobFolder(tmp_path), "key", warnings.append)
    opened.close(succeeded=True)
    assert warnings == ["reportTo: wandb failed and receives no more data in this run: Timed out finishing run."]


def test_another_training_is_another_run_and_has_all_steps(tmp_path: Path) -> None:
    plan, job = make_plan({"training": {"reportTo": ["tensorboard"]}}), JobFolder(tmp_path)
    for key in ("first key", "other key"):
        opened = Trackers(plan, job, key, pytest.fail)
        opened.log_losses(records(1))
        opened.close(succeeded=True)
    runs = list((job.trackers / "tensorboard").iterdir())
    assert [losses(run) for run in runs] == [[(1, 0.5)], [(1, 0.5)]]


def test_a_damaged_state_does_not_end_the_tracking(tmp_path: Path) -> None:
    plan, job = make_plan({"training": {"reportTo": ["tensorboard"]}}), JobFolder(tmp_path)
    job.trackers.mkdir()
    (job.trackers / "logged.json").write_text('{"key"')
    opened = Trackers(plan, job, "key", pytest.fail)
    opened.log_losses(records(1))
    opened.close(succeeded=True)
    (run,) = (job.trackers / "tensorboard").iterdir()
    assert losses(run) == [(1, 0.5)]


def test_a_tracker_that_fails_does_not_fail_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        id, note = "run", ""

        def __init__(self, *_: object) -> None: ...

        def settings(self, values: object) -> None: ...

        def scalars(self, step: int, values: object) -> None:
            raise ConnectionError("https://me:password@server is away\nsecret")

    class Unreachable:
        def __init__(self, *_: object) -> None:
            raise OSError("no such host")

    monkeypatch.setitem(trackers.RUNS, "wandb", Broken)
    monkeypatch.setitem(trackers.RUNS, "mlflow", Unreachable)
    warnings: list[str] = []
    opened = Trackers(make_plan({"training": {"reportTo": ALL}}), JobFolder(tmp_path), "key", warnings.append)
    opened.log_losses(records(1))
    opened.log_losses(records(2))
    opened.close(succeeded=True)
    assert warnings == [
        "reportTo: mlflow failed and receives no more data in this run: no such host",
        "reportTo: wandb failed and receives no more data in this run: https://[redacted]@server is away",
    ]
    logged = json.loads((tmp_path / "trackers" / "logged.json").read_text())["logged"]
    assert {name: one["step"] for name, one in logged.items()} == {"tensorboard": 2, "wandb": 0, "mlflow": 0}


def test_a_missing_package_is_rejected_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan({"training": {"reportTo": ["tensorboard", "wandb"]}})
    check_packages(plan)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(UserError, match=r"reportTo\[1\]: .*needs wandb, .*install dreambooth-operator\[wandb\]"):
        check_packages(plan)
