"""`spec.training`: the fine-tuning."""

from __future__ import annotations

from typing import Literal, Self, cast

from pydantic import Field, JsonValue, field_validator, model_validator
from pydantic.alias_generators import to_camel

from dreambooth_api.deepspeed_keys import describe_issues, invalid_values, reserved_keys, unknown_keys
from dreambooth_api.fields import Strict, Template, rule_error, shared
from dreambooth_api.hypernetwork import HyperNetwork
from dreambooth_api.imageprompt import ImagePrompt
from dreambooth_api.methods import MEMBERS, METHODS, MethodTraits, methods_with
from dreambooth_api.nesting import MAX_DEPTH, is_deeper
from dreambooth_api.uris import BUILTIN_SPRITES

DEFAULT_STEPS = 1000  # of the paper
HYPER_NETWORK_SHARE = 10
"""With a HyperNetwork, the default number of steps is divided by this."""
MAX_VALIDATIONS = 100  # each writes images, which are kept
Tracker = Literal["tensorboard", "wandb", "mlflow"]


class TextEncoder(Strict):
    """Fine-tuning of the text encoder together with the denoiser.

    It improves faces and other fine detail, and needs more memory.
    """

    train: bool | None = Field(
        default=None, description="Whether to train the text encoder. Methods LoRA and DoRA add LoRA adapters to it."
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Learning rate of the text encoder, or of its new tokens. Defaults to training.learningRate; "
        "for PivotalTuning to the default of TextualInversion.",
    )


class Lora(Strict):
    """Low-rank adapters."""

    rank: int = Field(default=16, ge=1, le=1024, description="Rank of the low-rank update.")
    alpha: float | None = Field(
        default=None,
        gt=0,
        description="Scaling numerator: the update is multiplied by alpha / rank. Defaults to the rank.",
    )


class TextualInversion(Strict):
    """New tokens for the identifier."""

    vectors: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Number of tokens, each with an embedding of its own. More represent a subject in more detail, and "
        "leave less of the prompt's length.",
    )


class DeepSpeed(Strict):
    """DeepSpeed ZeRO: how optimizer state, gradients and parameters are partitioned across workers."""

    stage: Literal["auto", "1", "2", "3"] = Field(
        default="auto", description="ZeRO stage. auto selects the lowest stage that fits into the workers' memory."
    )
    offload_optimizer: bool = Field(default=False, description="Whether to offload optimizer state to host memory.")
    config: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="DeepSpeed configuration that is merged over the generated one. Only tuning of communication and "
        "memory, and profiling, can be set; all other keys are rejected with the list of those that can.",
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
            raise rule_error(
                "", f"is nested deeper than {MAX_DEPTH} levels", "use DeepSpeed's own keys, which need at most 4 levels"
            )
        return config

    @model_validator(mode="after")
    def _config_does_not_contradict_the_job(self) -> Self:
        if not self.config:  # as in nearly all jobs, which are parsed often
            return self
        if not isinstance(self.config.get("zero_optimization", {}), dict):
            raise rule_error("config.zero_optimization", "must be a mapping", "set training.deepspeed.stage instead")
        found = reserved_keys(self.config), unknown_keys(self.config), invalid_values(self.config)
        if any(found):
            raise rule_error("config", *describe_issues(*found))
        return self


class Validation(Strict):
    """Images that are generated during training, and their scores if the evaluation is enabled."""

    prompts: list[Template] = Field(
        min_length=1,
        max_length=8,
        description='Prompts; {} is replaced by the subject, for example "a {} on the beach". Each step that is '
        "validated has one image for each prompt and subject, always from the same noise.",
    )
    every_steps: int = Field(
        ge=1,
        le=1_000_000,
        description="Number of steps between validations, in addition to one before the first step and one after the "
        f"last. It must give at most {MAX_VALIDATIONS} validations after steps.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        le=MAX_VALIDATIONS,
        description="Number of validations in a row without a better step after which training stops. Requires "
        "output.select: Best, whose rule decides which step is better. Defaults to none: training runs to its last "
        "step.",
    )


class Training(Strict):
    """Fine-tuning hyperparameters. The loss is equation 2 of the paper."""

    method: Literal["Full", "LoRA", "DoRA", "TextualInversion", "PivotalTuning", "None"] = Field(
        default="Full",
        description="Fine-tuning method. "
        + "; ".join(f"{name} {traits.description}" for name, traits in METHODS.items())
        + ".",
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description=f"Number of optimizer steps. Defaults to {DEFAULT_STEPS}, as in the paper, for each subject; "
        f"{BUILTIN_SPRITES} has its own default. With hyperNetwork, the default is a tenth of that.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Peak learning rate. Defaults to 5e-6 for Full, as in the paper, 1e-4 for methods with adapters, "
        "and 5e-3 for TextualInversion; "
        f"{BUILTIN_SPRITES} has its own defaults.",
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
    min_snr_gamma: float | None = Field(
        default=None,
        gt=0,
        description="Gamma of min-SNR loss weights (Hang et al. 2023, which uses 5), for instance and class images "
        "alike. Defaults to none: all timesteps have the same weight, as in the paper.",
    )
    weight_decay: float = Field(default=0.01, ge=0, lt=1, description="Weight decay of AdamW.")
    text_encoder: TextEncoder = Field(
        default_factory=shared(TextEncoder), description="Fine-tuning of the text encoder."
    )
    resolution: int | None = Field(
        default=None,
        ge=16,
        le=4096,
        multiple_of=8,
        description="Side length of the square training images in pixels. Defaults to the resolution that the base "
        "model was trained with, from its configuration.",
    )
    random_crop: bool = Field(
        default=False,
        description="Whether to crop instance images at random positions along their longer side. By default, the "
        "center square is used.",
    )
    random_flip: bool = Field(
        default=False,
        description="Whether to mirror instance images horizontally at random. Not for subjects with text or "
        "asymmetric marks, which the model would learn mirrored.",
    )
    precision: Literal["bf16", "fp16", "fp32"] | None = Field(
        default=None,
        description="Number format of the forward and backward pass. Defaults to bf16 on GPUs that have it, fp16 on "
        "older GPUs, and fp32 on CPUs. The weights that the optimizer updates are always fp32.",
    )
    optimizer: Literal["AdamW", "AdamW8bit"] = Field(
        default="AdamW",
        description="AdamW8bit keeps the optimizer's state in 8 bits, with bitsandbytes. It needs a single GPU.",
    )
    compile: Literal["Auto", "Never"] = Field(
        default="Auto",
        description="Whether to compile the denoiser with torch.compile. Auto compiles on a single GPU if the run is "
        "long enough to repay the compilation.",
    )
    lora: Lora | None = Field(
        default=None, description=f"Settings of the adapters, for method {' or '.join(methods_with('lora'))}."
    )
    hyper_network: HyperNetwork | None = Field(
        default=None,
        description="HyperNetwork that predicts the adapter that training starts from, from the images of the subject. "
        f"It was trained for the base model, the rank and the alpha of the job. For method "
        f"{' or '.join(methods_with('hyper_network'))}.",
    )
    textual_inversion: TextualInversion | None = Field(
        default=None,
        description=f"Settings of the new tokens, for method {' or '.join(methods_with('textual_inversion'))}.",
    )
    image_prompt: ImagePrompt | None = Field(
        default=None,
        description=f"Settings of the image-prompt adapter, for method {' or '.join(methods_with('image_prompt'))}.",
    )
    deepspeed: DeepSpeed = Field(default_factory=shared(DeepSpeed), description="DeepSpeed ZeRO settings.")
    checkpoint_every_steps: int | None = Field(
        default=None,
        ge=1,
        description="Number of steps between checkpoints, in addition to one every ten minutes.",
    )
    validation: Validation | None = Field(
        default=None,
        description="Images that are generated during training. They do not change the weights of a step; with "
        "output.select: Best, their scores select the step that is published.",
    )
    report_to: list[Tracker] | None = Field(
        default=None,
        min_length=1,
        max_length=3,
        description="Experiment trackers that receive losses, learning rate and validations. Each requires the extra "
        "of its name. Credentials are read from environment variables.",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed for noise, data order and timesteps.")

    @property
    def traits(self) -> MethodTraits:
        """What the method trains and publishes."""
        return METHODS[self.method]

    @property
    def adapters(self) -> Lora:
        """Settings of the adapters, with defaults."""
        return self.lora or Lora()

    def default_steps(self, usual: int) -> int:
        """The default number of steps, where `usual` is that of a training that starts from the base model."""
        return usual if self.hyper_network is None else max(1, usual // HYPER_NETWORK_SHARE)

    @property
    def vectors(self) -> int:
        """Number of new tokens per identifier."""
        return (self.textual_inversion or TextualInversion()).vectors

    @property
    def image_prompts(self) -> ImagePrompt | None:
        """Settings of the image-prompt adapter, with defaults; None if the method has none."""
        return (self.image_prompt or ImagePrompt()) if "image_prompt" in self.traits.members else None

    @property
    def trackers(self) -> tuple[Tracker, ...]:
        """The experiment trackers of the job."""
        return tuple(self.report_to or ())

    @model_validator(mode="after")
    def _only_members_of_the_method(self) -> Self:
        for name in MEMBERS:
            if name not in self.traits.members and getattr(self, name) is not None:
                at = to_camel(name)
                methods = " or ".join(methods_with(name))
                rule = f"does not apply to method {self.method}"
                raise rule_error(at, rule, f"remove {at}, or set method: {methods}")
        return self

    @model_validator(mode="after")
    def _only_training_has_settings(self) -> Self:
        if self.traits.trains:
            return self
        given = [to_camel(name) for name in SETTINGS_OF_TRAINING if getattr(self, name) != _default(name)]
        if given:
            fields = " and ".join(given)
            rule = f"method {self.method} trains nothing, so {fields} {'does' if len(given) == 1 else 'do'} not apply"
            raise rule_error(given[0], rule, f"remove {fields}, or set another method")
        return self

    @model_validator(mode="after")
    def _new_tokens_need_frozen_text_encoders(self) -> Self:
        if self.traits.tokens and self.text_encoder.train:
            rule = f"method {self.method} trains new tokens only, not the weights of the text encoder"
            raise rule_error("textEncoder.train", rule, "remove train, or set method: LoRA")
        return self

    @model_validator(mode="after")
    def _within_steps(self) -> Self:
        for name, steps in (("warmupSteps", self.warmup_steps), ("checkpointEverySteps", self.checkpoint_every_steps)):
            if self.steps is not None and steps is not None and steps > self.steps:
                raise rule_error(name, f"{steps} exceeds steps, which is {self.steps}", f"decrease {name}")
        return self

    @model_validator(mode="after")
    def _few_validations(self) -> Self:
        interval = self.validation.every_steps if self.validation else None
        if self.steps is not None and interval is not None and self.steps > MAX_VALIDATIONS * interval:
            rule, remedy = too_many_validations(self.steps)
            raise rule_error("validation.everySteps", f"{interval} {rule}", remedy)
        return self

    @model_validator(mode="after")
    def _each_tracker_once(self) -> Self:
        trackers = self.trackers
        repeated = [name for index, name in enumerate(trackers) if name in trackers[:index]]
        if repeated:
            raise rule_error("reportTo", f"contains {repeated[0]} more than once", "list each tracker once")
        return self


SETTINGS_OF_TRAINING = tuple(
    name for name in Training.model_fields if name not in (*MEMBERS, "method", "resolution", "precision", "seed")
)
"""Fields of `spec.training` that do not apply to a method that trains nothing. `MEMBERS` belong to other methods."""


def _default(name: str) -> object:
    return Training.model_fields[name].get_default(call_default_factory=True)


def too_many_validations(steps: int) -> tuple[str, str]:
    """Rule and remedy of an interval that gives more than MAX_VALIDATIONS validations."""
    rule = f"gives more than {MAX_VALIDATIONS} validations in {steps} steps"
    return rule, f"set {-(-steps // MAX_VALIDATIONS)} or more"
