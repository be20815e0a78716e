"""Strategic merge of a patch into a pod template, as `kubectl patch` does it. No Python library has it."""

from __future__ import annotations

import copy
from typing import Any, cast

from dreambooth_operator.machinery.resources import Json

# Lists of a pod whose items are merged, and the field that identifies an item. Other lists are replaced.
_MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "hostAliases": "ip",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "ports": "containerPort",
    "resourceClaims": "name",
    "topologySpreadConstraints": "topologyKey",
    "volumeDevices": "devicePath",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
_DIRECTIVE = "$patch"


def strategic_merge(target: Json, patch: Json) -> Json:
    """A copy of `target` with `patch` merged into it.

    null removes a field; `$patch: delete` removes a field that is a mapping, or the item of a list. New items of a list
    are appended.
    """
    merged = copy.deepcopy(target)
    for name, value in patch.items():
        if value is None or _deletes(value):
            merged.pop(name, None)
        elif isinstance(value, dict):
            merged[name] = strategic_merge(_mapping(merged.get(name)), cast("Json", value))
        elif isinstance(value, list) and name in _MERGE_KEYS:
            merged[name] = _merge_items(merged.get(name) or [], cast("list[Any]", value), _MERGE_KEYS[name])
        else:
            merged[name] = copy.deepcopy(patch[name])
    return merged


def _merge_items(items: list[Any], patches: list[Any], key: str) -> list[Any]:
    merged = list(items)
    for patch in patches:
        same = [n for n, item in enumerate(merged) if _identity(item, key) == _identity(patch, key)]
        if _deletes(patch):
            merged = [item for n, item in enumerate(merged) if n not in same]
        elif same:
            merged[same[0]] = strategic_merge(merged[same[0]], patch)
        else:
            merged.append(copy.deepcopy(patch))
    return merged


def _identity(item: object, key: str) -> object:
    """What identifies an item. An item without the key, which the API server rejects, is equal to itself only."""
    return _mapping(item).get(key, id(item))


def _mapping(value: object) -> Json:
    return cast("Json", value) if isinstance(value, dict) else {}


def _deletes(value: object) -> bool:
    return _mapping(value).get(_DIRECTIVE) == "delete"
