"""The `DreamBoothJob` API: pydantic models of its spec.

The single source for the YAML that users write, the CRD that the API server enforces and the values that the
trainer reads. A field that is None takes the default of the base model, which the trainer fills in. This module
does not import torch or access a disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, create_model, model_validator
from pydantic.alias_generators import to_camel

from dreambooth_api.fields import (
    DNS_LABEL,
    UID,
    Quantity,
    Strict,
    Template,
    rule_error,
    shared,
)
from dreambooth_api.methods import ADAPTER_WITH_TOKENS, methods_of_format
from dreambooth_api.metrics import METRICS
from dreambooth_api.model import BaseModelRef
from dreambooth_api.output import Output
from dreambooth_api.preservation import MODE_MEMBERS, MODES, PreservationMode, modes_with
from dreambooth_api.runpolicy import RunPolicy
from dreambooth_api.runtimeref import RuntimeRef
from dreambooth_api.subject import (
    MAX_SUBJECTS,
    ListedSubject,
    PriorPreservation,
    Sampler,
    Subject,
    class_prompt_error,
    names_subject,
)
from dreambooth_api.training import Training
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_api.words import contains_word

ApiVersion = Literal["dreambooth.dev/v1alpha1"]
API_VERSION: ApiVersion = "dreambooth.dev/v1alpha1"
KIND = "DreamBoothJob"
DEFAULT_DINO = "facebook/dino-vits16"
DEFAULT_CLIP = "openai/clip-vit-base-patch32"
DEFAULT_ENCODERS = (DEFAULT_DINO, DEFAULT_CLIP, BUILTIN_SPRITES)


class Encoders(Strict):
    """Encoders used for scoring.

    Each is a Hub ID, a local folder, or builtin:sprites for the built-in cartoon subjects.
    """

    dino: str | None = Field(
        default=None,
        min_length=1,
        description=f"Image encoder of the DINO score. Defaults to {DEFAULT_DINO}, the model of the paper.",
    )
    clip: str | None = Field(
        default=None,
        min_length=1,
        description=f"Image and text encoder of the CLIP-I and CLIP-T scores. Defaults to {DEFAULT_CLIP}.",
    )


def _threshold_fields() -> type[Strict]:
    """A model with one field for each metric that can be a threshold."""
    fields: dict[str, Any] = {
        metric.field: (
            float | None,
            Field(default=None, ge=-1, le=1, description=f"Minimum {metric.label} score ({metric.quantity})."),
        )
        for metric in METRICS
        if metric.threshold
    }
    return create_model("ThresholdFields", __base__=Strict, **fields)


class Thresholds(_threshold_fields()):
    """Minimum scores. A job that scores lower fails and does not publish."""


class Evaluation(Strict):
    """Subject fidelity, prompt fidelity and prior preservation, measured as in the paper (section 4.2)."""

    enabled: bool = Field(
        default=True, description="Whether to compute scores. If false, the report contains a few images and no scores."
    )
    prompts: list[Template] = Field(
        default_factory=list,
        max_length=200,
        description='Evaluation prompts; {} is replaced by the subject, for example "a {} on the beach". Defaults to '
        "the paper's 25 prompts for the kind of class, or to a set that the built-in base model "
        "supports.",
    )
    images_per_prompt: int = Field(default=4, ge=1, le=64, description="Images per prompt.")
    encoders: Encoders = Field(default_factory=shared(Encoders), description="Encoders used for scoring.")
    thresholds: Thresholds = Field(
        default_factory=shared(Thresholds), description="Minimum scores that the job must reach to succeed."
    )

    @model_validator(mode="after")
    def _thresholds_are_measured(self) -> Self:
        given = [to_camel(name) for name, minimum in self.thresholds if minimum is not None]
        if given and not self.enabled:
            rule = f"{' and '.join(given)} cannot be checked, because enabled is false and no scores are computed"
            raise rule_error("thresholds", rule, "remove thresholds, or set enabled: true")
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
            raise rule_error("maxWorkers", rule, f"set maxWorkers to {self.min_workers} or more")
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
    resources: Resources = Field(default_factory=shared(Resources), description="Resources for each worker.")
    image: str | None = Field(
        default=None, min_length=1, description="Container image of the trainer. Defaults to the runtime's."
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels that nodes must have to run worker pods."
    )
    tolerations: list[Toleration] = Field(default_factory=list[Toleration], description="Tolerations of worker pods.")


class JobSpec(Strict):
    """Desired state of a DreamBoothJob."""

    runtime_ref: RuntimeRef | None = Field(
        default=None,
        description="Runtime that supplies the fields that the job does not set. Defaults to the runtime named "
        "default.",
    )
    model: BaseModelRef | None = Field(
        default=None,
        description=f"Base model. Defaults to the runtime's model; a local run defaults to {BUILTIN_SPRITES}.",
    )
    subject: Subject | None = Field(
        default=None, description="Subject to learn. Exactly one of subject and subjects must be set."
    )
    subjects: list[ListedSubject] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_SUBJECTS,
        description="Subjects to learn in one model. Each needs an identifier of its own. Every training batch rotates "
        "through them.",
    )
    prior_preservation: PriorPreservation = Field(
        default_factory=shared(PriorPreservation),
        description="Prior preservation: a second loss that preserves the model's prior for the class.",
    )
    training: Training = Field(default_factory=shared(Training), description="Fine-tuning hyperparameters.")
    evaluation: Evaluation = Field(default_factory=shared(Evaluation), description="Evaluation of the trained model.")
    output: Output = Field(default_factory=shared(Output), description="Destination of the published model.")
    cluster: Cluster = Field(default_factory=shared(Cluster), description="Ray cluster that runs the job.")
    run_policy: RunPolicy = Field(
        default_factory=shared(RunPolicy), description="Suspension, retries, deadline, cleanup and queueing."
    )

    @property
    def all_subjects(self) -> tuple[ListedSubject, ...]:
        """The subjects in the form of a list, also if there is only one."""
        if self.subject is None:
            return tuple(self.subjects or ())
        class_prompt = self.prior_preservation.class_prompt
        return (ListedSubject.model_construct(**dict(self.subject), class_prompt=class_prompt),)

    @property
    def subject_fields(self) -> tuple[str, ...]:
        """Path of each subject in a job file."""
        if self.subject is not None:
            return ("spec.subject",)
        return tuple(f"spec.subjects[{index}]" for index in range(len(self.subjects or ())))

    def update_subjects(self, changes: Sequence[Mapping[str, object]]) -> Self:
        """A copy in which fields of each subject are replaced."""
        pairs = zip(([self.subject] if self.subject else self.subjects) or [], changes, strict=True)
        subjects = [subject.model_copy(update=fields) for subject, fields in pairs]
        return self.model_copy(update={"subject": subjects[0]} if self.subject else {"subjects": subjects})

    @model_validator(mode="after")
    def _exactly_one_of_subject_and_subjects(self) -> Self:
        if (self.subject is None) == (self.subjects is None):
            got = "nothing" if self.subject is None else "subject and subjects"
            remedy = "set exactly one of subject, subjects, for example subject: {images: {uri: photos/}, class: dog}"
            raise rule_error("", f"sets {got}", remedy)
        return self

    @model_validator(mode="after")
    def _class_prompt_is_about_the_class(self) -> Self:
        prompt = self.prior_preservation.class_prompt
        if self.subject is None and self.prior_preservation.images is not None:
            rule, remedy = "applies to a single subject", "remove images: the class images of subjects are generated"
            raise rule_error("priorPreservation.images", rule, remedy)
        if prompt is None:
            return self
        if self.subject is None:
            rule = "applies to a single subject"
            raise rule_error("priorPreservation.classPrompt", rule, "set classPrompt in each item of subjects instead")
        if names_subject(prompt, self.subject):
            raise class_prompt_error("priorPreservation.classPrompt", self.subject, prompt)
        return self

    @model_validator(mode="after")
    def _identifiers_differ(self) -> Self:
        subjects = self.subjects or []
        fixed = [subject.identifier.lower() for subject in subjects if subject.identifier != "auto"]
        for identifier in fixed:
            if fixed.count(identifier) > 1:
                rule = (
                    f"the identifier {identifier!r} is used more than once, so prompts cannot tell the subjects apart"
                )
                raise rule_error("subjects", rule, "set a different rare word for each subject, or auto")
            for subject in subjects:
                prompt = subject.class_prompt or subject.class_
                if contains_word(prompt.lower(), identifier):
                    rule = f"the identifier {identifier!r} is a word of {prompt!r}, which describes a class"
                    raise rule_error("subjects", rule, "set a rare word, for example sks, or auto")
        return self

    @model_validator(mode="after")
    def _formats_of_the_method(self) -> Self:
        for name in self.output.formats or ():
            if name not in self.training.traits.formats:
                methods = " or ".join(methods_of_format(name))
                rule = f"contains {name}, which method {self.training.method} does not publish"
                raise rule_error("output.formats", rule, f"remove {name}, or set training.method: {methods}")
        given = [name for name in ("lora", "embeddings") if name in (self.output.formats or ())]
        if self.training.method in ADAPTER_WITH_TOKENS and len(given) == 1:
            missing = "embeddings" if given == ["lora"] else "lora"
            rule = f"the adapter and the tokens of method {self.training.method} need each other, and it contains only "
            raise rule_error("output.formats", rule + given[0], f"add {missing}, or remove {given[0]}")
        return self

    @model_validator(mode="after")
    def _validations_select_the_best_step(self) -> Self:
        validation = self.training.validation
        if self.output.select == "Best":
            if not self.training.traits.trains:
                rule = f"is Best, but method {self.training.method} trains no steps to select from"
                raise rule_error("output.select", rule, "remove select, or set another training.method")
            rule = "is Best, which is selected by the scores of validations"
            if validation is None:
                example = "training.validation, for example {prompts: ['a {} on the beach'], everySteps: 100}"
                raise rule_error("output.select", f"{rule}, and there are none", f"set {example}; or remove select")
            if not self.evaluation.enabled:
                remedy = "set evaluation.enabled: true, or remove select"
                raise rule_error("output.select", f"{rule}, and evaluation.enabled is false", remedy)
        elif validation is not None and validation.patience is not None:
            rule = "sets patience, which applies only to output.select: Best"
            raise rule_error("training.validation", rule, "set output.select: Best, or remove patience")
        return self

    @property
    def preservation(self) -> PreservationMode:
        """The mode of prior preservation.

        Defaults to Images, to Prediction with a HyperNetwork, and to None if the method does not change the weights.
        """
        if self.prior_preservation.mode is not None:
            return self.prior_preservation.mode
        if not self.training.traits.changes_weights:
            return "None"
        return "Prediction" if self.training.hyper_network else "Images"

    @property
    def uses_class_images(self) -> bool:
        """Whether training learns class images."""
        return self.preservation == "Images"

    @property
    def has_class_examples(self) -> bool:
        """Whether each step trains on as many examples with the class prompt as instance images."""
        return MODES[self.preservation].class_examples

    @property
    def prior_loss_weight(self) -> float | None:
        """Weight of the prior loss; None if there is none."""
        return self.prior_preservation.loss_weight or MODES[self.preservation].loss_weight

    @model_validator(mode="after")
    def _preservation_fits_the_method(self) -> Self:
        given, mode, method = self.prior_preservation, self.preservation, self.training.method
        present = [name for name in MODE_MEMBERS if getattr(given, name) not in (None, Sampler())]
        if not self.training.traits.changes_weights:
            for field in ([] if mode == "None" else ["mode"]) + [to_camel(name) for name in present]:
                rule = f"method {method} does not change the model's weights, so prior preservation does not apply"
                raise rule_error(f"priorPreservation.{field}", rule, f"remove {field}, or set training.method: LoRA")
        for name in present:
            if name not in MODES[mode].members:
                field, others = to_camel(name), " or ".join(modes_with(name))
                rule, remedy = f"does not apply to mode {mode}", f"remove {field}, or set mode: {others}"
                raise rule_error(f"priorPreservation.{field}", rule, remedy)
        return self


class Metadata(BaseModel):
    """The fields of ObjectMeta that a local run reads. The API server validates the others."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(pattern=DNS_LABEL, max_length=63, description="Name of the job.")
    namespace: str = Field(default="default", pattern=DNS_LABEL, description="Namespace of the job.")
    uid: str = Field(default="", pattern=UID, max_length=64, description="UID of the job on a cluster.")


class DreamBoothJob(Strict):
    """A complete DreamBoothJob, as in a job file or on a cluster."""

    api_version: ApiVersion = Field(description=API_VERSION)
    kind: Literal["DreamBoothJob"] = Field(description=KIND)
    metadata: Metadata
    spec: JobSpec
    status: JsonValue = Field(
        default=None, description="Observed state, written by the operator. Ignored in a job file."
    )
