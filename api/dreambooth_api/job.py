"""The training contract: what a `DreamBoothJob` says.

One source for the YAML a user writes, the CRD that the API server enforces and the values that the
trainer reads. A field that is None means "the base model's tuned default"; the trainer fills it in.
Nothing here imports torch or touches a disk.
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
# One line of printable text; braces are kept for templates, where {} stands for "sks dog".
TEMPLATE = r"^[^\x00-\x1f{}]*\{\}[^\x00-\x1f{}]*$"
PHRASE = r"^[^\x00-\x1f{}]*[^\x00-\x20{}][^\x00-\x1f{}]*$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
TOKEN = r"^[^\s{}]{1,32}$"  # noqa: S105 - a word, no secret
RELATIVE_PATH = r"^([^/.:\x00-\x1f][^/:\x00-\x1f]*(/[^/.:\x00-\x1f][^/:\x00-\x1f]*)*)?$"

Phrase = Annotated[str, Field(pattern=PHRASE, max_length=300)]
Template = Annotated[str, Field(pattern=TEMPLATE, max_length=300)]
ObjectName = Annotated[str, Field(pattern=DNS_SUBDOMAIN)]
Quantity = Annotated[str, Field(pattern=QUANTITY)]


def _wrong(at: str, rule: str, remedy: str) -> PydanticCustomError:
    """A rule over several fields is broken: the field to change (camelCase, "" for all), the rule, what to write."""
    return PydanticCustomError("rule", "{rule}; {remedy}", {"at": at, "rule": rule, "remedy": remedy})


class Strict(BaseModel):
    """camelCase in YAML, snake_case in Python, immutable, and no key that is not declared."""

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
    path: str = Field(default="", pattern=RELATIVE_PATH, description="Folder inside the volume, relative.")


class ObjectRef(Strict):
    """A ConfigMap or Secret in the job's namespace."""

    name: ObjectName = Field(description="Name of the object.")


class ImageSource(Strict):
    """Where the subject's images are. Exactly one of the four."""

    uri: str | None = Field(
        default=None,
        pattern=SOURCE_URI,
        description="A folder: local path, s3://, gs://, or builtin:sprites/<name> for a drawn subject.",
    )
    pvc: VolumeClaim | None = Field(default=None, description="A folder on a volume.")
    config_map: ObjectRef | None = Field(default=None, description="A ConfigMap whose binaryData are image files.")
    secret: ObjectRef | None = Field(default=None, description="A Secret whose data are image files.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [to_camel(n) for n in ("uri", "pvc", "config_map", "secret") if getattr(self, n) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "nothing"
            raise _wrong("", f"says {got}", "give exactly one of uri, pvc, configMap, secret")
        return self


class Subject(Strict):
    """The thing to learn: 3-5 images, its class, and the rare token that will name it."""

    images: ImageSource = Field(description="The subject's images; 3-5 work best.")
    class_: Phrase = Field(alias="class", description="The kind of thing it is, as one would say it: dog, teapot.")
    identifier: str = Field(
        default="sks",
        pattern=TOKEN,
        description="Rare token that will name the subject; auto picks one that the tokenizer keeps whole.",
    )
    instance_prompt: Phrase | None = Field(
        default=None, description="Instance prompt. Default: a <identifier> <class>. It must contain the identifier."
    )
    captions: dict[str, Phrase] = Field(
        default_factory=dict, description="Instance prompt of single images, by file name, in place of instancePrompt."
    )

    @model_validator(mode="after")
    def _identifier_is_used(self) -> Self:
        prompts = {"instancePrompt": self.instance_prompt, **{f"captions.{k}": v for k, v in self.captions.items()}}
        if self.identifier == "auto":
            named = [k for k, v in prompts.items() if v is not None]
            if named:
                remedy = "write identifier: sks, say, in place of auto"
                raise _wrong(named[0], "a prompt of your own needs a known identifier", remedy)
            return self
        for where, text in prompts.items():
            if text is not None and self.identifier not in text.split():
                rule = f"{text!r} does not contain the identifier {self.identifier!r} as a word of its own"
                raise _wrong(where, rule, f"write for example 'a {self.identifier} {self.class_}'")
        return self


class Sampler(Strict):
    """How images are drawn from a model."""

    steps: int | None = Field(default=None, ge=1, le=1000, description="Denoising steps an image.")
    guidance_scale: float | None = Field(
        default=None, ge=1, le=50, description="Classifier-free guidance; lower is more diverse. 1 turns it off."
    )


class PriorPreservation(Strict):
    """Class images that the base model itself makes, for the prior-preservation loss (paper, section 3.2)."""

    enabled: bool = Field(default=True, description="False trains without prior preservation: expect language drift.")
    num_class_images: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Number of class images. Default: 200 for each subject image, up to 1000.",
    )
    loss_weight: float = Field(default=1.0, gt=0, le=100, description="Weight of the prior loss (lambda in the paper).")
    class_prompt: Phrase | None = Field(default=None, description="Class prompt. Default: a <class>.")
    sampler: Sampler = Field(default_factory=Sampler, description="How class images are drawn.")
    sharing: Literal["Cluster", "Namespace", "Job"] = Field(
        default="Namespace", description="Who may reuse these class images. They hold nothing of the subject."
    )


class TextEncoder(Strict):
    """Fine-tuning of the text encoder beside the denoiser; better faces, more memory."""

    train: bool | None = Field(default=None, description="Train the text encoder as well; with LoRA, adapters in it.")
    learning_rate: float | None = Field(
        default=None, gt=0, lt=1, description="Its own learning rate. Default: that of the denoiser."
    )


class Lora(Strict):
    """Low-rank adapters (method LoRA)."""

    rank: int = Field(default=16, ge=1, le=1024, description="Rank of the update.")
    alpha: float | None = Field(default=None, gt=0, description="Scale of the update. Default: the rank.")


class DeepSpeed(Strict):
    """ZeRO: how model, gradients and optimizer state are split over the workers."""

    stage: Literal["auto", "1", "2", "3"] = Field(
        default="auto", description="ZeRO stage; auto takes the lowest that fits the GPU's memory."
    )
    offload_optimizer: bool = Field(default=False, description="Keep the optimizer's state in host memory.")
    config: dict[str, JsonValue] = Field(
        default_factory=dict, description="Raw DeepSpeed configuration, merged over the generated one."
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
            raise _wrong("", f"is nested deeper than {MAX_DEPTH} levels", "write DeepSpeed's keys, which have 4 levels")
        return config


class Training(Strict):
    """Fine-tuning with the class-specific prior-preservation loss (paper, equation 2)."""

    method: Literal["Full", "LoRA"] = Field(default="Full", description="What is trained.")
    steps: int | None = Field(default=None, ge=1, le=1_000_000, description="Optimizer steps. Paper: 1000.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Default: 5e-6 for Full, as in the paper, 1e-4 for LoRA; builtin:sprites has its own.",
    )
    lr_scheduler: Literal["Constant", "Linear", "Cosine"] = Field(
        default="Constant", description="Course of the learning rate after the warm-up."
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps over which the learning rate rises from zero.")
    global_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Instance images per optimizer step, over all workers. As many class images are added to them.",
    )
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, le=1024, description="Micro-batches that one optimizer step adds up."
    )
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations: less memory, 1/3 slower.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradient clipping.")
    weight_decay: float = Field(default=0.01, ge=0, lt=1, description="AdamW's weight decay.")
    text_encoder: TextEncoder = Field(default_factory=TextEncoder, description="The text encoder's part.")
    resolution: int | None = Field(
        default=None, ge=16, le=4096, multiple_of=8, description="Side of the square training images, pixels."
    )
    precision: Literal["bf16", "fp32"] | None = Field(
        default=None, description="Number format of weights and activations; the optimizer's is always fp32."
    )
    lora: Lora = Field(default_factory=Lora, description="Settings of method LoRA.")
    deepspeed: DeepSpeed = Field(default_factory=DeepSpeed, description="ZeRO.")
    checkpoint_every_steps: int | None = Field(
        default=None, ge=1, description="Steps between checkpoints. Default: a fifth of steps, at most 250."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of all noise, order and time steps.")


class Encoders(Strict):
    """Image and text encoders that judge fidelity: hub id or local folder; builtin:sprites for drawn subjects."""

    dino: str | None = Field(default=None, min_length=1, description="Default: facebook/dino-vits16, as the paper.")
    clip: str | None = Field(default=None, min_length=1, description="Default: openai/clip-vit-base-patch32.")


class Thresholds(Strict):
    """A job that scores lower fails, and publishes nothing."""

    dino: float | None = Field(default=None, ge=-1, le=1, description="Least DINO subject fidelity.")
    clip_i: float | None = Field(default=None, ge=-1, le=1, description="Least CLIP-I subject fidelity.")
    clip_t: float | None = Field(default=None, ge=-1, le=1, description="Least CLIP-T prompt fidelity.")


class Evaluation(Strict):
    """Subject and prompt fidelity as the paper measures them (section 4.2), and prior preservation."""

    enabled: bool = Field(default=True, description="False skips the scores; the report has pictures only.")
    prompts: list[Template] = Field(
        default_factory=list,
        max_length=200,
        description="{} stands for the subject: a {} on the beach. Default: the paper's 25 for the class, or those "
        "that the built-in base can read.",
    )
    images_per_prompt: int = Field(default=4, ge=1, le=64, description="Images a prompt.")
    encoders: Encoders = Field(default_factory=Encoders, description="Who judges.")
    thresholds: Thresholds = Field(default_factory=Thresholds, description="Scores that gate success.")

    @model_validator(mode="after")
    def _thresholds_are_measured(self) -> Self:
        given = [to_camel(name) for name, least in self.thresholds if least is not None]
        if given and not self.enabled:
            rule = f"{' and '.join(given)} cannot be checked, because enabled is false and no score is measured"
            raise _wrong("thresholds", rule, "remove thresholds, or write enabled: true")
        return self


class Output(Strict):
    """Where the model goes. At most one of uri and pvc; a local run defaults to out/<name>."""

    uri: str | None = Field(default=None, pattern=OUTPUT_URI, description="A folder: local path, s3:// or gs://.")
    pvc: VolumeClaim | None = Field(default=None, description="A folder on a volume.")
    formats: list[Literal["diffusers", "safetensors"]] = Field(
        default=["diffusers", "safetensors"], min_length=1, max_length=2, description="Folder, single file, or both."
    )
    keep_checkpoints: bool = Field(default=False, description="Keep the training checkpoints after publishing.")
    deletion_policy: Literal["Retain", "Delete"] = Field(
        default="Retain",
        description="Delete removes images, latents, checkpoints and weights when the job is deleted. Retain keeps "
        "them.",
    )

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if self.uri is not None and self.pvc is not None:
            raise _wrong("", "says uri and pvc", "give one of the two")
        return self


class Resources(Strict):
    """What one worker gets."""

    cpu: Quantity | None = Field(default=None, description="CPU cores.")
    memory: Quantity | None = Field(default=None, description="Memory.")
    gpu: int | None = Field(default=None, ge=0, le=16, description="GPUs.")


class Elastic(Strict):
    """Bounds between which the number of workers may follow the cluster."""

    min_workers: int = Field(ge=1, le=1024, description="Fewest workers to train with.")
    max_workers: int = Field(ge=1, le=1024, description="Most workers to train with.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_workers < self.min_workers:
            rule = f"maxWorkers {self.max_workers} is below minWorkers {self.min_workers}"
            raise _wrong("maxWorkers", rule, f"write maxWorkers: {self.min_workers} or more")
        return self


class Toleration(Strict):
    """A taint that the pods tolerate, as in a pod."""

    key: str | None = Field(default=None, max_length=317, description="Key of the taint; none for all.")
    operator: Literal["Exists", "Equal"] | None = Field(default=None, description="Default: Equal.")
    value: str | None = Field(default=None, max_length=63, description="Value of the taint, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint; none for all."
    )
    toleration_seconds: int | None = Field(default=None, ge=0, description="For NoExecute: how long, seconds.")


class Cluster(Strict):
    """The Ray cluster that does the work."""

    workers: int = Field(default=1, ge=1, le=1024, description="Workers that generate class images and train.")
    elastic: Elastic | None = Field(default=None, description="Let the number of workers vary.")
    resources: Resources = Field(default_factory=Resources, description="What one worker gets.")
    image: str | None = Field(default=None, min_length=1, description="Container image of the trainer.")
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels that nodes must have.")
    tolerations: list[Toleration] = Field(
        default_factory=list[Toleration], description="Taints that the pods tolerate, as in a pod."
    )


class RunPolicy(Strict):
    """When to run, how often to try, when to give up, when to clean up."""

    suspend: bool = Field(default=False, description="True stops the job at its last checkpoint; false resumes it.")
    backoff_limit: int = Field(default=3, ge=0, le=100, description="Retries after failures that are not the user's.")
    active_deadline_seconds: int | None = Field(
        default=None, ge=1, description="Running time over all attempts, seconds, after which the job fails."
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None, ge=0, description="Seconds after its end at which the job is deleted."
    )
    queue_name: ObjectName | None = Field(default=None, description="Kueue LocalQueue.")
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of the pods.")


class BaseModelRef(Strict):
    """The text-to-image model to start from."""

    id: str = Field(
        default=BUILTIN_SPRITES, min_length=1, description="Hub id, folder of a diffusers model, or builtin:sprites."
    )
    revision: str | None = Field(default=None, min_length=1, description="Commit or tag on the hub.")


class RuntimeRef(Strict):
    """The platform team's DreamBoothRuntime."""

    name: ObjectName = Field(description="Name of the DreamBoothRuntime.")


class JobSpec(Strict):
    """What to learn, how, and where the result goes."""

    runtime_ref: RuntimeRef | None = Field(default=None, description="Supplies what is not said here.")
    model: BaseModelRef | None = Field(
        default=None, description="Base model. Default: the runtime's; in a local run builtin:sprites."
    )
    subject: Subject = Field(description="The thing to learn.")
    prior_preservation: PriorPreservation = Field(
        default_factory=PriorPreservation, description="Class images and their loss."
    )
    training: Training = Field(default_factory=Training, description="Fine-tuning.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="Scores.")
    output: Output = Field(default_factory=Output, description="Where the model goes.")
    cluster: Cluster = Field(default_factory=Cluster, description="The Ray cluster that does the work.")
    run_policy: RunPolicy = Field(default_factory=RunPolicy, description="When to run and when to give up.")


class Metadata(BaseModel):
    """The part of Kubernetes' ObjectMeta that a local run needs; the API server checks the rest."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(pattern=DNS_LABEL, max_length=63, description="Name of the job.")
    namespace: str = Field(default="default", pattern=DNS_LABEL, description="Namespace of the job.")


class DreamBoothJob(Strict):
    """A job file, local or on a cluster."""

    api_version: Literal["dreambooth.dev/v1alpha1"] = Field(description="dreambooth.dev/v1alpha1")
    kind: Literal["DreamBoothJob"] = Field(description="DreamBoothJob")
    metadata: Metadata
    spec: JobSpec
    status: JsonValue = Field(default=None, description="Written by the operator; ignored in a job file.")
