"""From what a user wrote to what will run: every default filled, nothing left open.

Pure: the number of images, the identifier that `auto` stands for and the model's facts are arguments.
"""

from __future__ import annotations

import hashlib
import json
import math

from pydantic import JsonValue

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Strict
from dreambooth_api.job import BaseModelRef, DreamBoothJob, JobSpec
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.planning.defaults import model_defaults


class SamplerSettings(Strict):
    """Denoising steps and classifier-free guidance of one kind of picture."""

    steps: int
    guidance_scale: float


class Plan(Strict):
    """A job with every default filled. Phases read this and the job, never a default of their own.

    Attributes:
        batch_size: instance images per optimizer step, over all workers and GPUs.
        gpus_per_worker: 0 where the work runs on CPUs.
    """

    job: DreamBoothJob
    model: BaseModelRef
    identifier: str
    instance_prompt: str
    class_prompt: str
    resolution: int
    steps: int
    learning_rate: float
    train_text_encoder: bool
    text_encoder_learning_rate: float
    batch_size: int
    precision: str
    gpus_per_worker: int
    zero_stage: int
    checkpoint_every_steps: int
    num_class_images: int
    class_image_sampler: SamplerSettings
    sampler: SamplerSettings
    sampling_batch_size: int
    dino: str
    clip: str

    @property
    def spec(self) -> JobSpec:
        return self.job.spec

    @property
    def world_sizes(self) -> tuple[int, int]:
        """The least and the greatest number of training processes: one per GPU, or one per worker on CPUs."""
        elastic, workers = self.spec.cluster.elastic, self.spec.cluster.workers
        per_worker = max(1, self.gpus_per_worker)
        if elastic is None:
            return workers * per_worker, workers * per_worker
        return elastic.min_workers * per_worker, elastic.max_workers * per_worker

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """The fields of `families.base.Components` that learn."""
        return ("denoiser", "text_encoder") if self.train_text_encoder else ("denoiser",)

    @property
    def subject_noun(self) -> str:
        """What takes the place of {} in a template: the identifier and the class."""
        return f"{self.identifier} {self.spec.subject.class_}"


def model_ref(job: DreamBoothJob) -> BaseModelRef:
    """The job's base model, the built-in one where it names none."""
    return job.spec.model or BaseModelRef(id=BUILTIN_SPRITES)


def fill_defaults(
    job: DreamBoothJob,
    *,
    image_count: int,
    identifier: str,
    zero_stage: int,
    precision: str,
    gpus_per_worker: int = 0,
) -> Plan:
    """Fill every default.

    Args:
        image_count: subject images there are.
        identifier: the job's, or the rare token that `auto` stands for.
        zero_stage: the job's, or what `memory.choose_stage` answered.
        precision: used where the job names none.

    Raises:
        UserError: the batch cannot be split over workers and accumulation steps.
    """
    spec, model = job.spec, model_ref(job)
    defaults = model_defaults(model.id)
    training, text_encoder = spec.training, spec.training.text_encoder
    steps = training.steps or defaults.steps
    rate = training.learning_rate or (
        defaults.lora_learning_rate if training.method == "LoRA" else defaults.learning_rate
    )
    trains_text_encoder = (
        defaults.train_text_encoder and training.method == "Full" if text_encoder.train is None else text_encoder.train
    )
    sampler = spec.prior_preservation.sampler
    return Plan(
        job=job,
        model=model,
        identifier=identifier,
        instance_prompt=spec.subject.instance_prompt or f"a {identifier} {spec.subject.class_}",
        class_prompt=spec.prior_preservation.class_prompt or f"a {spec.subject.class_}",
        resolution=training.resolution or defaults.resolution,
        steps=steps,
        learning_rate=rate,
        train_text_encoder=trains_text_encoder,
        text_encoder_learning_rate=text_encoder.learning_rate or rate,
        batch_size=_batch_size(spec, gpus_per_worker, defaults.batch_size, steps, rate),
        precision=training.precision or precision,
        gpus_per_worker=gpus_per_worker,
        zero_stage=zero_stage,
        checkpoint_every_steps=training.checkpoint_every_steps or max(1, min(250, steps // 4)),
        num_class_images=spec.prior_preservation.num_class_images
        or min(defaults.class_images_per_image * image_count, defaults.max_class_images),
        class_image_sampler=SamplerSettings(
            steps=sampler.steps or defaults.prior_steps,
            guidance_scale=sampler.guidance_scale or defaults.prior_guidance,
        ),
        sampler=SamplerSettings(steps=defaults.sample_steps, guidance_scale=defaults.sample_guidance),
        sampling_batch_size=defaults.sampling_batch_size,
        dino=spec.evaluation.encoders.dino or defaults.dino,
        clip=spec.evaluation.encoders.clip or defaults.clip,
    )


def _batch_size(spec: JobSpec, gpus_per_worker: int, default: int, steps: int, rate: float) -> int:
    """The global batch. It is part of the recipe: the number of workers never changes it.

    Raises:
        UserError: it cannot be split evenly; for a default batch, with a recipe that sees as many samples.
    """
    elastic, accumulation = spec.cluster.elastic, spec.training.gradient_accumulation_steps
    per_worker = max(1, gpus_per_worker)
    counts = range(elastic.min_workers, elastic.max_workers + 1) if elastic else [spec.cluster.workers]
    parts = math.lcm(*counts) * per_worker * accumulation
    batch = spec.training.global_batch_size or default
    if batch % parts == 0:
        return batch
    workers = (
        f"{counts[0]} worker(s)" if len(counts) == 1 else f"any number of workers from {counts[0]} to {counts[-1]}"
    )
    gpus = f" x {per_worker} GPUs" if per_worker > 1 else ""
    rule = f"cannot be split evenly over {workers}{gpus} x {accumulation} accumulation step(s)"
    if spec.training.global_batch_size is not None:
        raise UserError(ValidationIssue("spec.training.globalBatchSize", batch, rule, f"write a multiple of {parts}"))
    larger = math.ceil(batch / parts) * parts
    growth = larger / batch
    # Adam: with a batch k times as large, a rate sqrt(k) times as high (Malladi et al. 2022, section 5).
    remedy = (
        f"use fewer workers, or write a recipe with as many samples: training.globalBatchSize: {larger}, "
        f"training.steps: {max(1, round(steps / growth))}, training.learningRate: {rate * math.sqrt(growth):.2g}"
    )
    raise UserError(ValidationIssue("spec.training.globalBatchSize", batch, f"the default {rule}", remedy))


def fingerprint(value: JsonValue) -> str:
    """SHA-256 of a JSON value, the same for equal values on any machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
