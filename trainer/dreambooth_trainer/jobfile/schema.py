"""Questions to the pydantic models: which field is at this path, which keys are allowed, what is an example."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dreambooth_trainer.jobfile.yamltext import Path

EXAMPLES = {
    "apiVersion": "apiVersion: dreambooth.dev/v1alpha1",
    "kind": "kind: DreamBoothJob",
    "metadata": "metadata: {name: my-dog}",
    "metadata.name": "name: my-dog",
    "spec": "spec: {subject: {images: {uri: photos/}, class: dog}}",
    "spec.subject": "subject: {images: {uri: photos/}, class: dog}",
    "spec.subject.images": "images: {uri: photos/}",
    "spec.subject.class": "class: dog",
    "spec.runtimeRef.name": "name: stable-diffusion",
    "spec.cluster.elastic.minWorkers": "minWorkers: 1",
    "spec.cluster.elastic.maxWorkers": "maxWorkers: 4",
}
"""What to write for a required key."""


@dataclass(frozen=True)
class Spot:
    """What the models say about a path: the field there, or the model, or a value of free form."""

    field: FieldInfo | None
    annotation: Any


def written(path: Path) -> str:
    """`spec.evaluation.prompts[3]`; keys that hold dots or spaces are quoted: `captions["00.jpg"]`."""
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
    """Field by its name in YAML."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation stands for, through Optional and Annotated."""
    for kind in _alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def is_mapping(annotation: Any) -> bool:
    """True for `dict[str, ...]`, whose keys are the user's."""
    return any(get_origin(kind) is dict for kind in _alternatives(annotation))


def item_of(annotation: Any) -> Any:
    """Type of a list's items or a dict's values; None where there are none."""
    for kind in _alternatives(annotation):
        if get_origin(kind) in (list, dict):
            return get_args(kind)[-1]
    return None


def spot(root: type[BaseModel], path: Path) -> Spot:
    """Follow `path` as far as the models reach."""
    here = Spot(None, root)
    for part in path:
        model = model_in(here.annotation)
        if model is not None:
            field = keys_of(model).get(str(part))
            here = Spot(field, field.annotation if field else None)
        else:
            here = Spot(None, item_of(here.annotation))
    return here


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant; case, `_` and `-` do not count."""
    plain = {_plain(name): name for name in known}
    close = get_close_matches(_plain(word), plain, n=1, cutoff=0.6)
    return plain[close[0]] if close else None


def _plain(word: str) -> str:
    return re.sub(r"[-_ ]", "", word).lower()


def _alternatives(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [one for kind in get_args(annotation) for one in _alternatives(kind)]
    return [annotation]
