"""Volume, mount and variables of a runtime's model cache."""

from __future__ import annotations

from dreambooth_api.environment import MODELS_PATH
from dreambooth_api.modelcache import ModelCache
from dreambooth_operator.machinery.resources import Json

_NAME = "models"


def cache_volume(cache: ModelCache) -> Json:
    """The volume of the cache."""
    if cache.claim_name:
        return {"name": _NAME, "persistentVolumeClaim": {"claimName": cache.claim_name, "readOnly": True}}
    if cache.host_path:
        # Without a type, kubelet would create a missing folder.
        return {"name": _NAME, "hostPath": {"path": cache.host_path, "type": "Directory"}}
    return {"name": _NAME, "image": {"reference": cache.image, "pullPolicy": "IfNotPresent"}}


def cache_mount(cache: ModelCache) -> Json:
    """The mount of the cache, which is read-only, because jobs of all users share it."""
    mount = {"name": _NAME, "mountPath": MODELS_PATH, "readOnly": True}
    return {**mount, "subPath": cache.path} if cache.path else mount


def cache_variables(cache: ModelCache) -> list[Json]:
    """Variables of Hugging Face libraries. Online, they would write downloads and references to the cache."""
    if cache.layout == "Folders":
        return []
    return [{"name": "HF_HOME", "value": MODELS_PATH}, {"name": "HF_HUB_OFFLINE", "value": "1"}]
