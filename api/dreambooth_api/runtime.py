"""The `DreamBoothRuntime` API: settings that the platform team manages on behalf of users."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dreambooth_api.environment import MODELS_PATH
from dreambooth_api.fields import DNS_LABEL, ObjectName, ObjectRef, Quantity, Strict
from dreambooth_api.job import API_VERSION, ApiVersion, Toleration
from dreambooth_api.model import BaseModelRef
from dreambooth_api.modelcache import ModelCache
from dreambooth_api.network import Network
from dreambooth_api.podspec import EnvFrom, EnvVar
from dreambooth_api.podtemplate import PodTemplatePatch
from dreambooth_api.uris import ARCHIVE_BOUND, HUB, OBJECT_STORE_URI, OBJECT_STORES, OUTPUT_BOUND, VOLUME

# Stands for the job's namespace in bounds.outputs.
NAMESPACE_PLACEHOLDER = "{namespace}"
ArchiveBound = Annotated[str, Field(pattern=ARCHIVE_BOUND, max_length=1000)]
OutputBound = Annotated[str, Field(pattern=OUTPUT_BOUND, max_length=1000)]


class PodResources(Strict):
    """Resource requests of one pod. For memory and GPUs, the limit equals the request; CPU has no limit."""

    cpu: Quantity = Field(description="Number of CPU cores.")
    memory: Quantity = Field(description="Memory, for example 16Gi.")
    gpu: int = Field(default=0, ge=0, le=16, description="Number of GPUs.")
    ephemeral_storage: Quantity | None = Field(
        default=None,
        description="Request and limit of local disk for downloaded models, logs and objects that Ray spills, for "
        "example 50Gi. Without it, the pod has neither.",
    )
    pod_template: PodTemplatePatch | None = Field(
        default=None,
        description="Strategic merge patch of the pod, for example for affinity, runtimeClassName, schedulerName, "
        "volumes and devices. It is applied last and can lift the restricted security context.",
    )


# Each pod has its own class, because the API server applies defaults by the schema of each object.
class HeadResources(PodResources):
    """Resource requests and placement of the Ray head pod."""

    cpu: Quantity = Field(default="2", description="Number of CPU cores.")
    memory: Quantity = Field(default="8Gi", description="Memory, for example 16Gi.")
    node_selector: dict[str, str] = Field(
        default_factory=dict,
        max_length=32,
        description="Labels that nodes must have to run the head pod, and the pod that deletes a job's data. "
        "pods.nodeSelector and the job's nodeSelector do not apply to them.",
    )
    tolerations: list[Toleration] = Field(
        default_factory=list[Toleration],
        max_length=32,
        description="Tolerations of the head pod, and of the pod that deletes a job's data. pods.tolerations and the "
        "job's tolerations do not apply to them.",
    )


class WorkerResources(PodResources):
    """Resource requests of one worker pod."""

    cpu: Quantity = Field(default="4", description="Number of CPU cores.")
    memory: Quantity = Field(default="16Gi", description="Memory, for example 16Gi.")
    gpu: int = Field(default=1, ge=0, le=16, description="Number of GPUs. 0 trains on CPUs.")
    gpu_memory: Quantity | None = Field(
        default=None,
        description="Memory of each GPU, for example 80Gi. Only `dreambooth plan --runtime` reads it. Defaults to that "
        "of the product in the node label nvidia.com/gpu.product, if nodeSelector has it.",
    )


class Pods(Strict):
    """Resources and placement of a job's pods."""

    head: HeadResources = Field(
        default_factory=HeadResources, description="Ray head pod. It coordinates the job and does not train."
    )
    worker: WorkerResources = Field(
        default_factory=WorkerResources, description="Default resources of each worker pod. A job may override them."
    )
    gpu_resource: str = Field(
        default="nvidia.com/gpu",
        min_length=1,
        max_length=253,
        description="Name of the extended resource that provides GPUs.",
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict,
        max_length=32,
        description="Labels that nodes must have to run worker pods, in addition to the job's.",
    )
    tolerations: list[Toleration] = Field(
        default_factory=list[Toleration],
        max_length=32,
        description="Tolerations of worker pods in addition to the job's.",
    )
    shared_memory: Quantity = Field(
        default="2Gi",
        description="Size of /dev/shm, which counts as memory of the container. One half is for the Ray object store, "
        "the other for PyTorch and NCCL.",
    )
    env: list[EnvVar] = Field(
        default_factory=list[EnvVar], max_length=128, description="Environment variables of all pods of a job."
    )
    env_from: list[EnvFrom] = Field(
        default_factory=list[EnvFrom],
        max_length=32,
        description="Secrets and ConfigMaps whose keys are environment variables of all pods of a job.",
    )
    image_pull_secrets: list[ObjectRef] = Field(
        default_factory=list[ObjectRef],
        max_length=32,
        description="Secrets in the job's namespace with credentials for the registry of the image.",
    )
    labels: dict[str, str] = Field(default_factory=dict, max_length=64, description="Labels of all pods of a job.")
    annotations: dict[str, str] = Field(
        default_factory=dict, max_length=64, description="Annotations of all pods of a job."
    )
    service_account_annotations: dict[str, str] = Field(
        default_factory=dict,
        max_length=64,
        description="Annotations of each job's ServiceAccount, for example eks.amazonaws.com/role-arn for access to "
        "an object store without keys.",
    )


class Storage(Strict):
    """Working storage of jobs, and the default destination of models."""

    claim_name: ObjectName | None = Field(
        default=None,
        description="PersistentVolumeClaim in the job's namespace, shared by all pods of a job. It must be "
        "ReadWriteMany if pods run on more than one node. Each job uses the folder that has its name. "
        "Without claimName, jobs must set output.pvc, and bounds.outputs must allow it.",
    )
    uri: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        pattern=OBJECT_STORE_URI,
        description=f"Folder in an object store, {OBJECT_STORES}. Models are uploaded to <uri>/<namespace>/<job>.",
    )
    credentials_secret: ObjectName | None = Field(
        default=None,
        description="Secret in the job's namespace whose keys are set as environment variables of the trainer, for "
        "example AWS_ACCESS_KEY_ID.",
    )


class Defaults(Strict):
    """Defaults for fields that a job does not set."""

    steps: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Default of spec.training.steps.",
    )
    learning_rate: float | None = Field(default=None, gt=0, lt=1, description="Default of spec.training.learningRate.")
    resolution: int | None = Field(
        default=None, ge=16, le=4096, multiple_of=8, description="Default of spec.training.resolution, in pixels."
    )
    precision: Literal["bf16", "fp16", "fp32"] | None = Field(
        default=None, description="Default of spec.training.precision."
    )
    num_class_images: int | None = Field(
        default=None, ge=1, le=100_000, description="Default of spec.priorPreservation.numClassImages."
    )
    active_deadline_seconds: int | None = Field(
        default=None, ge=1, description="Default of spec.runPolicy.activeDeadlineSeconds."
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None, ge=0, description="Default of spec.runPolicy.ttlSecondsAfterFinished."
    )
    queue_name: ObjectName | None = Field(default=None, description="Default of spec.runPolicy.queueName.")
    priority_class_name: ObjectName | None = Field(
        default=None, description="Default of spec.runPolicy.priorityClassName."
    )
    workload_priority_class_name: ObjectName | None = Field(
        default=None, description="Default of spec.runPolicy.workloadPriorityClassName."
    )


class Bounds(Strict):
    """Bounds for jobs. A job that exceeds a bound is Rejected with a message that names every exceeded bound.

    The runtime's own values and defaults are always allowed.
    """

    max_workers: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="Upper bound of spec.cluster.workers and spec.cluster.elastic.maxWorkers.",
    )
    max_gpus: int | None = Field(
        default=None,
        ge=0,
        le=16384,
        description="Upper bound of the total number of GPUs: workers times GPUs per worker. If not set, a worker may "
        "have at most the runtime's number of GPUs.",
    )
    max_cpu: Quantity | None = Field(
        default=None,
        description="Upper bound of spec.cluster.resources.cpu, per worker. Defaults to the runtime's worker.",
    )
    max_memory: Quantity | None = Field(
        default=None,
        description="Upper bound of spec.cluster.resources.memory, per worker. Defaults to the runtime's worker.",
    )
    max_steps: int = Field(default=10_000, ge=1, description="Upper bound of spec.training.steps.")
    max_resolution: int | None = Field(
        default=None,
        ge=16,
        description="Upper bound of spec.training.resolution, in pixels. Jobs must then have a resolution, their own "
        "or the runtime's default. If not set, 4096 is the limit.",
    )
    max_class_images: int = Field(
        default=5_000, ge=1, description="Upper bound of spec.priorPreservation.numClassImages."
    )
    max_active_deadline_seconds: int = Field(
        default=604_800,
        ge=1,
        description="Upper bound of spec.runPolicy.activeDeadlineSeconds, and the deadline of jobs without one if the "
        "runtime has no default.",
    )
    images: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Container images allowed in spec.cluster.image: registries, repositories and everything below "
        "them, tags or digests. If empty, only the runtime's image is allowed.",
    )
    models: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Models allowed in spec.model, its superResolution, training.imagePrompt.adapter and "
        "training.hyperNetwork, as <id>, or as <id>@<revision> for that revision only. <id> allows no other revision "
        "than the default branch. If empty, only the runtime's models are allowed.",
    )
    outputs: list[OutputBound] = Field(
        default_factory=list[OutputBound],
        max_length=64,
        description=f"Folders allowed in spec.output, with everything below them: in {OBJECT_STORES}, repositories of "
        f"an owner on the Hugging Face Hub as {HUB}<owner>, or on volumes as {VOLUME}<claim>/<path>. {VOLUME} alone "
        f"means all claims of the job's namespace, and {NAMESPACE_PLACEHOLDER} "
        "that namespace. If empty, a job can use only its own folder in the runtime's storage.",
    )
    image_sources: list[ArchiveBound] = Field(
        default_factory=list[ArchiveBound],
        max_length=64,
        description="Web servers, https://<host> with or without a folder, whose archives are allowed in "
        "spec.subject.images.uri and spec.priorPreservation.images.uri. Object stores need no entry. If empty, no "
        "archives of web servers are allowed.",
    )
    encoders: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Encoders allowed in spec.evaluation.encoders, besides the defaults.",
    )
    node_selector_keys: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Node labels allowed in spec.cluster.nodeSelector. Labels in pods.nodeSelector cannot be changed. "
        "If empty, jobs cannot add labels.",
    )
    toleration_keys: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Taint keys allowed in spec.cluster.tolerations. If empty, only the runtime's tolerations are "
        "allowed.",
    )
    priority_class_names: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="PriorityClasses allowed in spec.runPolicy.priorityClassName. If empty, only the runtime's default "
        "is allowed.",
    )
    workload_priority_class_names: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="WorkloadPriorityClasses of Kueue allowed in spec.runPolicy.workloadPriorityClassName. If empty, "
        "only the runtime's default is allowed.",
    )


class RuntimeSpec(Strict):
    """Base model, container image, pod resources, storage, defaults and bounds for jobs."""

    model: BaseModelRef = Field(
        default_factory=BaseModelRef, description="Base model of jobs that do not set spec.model."
    )
    image: str = Field(min_length=1, max_length=500, description="Container image with the trainer and Ray.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="Image pull policy of the job's pods."
    )
    ray_version: str = Field(
        default="2.60.0",
        pattern=r"^\d+\.\d+\.\d+$",
        max_length=20,
        description="Ray version of the image. Must be 2.53 or newer.",
    )
    pods: Pods = Field(default_factory=Pods, description="Resources and placement of a job's pods.")
    network: Network = Field(default_factory=Network, description="Network access of a job's pods.")
    storage: Storage = Field(
        default_factory=Storage, description="Working storage of jobs, and the default destination of models."
    )
    model_cache: ModelCache | None = Field(
        default=None,
        description=f"Volume with models, mounted read-only at {MODELS_PATH}. Set exactly one of claimName, hostPath "
        "and image. Without it, each pod downloads its models.",
    )
    defaults: Defaults = Field(default_factory=Defaults, description="Defaults for fields that a job does not set.")
    bounds: Bounds = Field(default_factory=Bounds, description="Bounds for jobs.")
    allowed_namespaces: list[str] = Field(
        default_factory=list,
        max_length=1000,
        description="Namespaces whose jobs may use this runtime. If empty, all namespaces may.",
        json_schema_extra={"items": {"type": "string", "pattern": DNS_LABEL, "maxLength": 63}},
    )


class RuntimeMetadata(BaseModel):
    """The field of ObjectMeta that is read from a file. The API server validates the others."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: ObjectName = Field(description="Name of the runtime.")


class DreamBoothRuntime(Strict):
    """A complete DreamBoothRuntime, as in a file."""

    api_version: ApiVersion = Field(description=API_VERSION)
    kind: Literal["DreamBoothRuntime"] = Field(description="DreamBoothRuntime")
    metadata: RuntimeMetadata
    spec: RuntimeSpec
