"""Parts of Kubernetes' pod API that a runtime passes on to a job's pods."""

from __future__ import annotations

from typing import Self

from pydantic import Field, JsonValue, model_validator

from dreambooth_api.fields import ObjectRef, Strict, rule_error

RESERVED_PREFIX = "DREAMBOOTH_"


class EnvVar(Strict):
    """Environment variable, as in a container."""

    name: str = Field(
        pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$",
        max_length=253,
        description="Name of the variable. Names that begin with DREAMBOOTH_ are reserved.",
    )
    value: str | None = Field(default=None, max_length=32768, description="Value of the variable.")
    value_from: dict[str, JsonValue] | None = Field(
        default=None,
        description="Source of the value, for example secretKeyRef: {name: hub, key: token}. Same as valueFrom in a "
        "container.",
    )

    @model_validator(mode="after")
    def _name_is_not_reserved(self) -> Self:
        if self.name.startswith(RESERVED_PREFIX):
            raise rule_error("name", f"names that begin with {RESERVED_PREFIX} are reserved", "use another name")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.value is not None and self.value_from is not None:
            raise rule_error("", "sets value and valueFrom", "set only one of them")
        return self


class EnvFrom(Strict):
    """Secret or ConfigMap whose keys are environment variables, as in a container."""

    prefix: str | None = Field(default=None, max_length=253, description="Prefix of the names of the variables.")
    config_map_ref: ObjectRef | None = Field(default=None, description="ConfigMap in the job's namespace.")
    secret_ref: ObjectRef | None = Field(default=None, description="Secret in the job's namespace.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.config_map_ref is None) == (self.secret_ref is None):
            got = "both" if self.secret_ref else "neither"
            raise rule_error("", f"sets {got} of configMapRef and secretRef", "set one of them")
        return self
