"""Resources, labels and finalizers that the operator uses, of its own API, KubeRay and Kubernetes."""

from __future__ import annotations

from dreambooth_api.job import API_VERSION, KIND
from dreambooth_api.runtimeref import LOCAL_RUNTIME_KIND, RUNTIME_KIND
from dreambooth_operator.machinery.resources import Resource

GROUP, _, _VERSION = API_VERSION.partition("/")
JOBS = Resource(GROUP, _VERSION, "dreamboothjobs", KIND)
QUALIFIED_KIND = f"{KIND.lower()}.{GROUP}"
"""How kubectl names a kind in its messages."""
RUNTIMES = Resource(GROUP, _VERSION, "dreamboothruntimes", RUNTIME_KIND)
LOCAL_RUNTIMES = Resource(GROUP, _VERSION, "localdreamboothruntimes", LOCAL_RUNTIME_KIND)
RAY_JOBS = Resource("ray.io", "v1", "rayjobs", "RayJob")
RAY_CLUSTERS = Resource("ray.io", "v1", "rayclusters", "RayCluster")
BATCH_JOBS = Resource("batch", "v1", "jobs", "Job")

# On every child: the name of its DreamBoothJob, which has at most 63 characters.
JOB_LABEL = f"{GROUP}/job"
# On every child of an attempt: the number of the attempt.
ATTEMPT_LABEL = f"{GROUP}/attempt"
# On every runtime: it must not be deleted while a job that has not finished uses it.
RUNTIME_FINALIZER = f"{GROUP}/runtime-in-use"
# On every RayJob: the digest of the job file that its pods mount.
JOB_SHA256_ANNOTATION = f"{GROUP}/job-sha256"
# On jobs with deletionPolicy Delete: the job's data must be deleted first.
ERASE_FINALIZER = f"{GROUP}/erase"

HEAD_CONTAINER, WORKER_CONTAINER = RAY_CONTAINERS = ("ray-head", "ray-worker")
"""The containers of a Ray cluster's pods that run Ray."""
