"""The result of one job of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_api.fields import Strict
from dreambooth_api.preservation import PreservationMode
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.benchmark.kind import Measured
from dreambooth_trainer.models.files import ADAPTER_FILE, EMBEDDINGS_PATTERN, IMAGE_EMBEDS_FILE, IP_ADAPTER_FILE
from dreambooth_trainer.phases.base import Context


class RunResult(Strict):
    """The result of one job.

    Attributes:
        key: fingerprint of the job, its base model and its images. A job with another key is run again.
        mode: of prior preservation; None if it is the default.
        subject: name of the subject, or names of both of a pair.
        base, trained, real_images: values of both models and of the photos, see `Benchmark.measure`.
        phase_seconds: duration of each phase. Class images and images of the base model that another job has
            generated take none.
        total_seconds: from planning to publishing, in the last run of the job.
        published_bytes: weights in the smallest format that diffusers loads.
    """

    key: str
    base_model: str
    subject: str
    method: str
    mode: PreservationMode | None = None
    seed: int
    base: Mapping[str, float]
    trained: Mapping[str, float]
    real_images: Mapping[str, float]
    dino_encoder: str
    clip_encoder: str
    steps: int
    learning_rate: float
    phase_seconds: Mapping[str, float]
    total_seconds: float
    published_bytes: int

    @property
    def variant(self) -> str:
        """What the row of the table compares with others."""
        return variant_name(self.method, self.mode)


def variant_name(method: str, mode: PreservationMode | None) -> str:
    """Name of a method, with the mode of prior preservation unless it is the default."""
    return method if mode is None else f"{method}, {mode}"


def collect_result(
    key: str,
    name: str,
    context: Context,
    records: Mapping[TrainerPhase, Mapping[str, Any]],
    measured: Measured,
    total_seconds: float,
) -> RunResult:
    """The result of a job that has just finished."""
    plan = context.plan
    return RunResult(
        key=key,
        base_model=plan.model.id,
        subject=name,
        method=plan.spec.training.method,
        mode=plan.spec.prior_preservation.mode,
        seed=plan.spec.training.seed,
        base=measured.base,
        trained=measured.trained,
        real_images=measured.real_images,
        dino_encoder=plan.dino,
        clip_encoder=plan.clip,
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        phase_seconds={phase: record["seconds"] for phase, record in records.items()},
        total_seconds=total_seconds,
        published_bytes=published_bytes(context.folder.model),
    )


def published_bytes(model: Path) -> int:
    """Size of the weights: of adapters, new tokens and embeddings if there are any, or of the diffusers folder."""
    names = (ADAPTER_FILE, EMBEDDINGS_PATTERN, IP_ADAPTER_FILE, IMAGE_EMBEDS_FILE)
    small = [path for name in names for path in model.glob(name)]
    return sum(path.stat().st_size for path in small or model.glob("*/*.safetensors"))
