"""Runs of experiment trackers, through the trackers of accelerate.

All calls must be made by one thread, because MLflow's run belongs to a thread.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dreambooth_trainer.planning.plan import Plan

if TYPE_CHECKING:
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

PROJECT = "dreambooth"
"""Project of Weights & Biases, and experiment of MLflow. WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME set others."""

FINISH_SECONDS = 120.0  # for what is not uploaded yet at the end; it stays in the job's folder
Files = Sequence[tuple[str, Path]]
"""The prompt and the file of each image of a step."""


class Run(Protocol):
    """An open run of one tracker.

    Attributes:
        note: a sentence for the user, or empty.
    """

    id: str
    note: str

    def settings(self, values: Mapping[str, str]) -> None:
        """Log the settings of the job."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of a step. Steps of validations may be lower than those of losses before."""
        ...

    def images(self, step: int, files: Files) -> None:
        """Log the images of a step."""
        ...

    def close(self, *, succeeded: bool) -> None:
        """End the run."""
        ...


class TensorBoardRun:
    """Event files below `trackers/tensorboard`."""

    note = ""

    def __init__(self, folder: Path, plan: Plan, key: str, run: str) -> None:
        from accelerate.tracking import TensorBoardTracker

        del run
        self.id = f"{plan.job.metadata.name}-{key[:8]}"
        self._tracker: TensorBoardTracker = TensorBoardTracker(self.id, folder / "tensorboard")
        self._tracker.start()

    def settings(self, values: Mapping[str, str]) -> None:
        # Not store_init_configuration, which adds a run of its own for each call.
        self._tracker.log({f"settings/{name}": value for name, value in values.items()})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log(dict(values), step=step)

    def images(self, step: int, files: Files) -> None:
        import numpy as np
        from PIL import Image

        for number, (prompt, path) in enumerate(files):
            pixels = np.asarray(Image.open(path).convert("RGB"))[None]
            self._tracker.log_images({f"validation/{number}": pixels}, step=step, dataformats="NHWC")
            if step == 0:
                self._tracker.log({f"validation/{number}/prompt": prompt}, step=step)

    def close(self, *, succeeded: bool) -> None:
        del succeeded
        self._tracker.finish()


class WandbRun:
    """A run of Weights & Biases: offline below `trackers/wandb` unless WANDB_API_KEY or WANDB_MODE is set."""

    def __init__(self, folder: Path, plan: Plan, key: str, run: str) -> None:
        del key
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to W&B's own servers, also of offline runs
        import wandb
        from accelerate.tracking import WandBTracker

        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        if not os.access(Path.home(), os.W_OK):  # as in pods; W&B would write there
            for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
                os.environ.setdefault(name, str(Path(tempfile.gettempdir()) / "wandb"))
        self.id = run or secrets.token_hex(8)  # jobs with the same inputs are different runs of a project
        offline = not os.environ.get("WANDB_API_KEY") and "WANDB_MODE" not in os.environ
        place = folder / "wandb"
        self.note = f"reportTo: WANDB_API_KEY is not set; wandb writes an offline run to {place}" if offline else ""
        self._tracker: WandBTracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            name=plan.job.metadata.name,
            id=self.id,
            resume="allow",
            dir=str(folder / "wandb"),
            **({"mode": "offline"} if offline else {}),
            # Neither host, user, command line, code, Git nor console output leaves this process.
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,  # otherwise an incomplete upload would not be reported
                save_code=False,
                host=PROJECT,
                program=PROJECT,
                quiet=True,
                silent=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self._tracker.start()
        # Validations are logged later than losses of the same step, and W&B drops steps that go back.
        self._tracker.tracker.define_metric("step")
        self._tracker.tracker.define_metric("*", step_metric="step")

    def settings(self, values: Mapping[str, str]) -> None:
        self._tracker.store_init_configuration(dict(values))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log({"step": step, **values})

    def images(self, step: int, files: Files) -> None:
        import wandb

        images = [wandb.Image(str(path), caption=prompt) for prompt, path in files]
        self._tracker.log({"step": step, **{f"validation/{number}": image for number, image in enumerate(images)}})

    def close(self, *, succeeded: bool) -> None:
        self._tracker.tracker.finish(exit_code=0 if succeeded else 1)


class MlflowRun:
    """A run of MLflow: below `trackers/mlflow` unless MLFLOW_TRACKING_URI is set."""

    note = ""

    def __init__(self, folder: Path, plan: Plan, key: str, run: str) -> None:
        del key
        # Files are the only local store without a database. An unreachable server must not delay the job for long.
        # MLflow also reports its use to its developers, and prints the URL of the server, with its credentials.
        for name, value in (
            ("MLFLOW_ALLOW_FILE_STORE", "true"),
            ("MLFLOW_DISABLE_TELEMETRY", "true"),
            ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"),
            ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
            ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ):
            os.environ.setdefault(name, value)
        import mlflow
        from accelerate.tracking import MLflowTracker
        from mlflow.tracking.context.registry import resolve_tags

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri((folder / "mlflow").resolve().as_uri())
            # MLflow sets it: the next job of this process would log to the folder of this one.
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        self._tracker: MLflowTracker = MLflowTracker(
            experiment_name=PROJECT, run_id=run or None, run_name=plan.job.metadata.name
        )
        # MLflow finds out the user, the path of the program, and the commit, branch and URL of its repository.
        hidden: dict[str, Any] = dict.fromkeys(resolve_tags(), "")
        given: Any = self._tracker.tags or {}  # those of MLFLOW_TAGS
        own = {"mlflow.source.name": PROJECT, "mlflow.source.type": "JOB", "mlflow.user": PROJECT}
        self._tracker.tags = {**hidden, **given, **own}
        self._tracker.start()
        self.id: str = self._tracker.tracker.info.run_id

    def settings(self, values: Mapping[str, str]) -> None:
        self._tracker.store_init_configuration(dict(values))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log(dict(values), step=step)

    def images(self, step: int, files: Files) -> None:
        for _, path in files:
            self._tracker.log_artifact(str(path), f"validation/step-{step:06d}")

    def close(self, *, succeeded: bool) -> None:
        import mlflow

        mlflow.end_run("FINISHED" if succeeded else "FAILED")


RUNS: dict[str, Callable[[Path, Plan, str, str], Run]] = {
    "tensorboard": TensorBoardRun,
    "wandb": WandbRun,
    "mlflow": MlflowRun,
}
