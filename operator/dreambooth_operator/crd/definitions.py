"""The CustomResourceDefinitions, built from the pydantic models of `dreambooth_api`."""

from __future__ import annotations

import copy
from typing import Any, cast

from dreambooth_api.fields import DNS_SUBDOMAIN
from dreambooth_api.job import API_VERSION, JobSpec
from dreambooth_api.localruntime import LocalRuntimeSpec
from dreambooth_api.metrics import METRICS
from dreambooth_api.runtime import RuntimeSpec
from dreambooth_api.status import JobStatus
from dreambooth_operator.crd.rules import JOB_RULES, LIMITS, LOCAL_RUNTIME_LIMITS, NAME_LIMIT, Rule
from dreambooth_operator.crd.schema import Schema, structural
from dreambooth_operator.machinery.resources import Resource
from dreambooth_operator.resources import GROUP, JOBS, LOCAL_RUNTIMES, RUNTIMES


def job_crd() -> dict[str, Any]:
    """The CRD of DreamBoothJob."""
    spec, status = structural(JobSpec), structural(JobStatus)
    status["description"] = "Observed state of a DreamBoothJob, written by the operator."
    _as_map(status["properties"]["conditions"], key="type")
    # Differs from metadata.generation, so that a job that the operator has not seen yet counts as in progress.
    status["default"] = {"observedGeneration": -1}
    columns = [
        _column("Phase", ".status.phase"),
        _column("Step", ".status.training.progress"),
        _column("Loss", ".status.training.loss", kind="number", number="float"),
        _column("ETA", ".status.training.eta"),
        *(_column(metric.label, f".status.scores.{metric.name}") for metric in METRICS if metric.printer_column),
        _column("Age", ".metadata.creationTimestamp", kind="date"),
        _column("Attempts", ".status.attempts", kind="integer", priority=1),
        _column("RayJob", ".status.rayJobName", priority=1),
        _column("Output", ".status.output.uri", priority=1),
        _column("Message", ".status.message"),  # last, because it is long
    ]
    description = (
        "DreamBoothJob fine-tunes a text-to-image model on a few images of one subject, following the DreamBooth "
        "paper, and publishes the model. Required: subject.images, subject.class (or subjects) and, unless the runtime "
        "has storage, output."
    )
    root = _root(description, spec, status)
    _limit(root, LIMITS)
    return _crd(JOBS, "dbj", "Namespaced", root, JOB_RULES, columns)


def runtime_crd() -> dict[str, Any]:
    """The CRD of DreamBoothRuntime."""
    columns = [
        _column("Model", ".spec.model.id"),
        _column("Image", ".spec.image"),
        _column("GPUs", ".spec.pods.worker.gpu", kind="integer"),
        _column("Age", ".metadata.creationTimestamp", kind="date"),
    ]
    description = (
        "DreamBoothRuntime holds the settings that a platform team manages for jobs: base model, container image, "
        "pod resources, storage, defaults and bounds. Jobs without runtimeRef use the runtime named default."
    )
    root = _root(description, structural(RuntimeSpec), None)
    return _crd(RUNTIMES, "dbr", "Cluster", root, {}, columns)


def local_runtime_crd() -> dict[str, Any]:
    """The CRD of LocalDreamBoothRuntime."""
    columns = [
        _column("Parent", ".spec.parent"),
        _column("Model", ".spec.model.id"),
        _column("Image", ".spec.image"),
        _column("Age", ".metadata.creationTimestamp", kind="date"),
    ]
    description = (
        "LocalDreamBoothRuntime extends a DreamBoothRuntime for the jobs of its namespace that name it in runtimeRef. "
        "What it sets must be within the bounds of its parent; all else is that of the parent. The operator allows "
        "this kind only with --local-runtimes."
    )
    root = _root(description, structural(LocalRuntimeSpec), None)
    _limit(root, LOCAL_RUNTIME_LIMITS)
    return _crd(LOCAL_RUNTIMES, "ldbr", "Namespaced", root, {}, columns)


def _root(description: str, spec: Schema, status: Schema | None) -> Schema:
    properties: Schema = {
        "apiVersion": {"type": "string", "description": f"APIVersion: {API_VERSION}."},
        "kind": {"type": "string", "description": "Kind of the object."},
        "metadata": {"type": "object"},
        "spec": spec,
    }
    if status:
        properties["status"] = status
    return {"type": "object", "description": description, "required": ["spec"], "properties": properties}


def _crd(
    resource: Resource,
    short: str,
    scope: str,
    root: Schema,
    rules: dict[str, list[Rule]],
    columns: list[dict[str, Any]],
) -> dict[str, Any]:
    _bound_names(root)
    for path, wanted in rules.items():
        _at(root, path)["x-kubernetes-validations"] = copy.deepcopy(wanted)  # YAML would use anchors for shared rules
    version: dict[str, Any] = {
        "name": resource.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": root},
        "additionalPrinterColumns": columns,
    }
    if "status" in root["properties"]:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {
                "kind": resource.kind,
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [short],
                "categories": ["dreambooth"],
            },
            "versions": [version],
        },
    }


def _column(name: str, path: str, *, kind: str = "string", number: str = "", priority: int = 0) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "jsonPath": path, "type": kind, "priority": priority}
    return {**column, "format": number} if number else column


def _as_map(schema: Schema, *, key: str) -> None:
    """Mark a list as a map by `key`, so that server-side apply merges its items."""
    schema["x-kubernetes-list-type"] = "map"
    schema["x-kubernetes-list-map-keys"] = [key]


def _at(root: Schema, path: str) -> Schema:
    """The schema at a dotted path. `{}` at the end of a segment stands for the values of a map, `[]` for list items."""
    node = root
    for part in filter(None, path.split(".")):
        node = node["properties"][part.removesuffix("{}").removesuffix("[]")]
        if part.endswith("{}"):
            node = node["additionalProperties"]
        elif part.endswith("[]"):
            node = node["items"]
    return node


def _limit(root: Schema, limits: dict[str, dict[str, Any]]) -> None:
    for path, bounds in limits.items():
        for key, value in bounds.items():
            _at(root, path).setdefault(key, value)


def _bound_names(node: Any) -> None:
    """Give every object name the length that Kubernetes allows: a pattern alone leaves CEL's cost unbounded."""
    children: list[Any] = []
    if isinstance(node, dict):
        schema = cast("Schema", node)
        if schema.get("pattern") == DNS_SUBDOMAIN:
            schema.setdefault("maxLength", NAME_LIMIT)
        children = list(schema.values())
    elif isinstance(node, list):
        children = cast("list[Any]", node)
    for child in children:
        _bound_names(child)
