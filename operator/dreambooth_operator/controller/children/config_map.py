"""ConfigMap with the resolved job file, which all pods of an attempt mount."""

from __future__ import annotations

import hashlib

import yaml

from dreambooth_api import environment
from dreambooth_api.job import API_VERSION, KIND
from dreambooth_operator.controller.children.metadata import child_metadata
from dreambooth_operator.controller.observed import Job
from dreambooth_operator.controller.resolve import ResolvedJob
from dreambooth_operator.machinery.resources import CONFIG_MAPS, Json


class _Dumper(yaml.SafeDumper):
    """Quotes every string: PyYAML would write 1e5 and 0o7 plain, which other readers take for numbers."""


def _quote(_: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, style='"')


_Dumper.add_representer(str, _quote)


def build_config_map(job: Job, name: str, resolved: ResolvedJob) -> Json:
    """Immutable, because an attempt must not change while it runs."""
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.kind,
        "metadata": child_metadata(job, name),
        "immutable": True,
        "data": {environment.JOB_FILE_NAME: job_file(job, resolved)},
    }


def job_digest(job: Job, resolved: ResolvedJob) -> Json:
    """The environment variable by which the trainer checks that the mounted ConfigMap is this job's."""
    digest = hashlib.sha256(job_file(job, resolved).encode()).hexdigest()
    return {"name": environment.JOB_SHA256, "value": digest}


def job_file(job: Job, resolved: ResolvedJob) -> str:
    """The job in YAML as the trainer reads it, with mounted paths in place of volumes."""
    metadata = {"name": job.key.name, "namespace": job.key.namespace, "uid": job.uid}
    spec = resolved.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
