"""The objects that `create` makes: a DreamBoothJob, and a ConfigMap with its photos. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, cast

import yaml
from pydantic import ValidationError

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.imagefolder import normalized
from dreambooth_api.job import JobSpec
from dreambooth_api.uris import EXTRAS, OBJECT_STORES
from dreambooth_operator.kubectl_plugin.photos import MAX_BYTES, TooLargeError
from dreambooth_operator.machinery.resources import CONFIG_MAPS, Json, Key, Resource, part
from dreambooth_operator.resources import JOB_LABEL, JOBS, LOCAL_RUNTIMES, RUNTIMES

LOCAL_RUNTIME = "ldbr"
"""The short name of LocalDreamBoothRuntime."""


def job_object(key: Key, images: Json, class_: str, runtime: str | None, sets: Sequence[str]) -> Json:
    """A valid job.

    Args:
        images: `spec.subject.images`.
        runtime: name of a DreamBoothRuntime, or ldbr/<name> for a LocalDreamBoothRuntime.
        sets: overrides below spec, KEY=VALUE with dotted keys and YAML values. Later ones have precedence.

    Raises:
        UserError: all invalid fields at once.
    """
    spec: Json = {"subject": {"images": images, "class": class_}}
    if runtime:
        spec["runtimeRef"] = _runtime_ref(runtime)
    for text in sets:
        _assign(spec, text)
    try:
        JobSpec.model_validate(spec)
    except ValidationError as error:
        raise UserError([_issue(cast("Mapping[str, Any]", detail)) for detail in error.errors()]) from error
    return {"apiVersion": JOBS.api_version, "kind": JOBS.kind, "metadata": _metadata(key), "spec": spec}


def captioned_by_key(job: Json, keys: Mapping[str, str]) -> Json:
    """The job with its captions under the keys that the photos have in the ConfigMap.

    Args:
        keys: keys by file names in Unicode NFC. A caption of another name remains as it is.
    """
    subject = part(job, "spec", "subject")
    captions = {keys.get(normalized(name), name): text for name, text in part(subject, "captions").items()}
    renamed = {**subject, "captions": captions} if captions else subject
    return {**job, "spec": {**job["spec"], "subject": renamed}}


def photos_object(key: Key, files: Mapping[str, bytes]) -> Json:
    """The ConfigMap with the photos of the job `key`."""
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.kind,
        "metadata": {**_metadata(Key(key.namespace, photos_name(key.name))), "labels": {JOB_LABEL: key.name}},
        "binaryData": {name: base64.b64encode(content).decode() for name, content in files.items()},
    }


def photos_name(job: str) -> str:
    """Name of the ConfigMap with the photos of a job."""
    return f"{job}-photos"


def owned_by(job: Json) -> Json:
    """A patch by which an object is deleted with the job."""
    metadata = job["metadata"]
    owner = {"apiVersion": JOBS.api_version, "kind": JOBS.kind, "name": metadata["name"], "uid": metadata["uid"]}
    return {"metadata": {"ownerReferences": [owner]}}


def explain_too_large(error: TooLargeError, name: str) -> str:
    """Where photos go that a ConfigMap cannot hold, with the YAML for each place."""
    return f"""\
{error.count} photos ({error.total:,} bytes) do not fit into a ConfigMap, which holds at most {MAX_BYTES:,} bytes.
Use the 3-5 best photos, or copy the folder to a volume or a bucket and apply a job with one of:

spec:
  subject:
    images:
      pvc: {{claimName: photos, path: {name}}}     # a PersistentVolumeClaim in the job's namespace

spec:
  subject:
    images:
      uri: {next(iter(EXTRAS))}://BUCKET/{name}     # {OBJECT_STORES}; the runtime supplies the credentials"""


def _runtime_ref(text: str) -> Json:
    kind, _, name = text.rpartition("/")
    if kind in ("", *_names(RUNTIMES, "dbr")):
        return {"name": name}
    if kind in _names(LOCAL_RUNTIMES, LOCAL_RUNTIME):
        return {"kind": LOCAL_RUNTIMES.kind, "name": name}
    remedy = f"write NAME for a {RUNTIMES.kind}, or {LOCAL_RUNTIME}/NAME for a {LOCAL_RUNTIMES.kind}"
    raise UserError(ValidationIssue(f"--runtime {text}", None, f"{kind} is not a kind of runtime", remedy))


def _names(resource: Resource, short: str) -> tuple[str, ...]:
    """The names of a kind in kubectl's TYPE/NAME."""
    return short, resource.kind.lower(), resource.plural


def _metadata(key: Key) -> Json:
    return {"name": key.name} | ({"namespace": key.namespace} if key.namespace else {})


def _assign(spec: Json, text: str) -> None:
    path, equals, value = text.partition("=")
    *parents, last = path.strip().removeprefix("spec.").split(".")
    if not equals or not all((*parents, last)):
        remedy = "write, for example, --set training.steps=200"
        raise UserError(ValidationIssue(f"--set {text}", None, "is not KEY=VALUE", remedy))
    node = spec
    for index, parent in enumerate(parents):
        if parent == "captions":  # its keys are file names, which contain dots
            parents, last = parents[: index + 1], ".".join([*parents[index + 1 :], last])
            node = node.setdefault(parent, {})
            break
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            rule = f"{parent} has no keys below it"
            raise UserError(ValidationIssue(f"--set {text}", None, rule, "correct the key"))
        node = cast("Json", child)
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        remedy = "quote it, for example --set 'subject.instancePrompt=\"a sks dog\"'"
        raise UserError(ValidationIssue(f"--set {text}", None, "the value is not valid YAML", remedy)) from error


def _issue(detail: Mapping[str, Any]) -> ValidationIssue:
    """An error of pydantic, at its path in the job."""
    context = cast("Mapping[str, Any]", detail.get("ctx") or {})
    path = ".".join(filter(None, ["spec", *map(str, detail["loc"]), str(context.get("at") or "")]))
    message = "is not a field of a job" if detail["type"] == "extra_forbidden" else str(detail["msg"])
    rule, _, remedy = message.partition("; ")
    value = detail["input"] if isinstance(detail["input"], (str, int, float, bool)) else None
    return ValidationIssue(path, value, rule, remedy or "see kubectl explain dreamboothjob.spec")
