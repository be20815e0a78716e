"""Looks up fields, keys and examples of the pydantic models by their path in YAML."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dreambooth_api.job import API_VERSION, KIND
from dreambooth_trainer.jobfile.yamltext import Path

EXAMPLES = {
    "apiVersion": f"apiVersion: {API_VERSION}",
    "kind": f"kind: {KIND}",
    "metadata": "metadata: {name: my-dog}",
    "metadata.name": "name: my-dog",
    "spec": "spec: {subject: {images: {uri: photos/}, class: dog}}",
    "spec.subject": "subject: {images: {uri: photos/}, class: dog}",
    "spec.subject.images": "images: {uri: photos/}",
    "spec.subject.class": "class: dog",
    "spec.runtimeRef.name": "name: stable-diffusion",
    "spec.training.validation.prompts": "prompts: ['a {} on the beach']",
    "spec.training.validation.everySteps": "everySteps: 100",
    "spec.cluster.elastic.minWorkers": "minWorkers: 1",
    "spec.cluster.elastic.maxWorkers": "maxWorkers: 4",
}
"""Example of each required key, by path, for error messages."""


@dataclass(frozen=True)
class SchemaNode:
    """Schema of the value at a path. Both attributes are None for values that have no schema."""

    field: FieldInfo | None
    annotation: Any


def format_path(path: Path) -> str:
    """A path such as `spec.evaluation.prompts[3]`. Keys with dots or spaces are quoted: `captions["00.jpg"]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[-\w]+", part):
            text += f".{part}" if text else part
        else:
            text += f'["{part}"]'
    return text or "document"


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields of a model by their name in YAML."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation, with Optional and Annotated unwrapped; None if there is none."""
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def is_mapping(annotation: Any) -> bool:
    """Whether an annotation is a `dict`, whose keys are chosen by the user."""
    return any(get_origin(option) is dict for option in _options(annotation))


def item_of(annotation: Any) -> Any:
    """Type of a list's items or a dict's values; None for other annotations."""
    for option in _options(annotation):
        if get_origin(option) in (list, dict):
            return get_args(option)[-1]
    return None


def schema_at(root: type[BaseModel], path: Path) -> SchemaNode:
    """The schema of the value at `path` below the model `root`."""
    node = SchemaNode(None, root)
    for part in path:
        model = model_of(node.annotation)
        if model is not None:
            field = keys_of(model).get(str(part))
            node = SchemaNode(field, field.annotation if field else None)
        else:
            node = SchemaNode(None, item_of(node.annotation))
    return node


def closest_match(word: str, known: Iterable[str]) -> str | None:
    """The most similar known word, ignoring case, `_` and `-`; None if no word is similar."""
    normalized = {_normalize(name): name for name in known}
    close = get_close_matches(_normalize(word), normalized, n=1, cutoff=0.6)
    return normalized[close[0]] if close else None


def _normalize(word: str) -> str:
    return re.sub(r"[-_ ]", "", word).lower()


def _options(annotation: Any) -> list[Any]:
    """The members of a union; the annotation itself if it is not a union."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [option for member in get_args(annotation) for option in _options(member)]
    return [annotation]
