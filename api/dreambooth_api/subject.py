"""`spec.subject(s)` and `spec.priorPreservation`: what to learn, and the class images that keep the class."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from dreambooth_api.fields import TOKEN, ObjectRef, Phrase, Strict, VolumeClaim, rule_error, shared
from dreambooth_api.preservation import MODES, PreservationMode
from dreambooth_api.uris import BUILTIN_SPRITES, BUILTIN_SUBJECT, OBJECT_STORES, SOURCE_URI
from dreambooth_api.words import contains_word

# The size of the list bounds the estimated cost of the CEL rules, and the size of the status.
MAX_SUBJECTS = 8
MAX_DEFAULT_CLASS_IMAGES = 1000


class ImageSource(Strict):
    """Source of images. Exactly one of uri, pvc, configMap, secret must be set."""

    uri: str | None = Field(
        default=None,
        pattern=SOURCE_URI,
        description=f"Folder or ZIP archive of images: a local path, {OBJECT_STORES}; an https:// URL of a ZIP "
        f"archive; or {BUILTIN_SUBJECT} for a built-in cartoon subject.",
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
            raise rule_error("", f"sets {got}", "set exactly one of uri, pvc, configMap, secret")
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
                raise rule_error(
                    named[0], "a custom prompt requires a fixed identifier, and identifier is auto", remedy
                )
            return self
        for where, text in prompts.items():
            if text is not None and not contains_word(text, self.identifier):
                rule = f"{text!r} does not contain the identifier {self.identifier!r} as a separate word"
                raise rule_error(where, rule, f"write, for example, 'a {self.identifier} {self.class_}'")
        return self

    @model_validator(mode="after")
    def _identifier_is_not_the_class(self) -> Self:
        if self.identifier != "auto" and contains_word(self.class_.lower(), self.identifier.lower()):
            rule = f"{self.identifier!r} is a word of the class {self.class_!r}, so prompts cannot tell the two apart"
            raise rule_error("identifier", rule, "set a rare word, for example identifier: sks, or auto")
        return self


class ListedSubject(Subject):
    """One of several subjects, with the class prompt of its class."""

    class_prompt: Phrase | None = Field(
        default=None,
        description='Prompt for the class images of this subject. Defaults to "a <class>". Subjects with the same '
        "class prompt share class images.",
    )

    @model_validator(mode="after")
    def _class_prompt_is_about_the_class(self) -> Self:
        if self.class_prompt is not None and names_subject(self.class_prompt, self):
            raise class_prompt_error("classPrompt", self, self.class_prompt)
        return self


def names_subject(prompt: str, subject: Subject) -> bool:
    """Whether a class prompt contains the identifier. `auto` never selects a word of the prompt."""
    return subject.identifier != "auto" and contains_word(prompt.lower(), subject.identifier.lower())


def class_prompt_error(at: str, subject: Subject, prompt: str) -> PydanticCustomError:
    """A class prompt that contains the identifier of the subject."""
    rule = f"{prompt!r} contains the identifier {subject.identifier!r}, so class images would be images of the subject"
    return rule_error(at, rule, f"write, for example, 'a {subject.class_}'")


NoiseScheduler = Literal["Default", "DPMSolverMultistep"]
"""The model's own noise scheduler, or a class of diffusers without "Scheduler"."""


class Sampler(Strict):
    """Sampling settings for image generation."""

    scheduler: NoiseScheduler = Field(
        default="Default",
        description="Noise scheduler. Default uses the base model's. DPMSolverMultistep is DPM-Solver++ with "
        "Karras sigmas, which needs fewer steps; steps then defaults to at most 25.",
    )
    steps: int | None = Field(default=None, ge=1, le=1000, description="Denoising steps per image.")
    guidance_scale: float | None = Field(
        default=None,
        ge=1,
        le=50,
        description="Classifier-free guidance scale. Lower values give more diverse images; 1 disables guidance.",
    )


class PriorPreservation(Strict):
    """Prior preservation (paper, section 3.2): a second loss that preserves the model's prior for the class."""

    mode: PreservationMode | None = Field(
        default=None,
        description=f"Prior loss. {'; '.join(f'{name}: {traits.description}' for name, traits in MODES.items())}. With "
        "None, expect language drift and less diverse images of the class. Defaults to Images; "
        "Prediction with training.hyperNetwork; None for method TextualInversion, which does not change the model's "
        "weights and supports no other mode.",
    )
    num_class_images: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Number of class images, split evenly between the class prompts of several subjects. Defaults to "
        f"200 per subject image, at most {MAX_DEFAULT_CLASS_IMAGES}; {BUILTIN_SPRITES} has its own default. At most "
        "steps x globalBatchSize are generated, because training uses no more. Only for mode Images.",
    )
    images: ImageSource | None = Field(
        default=None,
        description="Your own class images, for a single subject. They are used first, in the order of their names; "
        "only the rest of numClassImages is generated, which then defaults to at least their number. Only for mode "
        "Images.",
    )
    loss_weight: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Weight of the prior loss (lambda in the paper). Defaults to "
        f"{', '.join(f'{m.loss_weight:g} for {name}' for name, m in MODES.items() if m.loss_weight)}.",
    )
    class_prompt: Phrase | None = Field(
        default=None,
        description="Class prompt, used for class images, for the prior loss and for the evaluation. "
        'Defaults to "a <class>". With several subjects, set subjects[].classPrompt instead.',
    )
    sampler: Sampler = Field(
        default_factory=shared(Sampler), description="Sampling settings for class images. Only for mode Images."
    )
    sharing: Literal["Cluster", "Namespace", "Job"] = Field(
        default="Namespace",
        description="Scope in which other jobs may reuse these class images, and the base model's images of the "
        "evaluation. They contain no subject data. Cluster means namespaces with the same key, see Share class images; "
        "without a key, it is the same as Namespace.",
    )
