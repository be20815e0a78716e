"""The result of one job of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.benchmark.kind import Measured
from dreambooth_trainer.benchmark.variants import Variant
from dreambooth_trainer.models.files import ADAPTER_FILE, EMBEDDINGS_PATTERN, IMAGE_EMBEDS_FILE, IP_ADAPTER_FILE
from dreambooth_trainer.phases.base import Context


class RunResult(Variant):
    """The result of one job.

    Attributes:
        key: fingerprint of the job, its base model and its images. A job with another key is run again.
        subject: name of the subject, or names of both of a pair.
        base, trained, real_images: values of both models and of the photos, see `Benchmark.measure`.
        phase_seconds: duration of each phase, since it last continued. Class images and images of the base model that
            another job has generated take none, those that it generates at the same time the time to wait for them.
        total_seconds: from planning to publishing, in the last run of the job.
        published_bytes: weights in the smallest format that diffusers loads.
    """

    key: str
    base_model: str
    subject: str
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


def collect_result(
    key: str,
    name: str,
    variant: Variant,
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
        **variant.model_dump(),
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
