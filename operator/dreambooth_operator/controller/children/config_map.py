"""ConfigMap with the resolved job file and the certificates of the operator, which all pods of an attempt mount."""

from __future__ import annotations

import hashlib
import json
import re

from dreambooth_api import environment
from dreambooth_api.job import API_VERSION, KIND
from dreambooth_operator.controller.children.metadata import child_metadata
from dreambooth_operator.controller.observed import Job, RayJob
from dreambooth_operator.controller.resolve import ResolvedJob
from dreambooth_operator.machinery.resources import CONFIG_MAPS, Json

# JSON is YAML, except for characters that a YAML file must not contain, or that it reads as line breaks.
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def build_config_map(
    job: Job, name: str, resolved: ResolvedJob, *, ray_job: RayJob | None = None, progress_ca: str = ""
) -> Json:
    """Immutable, because an attempt must not change while it runs. That of an attempt belongs to its RayJob.

    Args:
        progress_ca: the certificates by which a trainer that reports progress verifies the operator, in PEM.
    """
    data = {environment.JOB_FILE_NAME: job_file(job, resolved)}
    if progress_ca:
        data[environment.PROGRESS_CA_NAME] = progress_ca
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.kind,
        "metadata": child_metadata(job, name, ray_job=ray_job),
        "immutable": True,
        "data": data,
    }


def job_digest(job: Job, resolved: ResolvedJob) -> Json:
    """The environment variable by which the trainer checks that the mounted ConfigMap is this job's."""
    return {"name": environment.JOB_SHA256, "value": job_file_digest(job, resolved)}


def job_file_digest(job: Job, resolved: ResolvedJob) -> str:
    """Digest of the job file, in hexadecimal digits."""
    return hashlib.sha256(job_file(job, resolved).encode()).hexdigest()


def job_file(job: Job, resolved: ResolvedJob) -> str:
    """The job as the trainer reads it, with mounted paths in place of volumes.

    In JSON: writing YAML takes a hundred times as long. All strings are quoted, so none is taken for a number.
    Fields with their default are omitted: retries run the image of the first attempt, whose trainer rejects the fields
    that a newer operator has added.
    """
    metadata = {"name": job.key.name, "namespace": job.key.namespace, "uid": job.uid}
    spec = resolved.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    return json_in_yaml({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec})


def json_in_yaml(value: Json) -> str:
    """`value` as JSON that is also YAML with the same value."""
    # Not escaped to ASCII: YAML does not combine the two escapes of a character above U+FFFF.
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"
