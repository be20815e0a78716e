"""Names of the API's resources, and of KubeRay's that a job is made of."""

from __future__ import annotations

from dreambooth_operator.machinery.resources import Resource

GROUP = "dreambooth.dev"
JOBS = Resource(GROUP, "v1alpha1", "dreamboothjobs", "DreamBoothJob")
RUNTIMES = Resource(GROUP, "v1alpha1", "dreamboothruntimes", "DreamBoothRuntime")
RAY_JOBS = Resource("ray.io", "v1", "rayjobs", "RayJob")
RAY_CLUSTERS = Resource("ray.io", "v1", "rayclusters", "RayCluster")
BATCH_JOBS = Resource("batch", "v1", "jobs", "Job")

# On every child: which job it belongs to. Values are the job's name (63 characters at most) and uid.
JOB_LABEL = f"{GROUP}/job"
ATTEMPT_LABEL = f"{GROUP}/attempt"
ERASE_FINALIZER = f"{GROUP}/erase"
