"""Volume with models for jobs that do not download them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from dreambooth_api.environment import MODELS_PATH
from dreambooth_api.fields import RELATIVE_PATH, ObjectName, Strict, rule_error

_SOURCES = ("claim_name", "host_path", "image")


class ModelCache(Strict):
    """Volume with models, mounted read-only in the pods of a job. Set exactly one of claimName, hostPath and image."""

    claim_name: ObjectName | None = Field(
        default=None, description="PersistentVolumeClaim in the job's namespace. It may be that of the job's output."
    )
    path: str = Field(default="", pattern=RELATIVE_PATH, description="Folder in the volume of claimName.")
    host_path: str | None = Field(
        default=None,
        pattern=r"^/[^:\x00-\x1f]*$",
        max_length=1000,
        description="Folder on each node. The baseline and restricted Pod Security Standards do not allow it.",
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=500,
        description="OCI image or artifact with the models. Requires image volumes, which Kubernetes 1.35 enables by "
        "default.",
    )
    layout: Literal["HubCache", "Folders"] = Field(
        default="HubCache",
        description="HubCache: a Hugging Face cache. HF_HOME is set to its path, and HF_HUB_OFFLINE to 1. Folders: "
        f"folders of models, for example model.id: {MODELS_PATH}/stable-diffusion-v1-5.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [to_camel(name) for name in _SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "nothing"
            raise rule_error("", f"sets {got}", "set exactly one of claimName, hostPath, image")
        if self.path and self.claim_name is None:
            raise rule_error("path", f"is a folder in the volume of claimName, and {given[0]} is set", "remove path")
        return self
