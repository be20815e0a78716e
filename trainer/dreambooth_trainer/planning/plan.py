"""Resolves a job into a plan, in which every default has a value. Reads no files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import cast

from pydantic import JsonValue

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Strict
from dreambooth_api.hypernetwork import HyperNetwork
from dreambooth_api.job import DreamBoothJob, JobSpec
from dreambooth_api.model import BaseModelRef
from dreambooth_api.output import Format
from dreambooth_api.subject import NoiseScheduler, PriorPreservation
from dreambooth_api.training import Training
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.planning.batch import global_batch_size, num_steps
from dreambooth_trainer.planning.cascade import SUPER_RESOLUTION, SecondStage, second_stage
from dreambooth_trainer.planning.defaults import DPM_SOLVER_STEPS, ModelDefaults, model_defaults
from dreambooth_trainer.planning.image_prompts import PlannedImagePrompts, plan_image_prompts

NUM_RANDOM_CROPS = 8
"""Crops of each image with training.randomCrop. Their latents are cached."""

# Compiling takes one to two minutes, and saves some hundredths of a second per forward and backward pass.
COMPILE_MIN_STEPS = 4000


class SamplerSettings(Strict):
    """Denoising steps, classifier-free guidance scale, and noise scheduler (see `NoiseScheduler`)."""

    steps: int
    guidance_scale: float
    scheduler: NoiseScheduler = "Default"


class PlannedSubject(Strict):
    """A subject with its prompts.

    Attributes:
        class_: the class noun.
        captions: instance prompts of individual images, by file name.
    """

    identifier: str
    class_: str
    instance_prompt: str
    class_prompt: str
    captions: Mapping[str, str]

    @property
    def noun(self) -> str:
        """Replacement of {} in a prompt template: identifier and class, for example "sks dog"."""
        return f"{self.identifier} {self.class_}"


class Plan(Strict):
    """A job with all defaults resolved. Phases read values from here and have no defaults of their own.

    Attributes:
        subjects: at least one, in the order of the job.
        batch_size: instance images per optimizer step of all workers. 0, as steps, if the method trains nothing.
        gpus_per_worker: 0 if workers run on CPUs.
        checkpoint_every_steps: None saves checkpoints by time only.
        num_class_images: of all class prompts together, at most the number that training uses.
        num_own_class_images: of them, those of the job's `priorPreservation.images`, which are not generated.
        class_image_sampler: sampling settings for class images.
        sampler: sampling settings for the evaluation and the published model.
        hyper_network: that predicts the initial adapter. If it is on the Hub, its revision is a commit.
        super_resolution: the second stage of a model that has one; `resolution` is that of its images.
        stage: name of the folder of the stage's caches and checkpoints; empty for the first stage.
    """

    job: DreamBoothJob
    model: BaseModelRef
    subjects: tuple[PlannedSubject, ...]
    resolution: int
    steps: int
    learning_rate: float
    train_text_encoder: bool
    text_encoder_learning_rate: float
    batch_size: int
    precision: str
    gpus_per_worker: int
    zero_stage: int
    checkpoint_every_steps: int | None
    num_class_images: int
    num_own_class_images: int = 0
    class_image_sampler: SamplerSettings
    sampler: SamplerSettings
    sampling_batch_size: int
    dino: str
    clip: str
    super_resolution: SecondStage | None = None
    image_prompts: PlannedImagePrompts | None = None
    hyper_network: HyperNetwork | None = None
    stage: str = ""

    @property
    def stages(self) -> tuple[Plan, ...]:
        """The plan of each stage, in the order in which they are trained and sampled. Most models have one."""
        second = self.super_resolution
        if second is None:
            return (self,)
        base = self.model.model_copy(update={"super_resolution": None})
        return (
            self.model_copy(
                update={"super_resolution": None, "model": base, "resolution": second.base_resolution},
            ),
            self.model_copy(
                update={
                    "super_resolution": None,
                    "model": second.model,
                    "learning_rate": second.learning_rate,
                    "stage": SUPER_RESOLUTION,
                }
            ),
        )

    def with_model(self, model: BaseModelRef) -> Plan:
        """The same plan for other revisions of the model's stages."""
        plan = self.model_copy(update={"model": model})
        if plan.super_resolution is None or model.super_resolution is None:
            return plan
        source = BaseModelRef(id=model.super_resolution.id, revision=model.super_resolution.revision)
        return plan.model_copy(update={"super_resolution": plan.super_resolution.model_copy(update={"model": source})})

    @property
    def spec(self) -> JobSpec:
        return self.job.spec

    @property
    def samples(self) -> int:
        """Number of instance images that training uses, with repetitions."""
        return self.steps * self.batch_size

    @property
    def augmentation(self) -> str:
        """The augmentation of instance images, for people: "random crop, random flip", or "none"."""
        training = self.spec.training
        enabled = {"random crop": training.random_crop, "random flip": training.random_flip}
        return ", ".join(name for name, on in enabled.items() if on) or "none"

    @property
    def variants_per_image(self) -> int:
        """Number of augmented variants of each instance image; 1 without augmentation."""
        training = self.spec.training
        return (NUM_RANDOM_CROPS if training.random_crop else 1) * (2 if training.random_flip else 1)

    @property
    def world_sizes(self) -> tuple[int, int]:
        """Minimum and maximum number of training processes: one per GPU, or one per worker on CPUs."""
        elastic, workers = self.spec.cluster.elastic, self.spec.cluster.workers
        per_worker = max(1, self.gpus_per_worker)
        if elastic is None:
            return workers * per_worker, workers * per_worker
        return elastic.min_workers * per_worker, elastic.max_workers * per_worker

    def needs_deepspeed(self, world_size: int) -> bool:
        """Whether DeepSpeed trains: there is something to partition or to offload, or the job configures DeepSpeed."""
        deepspeed = self.spec.training.deepspeed
        offload = deepspeed.offload_optimizer and self.gpus_per_worker > 0
        return world_size > 1 or offload or bool(deepspeed.config)

    @property
    def stage_name(self) -> str:
        """The ZeRO stage, or "none" if no number of workers of this job needs DeepSpeed."""
        return str(self.zero_stage) if self.needs_deepspeed(self.world_sizes[1]) else "none"

    @property
    def compiled(self) -> bool:
        """Whether the denoiser is compiled: on a GPU without DeepSpeed, if the run is long enough to repay it."""
        training = self.spec.training
        long = self.steps * training.gradient_accumulation_steps >= COMPILE_MIN_STEPS
        return training.compile == "Auto" and self.gpus_per_worker > 0 and self.stage_name == "none" and long

    @property
    def used_class_images(self) -> int:
        """Number of class images that training uses: as many per step as instance images, each once per epoch."""
        return self.steps * self.batch_size

    @property
    def live_text_encoders(self) -> bool:
        """Whether training computes the text embeddings, because it changes weights or tokens of the text encoders."""
        return self.train_text_encoder or self.spec.training.traits.tokens

    @property
    def text_encoder_training(self) -> str:
        """What is trained of the text encoders, for people."""
        if not self.live_text_encoders:
            return "frozen"
        kind = "new tokens" if self.spec.training.traits.tokens else "trained"
        return f"{kind}, learning rate {self.text_encoder_learning_rate:g}"

    @property
    def new_tokens(self) -> dict[str, list[str]]:
        """The new tokens of each identifier, with the names that diffusers gives them; empty if none are trained."""
        training = self.spec.training
        numbers = range(1, training.vectors)
        names = [subject.identifier for subject in self.subjects if training.traits.tokens]
        return {name: [name, *(f"{name}_{number}" for number in numbers)] for name in names}

    @property
    def formats(self) -> tuple[Format, ...]:
        """Formats to publish; defaults to what the method trains: a complete model, or an adapter."""
        if self.spec.output.formats is not None:
            return tuple(self.spec.output.formats)
        return cast("tuple[Format, ...]", self.spec.training.traits.default_formats)

    @property
    def instance_prompts(self) -> tuple[str, ...]:
        """The instance prompt of each subject."""
        return tuple(subject.instance_prompt for subject in self.subjects)

    @property
    def class_image_counts(self) -> dict[str, int]:
        """Number of class images of each class prompt. The first prompts get the remainder of an uneven split."""
        prompts = dict.fromkeys(subject.class_prompt for subject in self.subjects)
        share, rest = divmod(self.num_class_images, len(prompts))
        return {prompt: share + (index < rest) for index, prompt in enumerate(prompts)}


def model_ref(job: DreamBoothJob) -> BaseModelRef:
    """The job's base model; defaults to builtin:sprites."""
    return job.spec.model or BaseModelRef(id=BUILTIN_SPRITES)


def encoder_names(job: DreamBoothJob) -> tuple[str, str]:
    """The job's encoders in place of DINO and CLIP: Hub ID, folder or builtin:sprites."""
    encoders, defaults = job.spec.evaluation.encoders, model_defaults(model_ref(job).id)
    return encoders.dino or defaults.dino, encoders.clip or defaults.clip


def fill_defaults(
    job: DreamBoothJob,
    *,
    image_count: int,
    identifiers: Sequence[str],
    zero_stage: int,
    precision: str,
    gpus_per_worker: int = 0,
    native_resolution: int | None = None,
    flow_matching: bool = False,
    pixel_space: bool = False,
    sampling: tuple[int, float] | None = None,
) -> Plan:
    """Resolve all defaults of a job.

    Args:
        image_count: number of images of all subjects.
        identifiers: of each subject: the job's, or the rare token selected for `auto`.
        zero_stage: the job's stage, or the result of `memory.choose_stage`.
        precision, native_resolution: defaults of training.precision and training.resolution, the latter of the model.
        flow_matching, pixel_space: whether the model was trained by flow matching, or denoises pixels; for defaults.
        sampling: steps and guidance scale that the model needs, as defaults.

    Raises:
        UserError: the batch cannot be split, or a number of steps or of class images does not fit the others.
    """
    spec, model, (dino, clip) = job.spec, model_ref(job), encoder_names(job)
    defaults = model_defaults(model.id, flow_matching=flow_matching, pixel_space=pixel_space, sampling=sampling)
    training, prior = spec.training, spec.prior_preservation
    steps, rate, batch_size = 0, 0.0, 0
    if training.traits.trains:
        steps = num_steps(spec, training.default_steps(defaults.steps * len(identifiers)))
        rate = training.learning_rate or defaults.learning_rates[training.method]
        batch_size = global_batch_size(spec, gpus_per_worker, defaults.batch_size, steps, rate)
    second = second_stage(model, training, native_resolution, rate)
    plan = Plan(
        job=job,
        model=model,
        super_resolution=second,
        subjects=_subjects(spec, identifiers),
        resolution=second.resolution if second else training.resolution or native_resolution or defaults.resolution,
        steps=steps,
        learning_rate=rate,
        train_text_encoder=_trains_text_encoder(training, defaults),
        text_encoder_learning_rate=_text_encoder_rate(training, defaults, rate),
        batch_size=batch_size,
        precision=training.precision or precision,
        gpus_per_worker=gpus_per_worker,
        zero_stage=zero_stage,
        checkpoint_every_steps=training.checkpoint_every_steps,
        num_class_images=min(_class_images(prior, defaults, image_count), max(steps * batch_size, len(identifiers))),
        class_image_sampler=_class_image_sampler(prior, defaults),
        sampler=SamplerSettings(steps=defaults.sampling_steps, guidance_scale=defaults.sampling_guidance_scale),
        sampling_batch_size=defaults.sampling_batch_size,
        dino=dino,
        clip=clip,
        image_prompts=plan_image_prompts(training, defaults, model.id),
        hyper_network=training.hyper_network,
    )
    return _checked(plan)


def _trains_text_encoder(training: Training, defaults: ModelDefaults) -> bool:
    """Whether the text encoder is trained. Adapters of the denoiser suffice, unless the job asks for others."""
    train = training.text_encoder.train
    return defaults.train_text_encoder and training.traits.weights if train is None else train


def _text_encoder_rate(training: Training, defaults: ModelDefaults, rate: float) -> float:
    """Learning rate of the text encoders. New tokens that are trained with an adapter need a higher rate than it."""
    if training.text_encoder.learning_rate is not None:
        return training.text_encoder.learning_rate
    with_adapter = training.traits.tokens and training.traits.adapter
    return defaults.learning_rates["TextualInversion"] if with_adapter else rate


def _class_images(prior: PriorPreservation, defaults: ModelDefaults, image_count: int) -> int:
    return prior.num_class_images or min(defaults.class_images_per_image * image_count, defaults.max_class_images)


def _class_image_sampler(prior: PriorPreservation, defaults: ModelDefaults) -> SamplerSettings:
    sampler, steps = prior.sampler, defaults.class_image_steps
    if sampler.scheduler == "DPMSolverMultistep":
        steps = min(steps, DPM_SOLVER_STEPS)
    return SamplerSettings(
        steps=sampler.steps or steps,
        guidance_scale=sampler.guidance_scale or defaults.class_image_guidance_scale,
        scheduler=sampler.scheduler,
    )


def _checked(plan: Plan) -> Plan:
    """The plan. Raises an error if a class prompt would have no class image."""
    if plan.spec.uses_class_images and 0 in plan.class_image_counts.values():
        count = len(plan.class_image_counts)
        rule = f"is less than the number of class prompts, which is {count}"
        field = "spec.priorPreservation.numClassImages"
        raise UserError(ValidationIssue(field, plan.num_class_images, rule, f"set {count} or more"))
    return plan


def _subjects(spec: JobSpec, identifiers: Sequence[str]) -> tuple[PlannedSubject, ...]:
    return tuple(
        PlannedSubject(
            identifier=identifier,
            class_=subject.class_,
            instance_prompt=subject.instance_prompt or f"a {identifier} {subject.class_}",
            class_prompt=subject.class_prompt or f"a {subject.class_}",
            captions=subject.captions,
        )
        for subject, identifier in zip(spec.all_subjects, identifiers, strict=True)
    )


def fingerprint(value: JsonValue) -> str:
    """SHA-256 of a JSON value in canonical form, in hex. Equal values have equal fingerprints."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
