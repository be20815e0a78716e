"""`spec.output`: the published model."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dreambooth_api.fields import Strict, VolumeClaim, rule_error
from dreambooth_api.methods import METHODS
from dreambooth_api.uris import HUB, OBJECT_STORES, OUTPUT_URI

Format = Literal["diffusers", "safetensors", "lora", "embeddings", "ip-adapter"]


class Output(Strict):
    """Destination of the published model. At most one of uri and pvc may be set. A local run defaults to out/<name>."""

    uri: str | None = Field(
        default=None,
        pattern=OUTPUT_URI,
        description=f"Destination folder: a local path, {OBJECT_STORES}. Or a model repository on the Hugging Face "
        f"Hub, {HUB}<owner>/<name>, which is created as a private one if it does not exist.",
    )
    pvc: VolumeClaim | None = Field(default=None, description="Destination folder on a PersistentVolumeClaim.")
    formats: list[Format] | None = Field(
        default=None,
        min_length=1,
        max_length=3,
        description="Formats to publish: diffusers is a folder and safetensors a single file of the complete model; "
        "lora is the adapter and embeddings are the new tokens, of methods that train them; ip-adapter is "
        "an image-prompt adapter with the embeddings of the subject's images. "
        + "; ".join(f"{name} defaults to [{', '.join(traits.default_formats)}]" for name, traits in METHODS.items())
        + ". A single file cannot contain new tokens.",
    )
    select: Literal["Last", "Best"] = Field(
        default="Last",
        description="Weights to publish. Last: those after the last step. Best: those of the validated step with the "
        "highest DINO score, of the steps that keep at least 85 % of the base model's CLIP-T; if none does, those with "
        "the highest CLIP-T. Best requires training.validation and an enabled evaluation.",
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
            raise rule_error("", "uri and pvc are both set", "set only one of them")
        return self
