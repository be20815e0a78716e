"""Patch of a pod template. The fields that the operator reads are typed; the others are passed on to Kubernetes."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from dreambooth_api.fields import Strict, rule_error

# Set by the operator: a restarted head would train a second time, and reports need the job's own account.
_OPERATORS_FIELDS = ("restartPolicy", "serviceAccount", "serviceAccountName")


class Patch(Strict):
    """Base of patches. Other fields are allowed and not checked."""

    model_config = ConfigDict(extra="allow")


class MountPatch(Patch):
    """Mount of a container. Mounts are merged by mountPath."""

    mount_path: str = Field(description="Path in the container.")
    name: str | None = Field(default=None, description="Name of the volume.")


class ContainerPatch(Patch):
    """Container. Containers are merged by name, their environment variables by name."""

    name: str = Field(description="Name of the container: ray-head or ray-worker for Ray's, else it is added.")
    volume_mounts: list[MountPatch] | None = Field(default=None, description="Mounts, merged by mountPath.")


class ClaimPatch(Patch):
    """PersistentVolumeClaim of a volume."""

    claim_name: str = Field(description="Name of the claim in the job's namespace.")


class VolumePatch(Patch):
    """Volume. Volumes are merged by name."""

    name: str = Field(description="Name of the volume.")
    persistent_volume_claim: ClaimPatch | None = Field(default=None, description="Claim of the volume.")


class PodSpecPatch(Patch):
    """Fields of the pods' spec."""

    containers: list[ContainerPatch] | None = Field(default=None, description="Containers, merged by name.")
    init_containers: list[ContainerPatch] | None = Field(default=None, description="Init containers, merged by name.")
    volumes: list[VolumePatch] | None = Field(default=None, description="Volumes, merged by name.")

    @model_validator(mode="after")
    def _leaves_fields_of_the_operator(self) -> Self:
        extra: dict[str, Any] = self.model_extra or {}
        if names := [name for name in _OPERATORS_FIELDS if name in extra]:
            raise rule_error("", f"sets {' and '.join(names)}, which the operator sets", "remove the field")
        return self


class MetadataPatch(Strict):
    """Labels and annotations of the pods."""

    labels: dict[str, str] | None = Field(default=None, max_length=64, description="Labels of the pods.")
    annotations: dict[str, str] | None = Field(default=None, max_length=64, description="Annotations of the pods.")


class PodTemplatePatch(Strict):
    """Strategic merge patch of a pod template."""

    metadata: MetadataPatch | None = Field(default=None, description="Labels and annotations of the pods.")
    spec: PodSpecPatch | None = Field(
        default=None, description="Fields of the pods' spec. Fields that are not listed here are merged as well."
    )
