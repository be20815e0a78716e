"""`status.startedWith`: what a job was started with. Its retries and the deletion of its data use the same."""

from __future__ import annotations

from pydantic import Field, JsonValue

from dreambooth_api.fields import RELATIVE_PATH, ObjectName
from dreambooth_api.lenient import Lenient

DIGEST = r"^sha256:[0-9a-f]{64}$"


class StartedRuntime(Lenient):
    """Identity of the runtime at the first attempt."""

    name: str = Field(max_length=253, description="Name of the runtime.")
    uid: str = Field(default="", max_length=63, description="UID of the runtime.")
    generation: int = Field(default=0, description="metadata.generation of the runtime.")
    parent: str | None = Field(
        default=None, max_length=253, description="Name of the parent of a LocalDreamBoothRuntime; else not set."
    )


class StartedModelSource(Lenient):
    """A model as requested."""

    id: str = Field(max_length=500, description="Hugging Face Hub ID, path, or built-in model.")
    revision: str | None = Field(default=None, max_length=200, description="Commit, tag or branch on the Hub.")


class StartedModel(StartedModelSource):
    """Base model as requested. `status.modelCommit` is its commit."""

    super_resolution: StartedModelSource | None = Field(
        default=None,
        description="Super-resolution model, as requested. status.superResolutionCommit is its commit.",
    )


class StartedRunPolicy(Lenient):
    """Run policy at the first attempt, with the runtime's defaults and bounds. It applies if the runtime is gone."""

    active_deadline_seconds: int | None = Field(default=None, description="activeDeadlineSeconds.")
    max_active_deadline_seconds: int | None = Field(
        default=None, description="Upper bound of activeDeadlineSeconds that the runtime sets."
    )
    ttl_seconds_after_finished: int | None = Field(default=None, description="ttlSecondsAfterFinished.")
    queue_name: str | None = Field(default=None, max_length=253, description="queueName.")


class StartedWith(Lenient):
    """What the first attempt was started with."""

    runtime: StartedRuntime = Field(description="Identity of the runtime.")
    image: str = Field(max_length=500, description="Container image of the trainer.")
    image_digest: str | None = Field(
        default=None, pattern=DIGEST, description="Digest of the image, as the first pod runs it."
    )
    model: StartedModel = Field(description="Base model, as requested.")
    claim_name: ObjectName = Field(max_length=253, description="PersistentVolumeClaim that the job works in.")
    folder: str = Field(pattern=RELATIVE_PATH, description="Folder of the job on that claim.")
    uri: str | None = Field(
        default=None, description="Folder in an object store, or repository on the Hub, that the model is uploaded to."
    )
    class_image_store: str = Field(default="", description="Where class images are shared, as seen by the pods.")
    deletion_policy: str = Field(default="Retain", max_length=63, description="deletionPolicy of the output.")
    run_policy: StartedRunPolicy = Field(
        default_factory=StartedRunPolicy, description="Run policy that applies if the runtime is gone."
    )
    erasure: dict[str, JsonValue] | None = Field(
        default=None,
        description="Fields of the runtime for the pod that deletes the job's data. Set with deletionPolicy Delete.",
    )
