"""`DreamBoothRuntime`: what the platform team decides, so that a user need not know it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dreambooth_api.job import DNS_LABEL, BaseModelRef, ObjectName, Quantity, Strict, Toleration
from dreambooth_api.uris import OBJECT_STORE_URI

# The runtime of a job that names none.
DEFAULT_RUNTIME = "default"


class PodResources(Strict):
    """Resources of one pod, asked for; of memory and GPUs it gets no more."""

    cpu: Quantity = Field(description="CPU cores.")
    memory: Quantity = Field(description="Memory.")
    gpu: int = Field(default=0, ge=0, le=16, description="GPUs.")


# Each pod has a class of its own, because the API server fills in what is left out of a part by the part's schema.
class HeadResources(PodResources):
    """Resources of the Ray head."""

    cpu: Quantity = Field(default="2", description="CPU cores.")
    memory: Quantity = Field(default="8Gi", description="Memory.")


class WorkerResources(PodResources):
    """Resources of one worker."""

    cpu: Quantity = Field(default="4", description="CPU cores.")
    memory: Quantity = Field(default="16Gi", description="Memory.")
    gpu: int = Field(default=1, ge=0, le=16, description="GPUs. 0 trains on CPUs.")


class Pods(Strict):
    """Shape and place of the pods that a job runs in."""

    head: HeadResources = Field(
        default_factory=HeadResources, description="The Ray head, which drives a job and trains nothing."
    )
    worker: WorkerResources = Field(
        default_factory=WorkerResources, description="One worker, where the job does not say otherwise."
    )
    gpu_resource: str = Field(
        default="nvidia.com/gpu", min_length=1, max_length=253, description="Name of the GPU resource on the nodes."
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, max_length=32, description="Labels that nodes must have, besides the job's."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list[Toleration],
        max_length=32,
        description="Taints that the pods tolerate, besides the job's.",
    )
    shared_memory: Quantity = Field(default="2Gi", description="Size of /dev/shm, which Ray and PyTorch share.")


class Storage(Strict):
    """Where jobs work, and where models go when a job does not say."""

    claim_name: ObjectName | None = Field(
        default=None,
        description="A PersistentVolumeClaim in the job's namespace, shared by all pods of a job (ReadWriteMany for "
        "more than one node). A job works in its folder <job>. Without one, jobs must name a volume themselves.",
    )
    uri: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        pattern=OBJECT_STORE_URI,
        description="An s3:// or gs:// folder that models are uploaded to, into <namespace>/<job> below it.",
    )
    credentials_secret: ObjectName | None = Field(
        default=None,
        description="A Secret in the job's namespace whose keys become the trainer's environment, "
        "such as AWS_ACCESS_KEY_ID.",
    )


class Defaults(Strict):
    """Values for what a job leaves open."""

    steps: int | None = Field(default=None, ge=1, le=1_000_000, description="For spec.training.steps.")
    learning_rate: float | None = Field(default=None, gt=0, lt=1, description="For spec.training.learningRate.")
    resolution: int | None = Field(
        default=None, ge=16, le=4096, multiple_of=8, description="For spec.training.resolution, pixels."
    )
    precision: Literal["bf16", "fp32"] | None = Field(default=None, description="For spec.training.precision.")
    num_class_images: int | None = Field(
        default=None, ge=1, le=100_000, description="For spec.priorPreservation.numClassImages."
    )
    active_deadline_seconds: int | None = Field(
        default=None, ge=1, description="For spec.runPolicy.activeDeadlineSeconds."
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None, ge=0, description="For spec.runPolicy.ttlSecondsAfterFinished."
    )
    queue_name: ObjectName | None = Field(default=None, description="For spec.runPolicy.queueName.")
    priority_class_name: ObjectName | None = Field(default=None, description="For spec.runPolicy.priorityClassName.")


class Bounds(Strict):
    """The most that a job may ask for. A job beyond a bound is not started, and says which and why."""

    max_workers: int | None = Field(default=None, ge=1, le=1024, description="For workers and elastic.maxWorkers.")
    max_gpus: int | None = Field(default=None, ge=0, le=16384, description="For workers times GPUs a worker.")
    max_steps: int | None = Field(default=None, ge=1, description="For spec.training.steps.")
    max_resolution: int | None = Field(default=None, ge=16, description="For spec.training.resolution, pixels.")
    max_class_images: int | None = Field(default=None, ge=1, description="For spec.priorPreservation.numClassImages.")
    max_active_deadline_seconds: int | None = Field(
        default=None, ge=1, description="For spec.runPolicy.activeDeadlineSeconds, which jobs must then set."
    )
    images: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Prefixes of container images that a job may name in spec.cluster.image. Empty: none but ours.",
    )
    models: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Base models that a job may name in spec.model.id. Empty: none but this runtime's.",
    )


class RuntimeSpec(Strict):
    """A base model, a container image, a GPU shape, storage, defaults and bounds."""

    model: BaseModelRef = Field(default_factory=BaseModelRef, description="Base model of jobs that name none.")
    image: str = Field(min_length=1, max_length=500, description="Container image of the trainer, with Ray.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="When nodes pull the image."
    )
    ray_version: str = Field(
        default="2.60.0",
        pattern=r"^\d+\.\d+\.\d+$",
        max_length=20,
        description="Version of Ray in the image: 2.53 or newer.",
    )
    pods: Pods = Field(default_factory=Pods, description="Shape and place of the pods.")
    storage: Storage = Field(default_factory=Storage, description="Where models go when a job does not say.")
    defaults: Defaults = Field(default_factory=Defaults, description="Values for what a job leaves open.")
    bounds: Bounds = Field(default_factory=Bounds, description="The most that a job may ask for.")
    allowed_namespaces: list[str] = Field(
        default_factory=list,
        max_length=1000,
        description="Namespaces whose jobs may use this runtime. Empty: all.",
        json_schema_extra={"items": {"type": "string", "pattern": DNS_LABEL, "maxLength": 63}},
    )
