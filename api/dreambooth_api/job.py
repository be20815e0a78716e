"""The `DreamBoothJob` API: pydantic models of its spec.

The single source for the YAML that users write, the CRD that the API server enforces and the values that the
trainer reads. A field that is None takes the default of the base model, which the trainer fills in. This module
does not import torch or access a disk.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from dreambooth_api.nesting import MAX_DEPTH, is_deeper
from dreambooth_api.uris import BUILTIN_SPRITES, OUTPUT_URI, SOURCE_URI

API_VERSION = "dreambooth.dev/v1alpha1"
KIND = "DreamBoothJob"
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
# A single line of printable text. Braces are reserved for templates, where {} is replaced by "sks dog".
TEMPLATE = r"^[^\x00-\x1f{}]*\{\}[^\x00-\x1f{}]*$"
PHRASE = r"^[^\x00-\x1f{}]*[^\x00-\x20{}][^\x00-\x1f{}]*$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
TOKEN = r"^[^\s{}]{1,32}$"  # noqa: S105 - a word, not a secret
RELATIVE_PATH = r"^([^/.:\x00-\x1f][^/:\x00-\x1f]*(/[^/.:\x00-\x1f][^/:\x00-\x1f]*)*)?$"

Phrase = Annotated[str, Field(pattern=PHRASE, max_length=300)]
Template = Annotated[str, Field(pattern=TEMPLATE, max_length=300)]
ObjectName = Annotated[str, Field(pattern=DNS_SUBDOMAIN)]
Quantity = Annotated[str, Field(pattern=QUANTITY)]


def _wrong(at: str, rule: str, remedy: str) -> PydanticCustomError:
    """A broken rule over several fields: the field to change (camelCase, "" for the object), the rule, the remedy."""
    return PydanticCustomError("rule", "{rule}; {remedy}", {"at": at, "rule": rule, "remedy": remedy})


class Strict(BaseModel):
    """Base of all spec models: camelCase in YAML, snake_case in Python, immutable; unknown keys are rejected."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
    )


class VolumeClaim(Strict):
    """A folder on a PersistentVolumeClaim in the job's namespace."""

    claim_name: ObjectName = Field(description="Name of the PersistentVolumeClaim.")
    path: str = Field(default="", pattern=RELATIVE_PATH, description="Folder in the volume, relative to its root.")


class ObjectRef(Strict):
    """Reference to a ConfigMap or Secret in the job's namespace."""

    name: ObjectName = Field(description="Name of the object.")


class ImageSource(Strict):
    """Source of the subject's images. Exactly one of uri, pvc, configMap, secret must be set."""

    uri: str | None = Field(
        default=None,
        pattern=SOURCE_URI,
        description="Folder of images: a local path, s3://, gs://, or builtin:sprites/<name> for a built-in cartoon "
        "subject.",
    )
    pvc: VolumeClaim | None = Field(default=None, description="Folder of images on a PersistentVolumeClaim.")
    config_map: ObjectRef | None = Field(
        default=None, description="ConfigMap whose binaryData entries are image files."
    )
    secret: ObjectRef | None = Field(default=None, description="Secret whose data entries are image files.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [to_camel(n) for n in ("uri", "pvc", "config_map", "secret") if getattr(self, n) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "nothing"
            raise _wrong("", f"sets {got}", "set exactly one of uri, pvc, configMap, secret")
        return self


class Subject(Strict):
    """The subject to learn: 3-5 images, its class, and the rare token that identifies it in prompts."""

    images: ImageSource = Field(description="Images of the subject. 3-5 images work best.")
    class_: Phrase = Field(alias="class", description="Class noun of the subject, for example dog or teapot.")
    identifier: str = Field(
        default="sks",
        pattern=TOKEN,
        description="Rare token that identifies the subject in prompts. auto selects one that the tokenizer encodes "
        "as a single token.",
    )
    instance_prompt: Phrase | None = Field(
        default=None, description='Instance prompt. Must contain the identifier. Defaults to "a <identifier> <class>".'
    )
    captions: dict[str, Phrase] = Field(
        default_factory=dict,
        description="Instance prompts of individual images, keyed by file name. They take precedence over "
        "instancePrompt.",
    )

    @model_validator(mode="after")
    def _identifier_is_used(self) -> Self:
        prompts = {"instancePrompt": self.instance_prompt, **{f"captions.{k}": v for k, v in self.captions.items()}}
        if self.identifier == "auto":
            named = [k for k, v in prompts.items() if v is not None]
            if named:
                remedy = "set an identifier, for example identifier: sks"
                raise _wrong(named[0], "a custom prompt requires a fixed identifier, and identifier is auto", remedy)
            return self
        for where, text in prompts.items():
            if text is not None and self.identifier not in text.split():
                rule = f"{text!r} does not contain the identifier {self.identifier!r} as a separate word"
                raise _wrong(where, rule, f"write, for example, 'a {self.identifier} {self.class_}'")
        return self


class Sampler(Strict):
    """Sampling settings for image generation."""

    steps: int | None = Field(default=None, ge=1, le=1000, description="Denoising steps per image.")
    guidance_scale: float | None = Field(
        default=None,
        ge=1,
        le=50,
        description="Classifier-free guidance scale. Lower values give more diverse images; 1 disables guidance.",
    )


class PriorPreservation(Strict):
    """Prior preservation (paper, section 3.2).

    The base model generates class images, and training on them keeps what the model knows about the class.
    """

    enabled: bool = Field(
        default=True,
        description="Whether to train with prior preservation. Without it, expect language drift and less diverse "
        "class images.",
    )
    num_class_images: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Number of class images. Defaults to 200 per subject image, at most 1000; builtin:sprites has its "
        "own default.",
    )
    loss_weight: float = Field(
        default=1.0, gt=0, le=100, description="Weight of the prior-preservation loss (lambda in the paper)."
    )
    class_prompt: Phrase | None = Field(
        default=None, description='Prompt for generating class images and training on them. Defaults to "a <class>".'
    )
    sampler: Sampler = Field(default_factory=Sampler, description="Sampling settings for class images.")
    sharing: Literal["Cluster", "Namespace", "Job"] = Field(
        default="Namespace",
        description="Scope in which other jobs may reuse these class images. They contain no subject data.",
    )


class TextEncoder(Strict):
    """Fine-tuning of the text encoder together with the denoiser.

    It improves faces and other fine detail, and needs more memory.
    """

    train: bool | None = Field(
        default=None, description="Whether to train the text encoder. With method LoRA, adapters are added to it."
    )
    learning_rate: float | None = Field(
        default=None, gt=0, lt=1, description="Learning rate of the text encoder. Defaults to training.learningRate."
    )


class Lora(Strict):
    """Settings of method LoRA."""

    rank: int = Field(default=16, ge=1, le=1024, description="Rank of the low-rank update.")
    alpha: float | None = Field(
        default=None,
        gt=0,
        description="Scaling numerator: the update is multiplied by alpha / rank. Defaults to the rank.",
    )


class DeepSpeed(Strict):
    """DeepSpeed ZeRO: how optimizer state, gradients and parameters are partitioned across workers."""

    stage: Literal["auto", "1", "2", "3"] = Field(
        default="auto", description="ZeRO stage. auto selects the lowest stage that fits into the workers' memory."
    )
    offload_optimizer: bool = Field(default=False, description="Whether to offload optimizer state to host memory.")
    config: dict[str, JsonValue] = Field(
        default_factory=dict, description="DeepSpeed configuration that is merged over the generated one."
    )

    @model_validator(mode="before")
    @classmethod
    def _stage_may_be_a_number(cls, data: object) -> object:
        # YAML reads `stage: 2` as an integer, and the API server's enum wants one type.
        if not isinstance(data, dict):
            return data
        given = cast("dict[str, object]", data)
        return {**given, "stage": str(given["stage"])} if type(given.get("stage")) is int else given

    @field_validator("config", mode="before")
    @classmethod
    def _config_is_shallow(cls, config: object) -> object:
        if is_deeper(config, MAX_DEPTH):
            raise _wrong(
                "", f"is nested deeper than {MAX_DEPTH} levels", "use DeepSpeed's own keys, which need at most 4 levels"
            )
        return config


class Training(Strict):
    """Fine-tuning hyperparameters. The loss is equation 2 of the paper."""

    method: Literal["Full", "LoRA"] = Field(
        default="Full",
        description="Fine-tuning method: Full trains all weights of the denoiser, LoRA trains low-rank adapters.",
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Number of optimizer steps. Defaults to 1000, as in the paper; builtin:sprites has its own "
        "default.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Peak learning rate. Defaults to 5e-6 for Full, as in the paper, and 1e-4 for LoRA; "
        "builtin:sprites has its own defaults.",
    )
    lr_scheduler: Literal["Constant", "Linear", "Cosine"] = Field(
        default="Constant", description="Learning rate schedule after warmup."
    )
    warmup_steps: int = Field(
        default=0, ge=0, description="Number of steps over which the learning rate increases linearly from zero."
    )
    global_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Instance images per optimizer step, across all workers and accumulation steps. With prior "
        "preservation, the same number of class images is added.",
    )
    gradient_accumulation_steps: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Number of micro-batches whose gradients are accumulated for one optimizer step.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Whether to recompute activations in the backward pass. Uses less memory and is about a third "
        "slower.",
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="Maximum gradient norm; gradients are clipped to it.")
    weight_decay: float = Field(default=0.01, ge=0, lt=1, description="Weight decay of AdamW.")
    text_encoder: TextEncoder = Field(default_factory=TextEncoder, description="Fine-tuning of the text encoder.")
    resolution: int | None = Field(
        default=None, ge=16, le=4096, multiple_of=8, description="Side length of the square training images in pixels."
    )
    precision: Literal["bf16", "fp32"] | None = Field(
        default=None,
        description="Number format of weights and activations. Optimizer state and master weights are always fp32.",
    )
    lora: Lora = Field(default_factory=Lora, description="Settings of method LoRA.")
    deepspeed: DeepSpeed = Field(default_factory=DeepSpeed, description="DeepSpeed ZeRO settings.")
    checkpoint_every_steps: int | None = Field(
        default=None,
        ge=1,
        description="Number of steps between checkpoints. Defaults to a quarter of steps, at most 250.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed for noise, data order and timesteps.")


class Encoders(Strict):
    """Encoders used for scoring.

    Each is a Hub ID, a local folder, or builtin:sprites for the built-in cartoon subjects.
    """

    dino: str | None = Field(
        default=None,
        min_length=1,
        description="Image encoder of the DINO score. Defaults to facebook/dino-vits16, the model of the paper.",
    )
    clip: str | None = Field(
        default=None,
        min_length=1,
        description="Image and text encoder of the CLIP-I and CLIP-T scores. Defaults to openai/clip-vit-base-patch32.",
    )


class Thresholds(Strict):
    """Minimum scores. A job that scores lower fails and does not publish."""

    dino: float | None = Field(default=None, ge=-1, le=1, description="Minimum DINO subject fidelity.")
    clip_i: float | None = Field(default=None, ge=-1, le=1, description="Minimum CLIP-I subject fidelity.")
    clip_t: float | None = Field(default=None, ge=-1, le=1, description="Minimum CLIP-T prompt fidelity.")


class Evaluation(Strict):
    """Subject fidelity, prompt fidelity and prior preservation, measured as in the paper (section 4.2)."""

    enabled: bool = Field(
        default=True, description="Whether to compute scores. If false, the report contains images only."
    )
    prompts: list[Template] = Field(
        default_factory=list,
        max_length=200,
        description='Evaluation prompts; {} is replaced by the subject, for example "a {} on the beach". Defaults to '
        "the paper's 25 prompts for the kind of class, or to a set that the built-in base model "
        "supports.",
    )
    images_per_prompt: int = Field(default=4, ge=1, le=64, description="Images per prompt.")
    encoders: Encoders = Field(default_factory=Encoders, description="Encoders used for scoring.")
    thresholds: Thresholds = Field(
        default_factory=Thresholds, description="Minimum scores that the job must reach to succeed."
    )

    @model_validator(mode="after")
    def _thresholds_are_measured(self) -> Self:
        given = [to_camel(name) for name, minimum in self.thresholds if minimum is not None]
        if given and not self.enabled:
            rule = f"{' and '.join(given)} cannot be checked, because enabled is false and no scores are computed"
            raise _wrong("thresholds", rule, "remove thresholds, or set enabled: true")
        return self


class Output(Strict):
    """Destination of the published model. At most one of uri and pvc may be set. A local run defaults to out/<name>."""

    uri: str | None = Field(
        default=None, pattern=OUTPUT_URI, description="Destination folder: a local path, s3:// or gs://."
    )
    pvc: VolumeClaim | None = Field(default=None, description="Destination folder on a PersistentVolumeClaim.")
    formats: list[Literal["diffusers", "safetensors"]] = Field(
        default=["diffusers", "safetensors"],
        min_length=1,
        max_length=2,
        description="Formats to publish: a diffusers folder, a single safetensors file, or both.",
    )
    keep_checkpoints: bool = Field(
        default=False, description="Whether to keep the training checkpoints after publishing."
    )
    deletion_policy: Literal["Retain", "Delete"] = Field(
        default="Retain",
        description="What happens to the job's data when the job is deleted. Retain keeps it. Delete also deletes its "
        "images, latents, checkpoints and published weights.",
    )

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if self.uri is not None and self.pvc is not None:
            raise _wrong("", "uri and pvc are both set", "set only one of them")
        return self


class Resources(Strict):
    """Resources for each worker."""

    cpu: Quantity | None = Field(default=None, description="Number of CPU cores.")
    memory: Quantity | None = Field(default=None, description="Memory, for example 16Gi.")
    gpu: int | None = Field(default=None, ge=0, le=16, description="Number of GPUs.")


class Elastic(Strict):
    """Minimum and maximum number of workers of an elastic job."""

    min_workers: int = Field(ge=1, le=1024, description="Minimum number of training workers.")
    max_workers: int = Field(ge=1, le=1024, description="Maximum number of training workers.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_workers < self.min_workers:
            rule = f"maxWorkers {self.max_workers} is less than minWorkers {self.min_workers}"
            raise _wrong("maxWorkers", rule, f"set maxWorkers to {self.min_workers} or more")
        return self


class Toleration(Strict):
    """Toleration of the job's pods, as in a pod spec."""

    key: str | None = Field(
        default=None,
        max_length=317,
        description="Taint key that the toleration applies to. If empty, it matches all keys.",
    )
    operator: Literal["Exists", "Equal"] | None = Field(
        default=None, description="Relation of the key to the value. Defaults to Equal."
    )
    value: str | None = Field(default=None, max_length=63, description="Taint value to match with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Taint effect to match. If empty, it matches all effects."
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, description="For effect NoExecute: seconds for which the taint is tolerated."
    )


class Cluster(Strict):
    """Ray cluster that runs the job."""

    workers: int = Field(default=1, ge=1, le=1024, description="Number of workers for image generation and training.")
    elastic: Elastic | None = Field(
        default=None,
        description="Lets the number of training workers vary with the capacity of the Kubernetes cluster.",
    )
    resources: Resources = Field(default_factory=Resources, description="Resources for each worker.")
    image: str | None = Field(
        default=None, min_length=1, description="Container image of the trainer. Defaults to the runtime's."
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels that nodes must have to run the job's pods."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list[Toleration], description="Tolerations of the job's pods."
    )


class RunPolicy(Strict):
    """Suspension, retries, deadline, cleanup and queueing."""

    suspend: bool = Field(
        default=False,
        description="Whether to suspend the job. Suspending deletes its pods; setting false resumes from the last "
        "checkpoint.",
    )
    backoff_limit: int = Field(
        default=3,
        ge=0,
        le=100,
        description="Number of retries after retryable failures before the job is marked as failed.",
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        description="Maximum running time in seconds, summed over all attempts, before the job is marked as failed.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None, ge=0, description="Seconds after completion after which the job is deleted."
    )
    queue_name: ObjectName | None = Field(default=None, description="Name of the Kueue LocalQueue that admits the job.")
    priority_class_name: ObjectName | None = Field(
        default=None, description="Name of the PriorityClass of the job's pods."
    )


class BaseModelRef(Strict):
    """Pretrained text-to-image model to fine-tune."""

    id: str = Field(
        default=BUILTIN_SPRITES,
        min_length=1,
        description="Hugging Face Hub ID, path of a diffusers folder, or builtin:sprites.",
    )
    revision: str | None = Field(default=None, min_length=1, description="Commit, tag or branch on the Hub.")


class RuntimeRef(Strict):
    """Reference to a DreamBoothRuntime."""

    name: ObjectName = Field(description="Name of the DreamBoothRuntime.")


class JobSpec(Strict):
    """Desired state of a DreamBoothJob."""

    runtime_ref: RuntimeRef | None = Field(
        default=None,
        description="Runtime that supplies what the job does not set. Defaults to the runtime named default.",
    )
    model: BaseModelRef | None = Field(
        default=None,
        description="Base model. Defaults to the runtime's model; a local run defaults to builtin:sprites.",
    )
    subject: Subject = Field(description="Subject to learn.")
    prior_preservation: PriorPreservation = Field(
        default_factory=PriorPreservation, description="Prior preservation with class images."
    )
    training: Training = Field(default_factory=Training, description="Fine-tuning hyperparameters.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="Evaluation of the trained model.")
    output: Output = Field(default_factory=Output, description="Destination of the published model.")
    cluster: Cluster = Field(default_factory=Cluster, description="Ray cluster that runs the job.")
    run_policy: RunPolicy = Field(
        default_factory=RunPolicy, description="Suspension, retries, deadline, cleanup and queueing."
    )


class Metadata(BaseModel):
    """The fields of ObjectMeta that a local run reads. The API server validates the others."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(pattern=DNS_LABEL, max_length=63, description="Name of the job.")
    namespace: str = Field(default="default", pattern=DNS_LABEL, description="Namespace of the job.")


class DreamBoothJob(Strict):
    """A complete DreamBoothJob, as in a job file or on a cluster."""

    api_version: Literal["dreambooth.dev/v1alpha1"] = Field(description="dreambooth.dev/v1alpha1")
    kind: Literal["DreamBoothJob"] = Field(description="DreamBoothJob")
    metadata: Metadata
    spec: JobSpec
    status: JsonValue = Field(
        default=None, description="Observed state, written by the operator. Ignored in a job file."
    )
