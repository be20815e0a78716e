"""The result of one job of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from dreambooth_api.fields import Strict
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.benchmark.copies import COPY, nearest_correlations
from dreambooth_trainer.benchmark.scoring import evaluation_images
from dreambooth_trainer.metrics.prompts import fill_template
from dreambooth_trainer.models.files import ADAPTER_FILE, EMBEDDINGS_PATTERN
from dreambooth_trainer.phases.evaluate import read_stored_scores
from dreambooth_trainer.sampling.evaluation_set import Model, evaluation_prompts, images_per_prompt, load_images
from dreambooth_trainer.store.folder import JobFolder


class RunResult(Strict):
    """The result of one job.

    Attributes:
        key: fingerprint of the job, its base model and its images. A job with another key is run again.
        base, trained: scores of both models by the name of the metric, and `nearest` and `copies`: mean correlation of
            images with the nearest training image, and the share of images with a correlation of `COPY` or more.
        real_images: upper bounds of the scores, by the name of the metric.
        phase_seconds: duration of each phase. Class images and images of the base model that another job has
            generated take none.
        total_seconds: from planning to publishing, in the last run of the job.
        published_bytes: weights in the smallest format that diffusers loads.
    """

    key: str
    base_model: str
    subject: str
    method: str
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
    subject_name: str,
    folder: JobFolder,
    records: Mapping[TrainerPhase, Mapping[str, Any]],
    total_seconds: float,
) -> RunResult:
    """The result of a job that has just finished."""
    plan, stores = evaluation_images(folder.root)
    scores = read_stored_scores(folder)
    training = [Image.open(path) for path in folder.prepared_of(0)]
    values: dict[Model, dict[str, float]] = {}
    for model, store in stores.items():
        subject, count = plan.subjects[0], images_per_prompt(plan, model)
        prompts = [fill_template(template, subject.noun) for template in evaluation_prompts(plan, subject)]
        images = [image for prompt in prompts for image in load_images(store, prompt, count)]
        nearest = nearest_correlations(images, training)
        copies = fmean(value >= COPY for value in nearest)
        values[model] = {**scores[model].values, "nearest": fmean(nearest), "copies": copies}
    return RunResult(
        key=key,
        base_model=plan.model.id,
        subject=subject_name,
        method=plan.spec.training.method,
        seed=plan.spec.training.seed,
        base=values["before"],
        trained=values["after"],
        real_images=scores["after"].real_images,
        dino_encoder=plan.dino,
        clip_encoder=plan.clip,
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        phase_seconds={phase: record["seconds"] for phase, record in records.items()},
        total_seconds=total_seconds,
        published_bytes=published_bytes(folder.model),
    )


def published_bytes(model: Path) -> int:
    """Size of the weights: of the adapter and the new tokens if there are any, or of the diffusers folder."""
    small = [*model.glob(ADAPTER_FILE), *model.glob(EMBEDDINGS_PATTERN)]
    return sum(path.stat().st_size for path in small or model.glob("*/*.safetensors"))
