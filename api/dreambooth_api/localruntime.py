"""The `LocalDreamBoothRuntime` API: a runtime that the users of a namespace write themselves.

It has only fields that a job could set too, so its users gain nothing: what it sets is bounded by its parent as if each
job had set it. All else, among it pod templates, environment variables, ServiceAccounts, network access, Secrets and
bounds, is that of the parent.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dreambooth_api.fields import ObjectName, Strict
from dreambooth_api.job import API_VERSION, ApiVersion, Resources, Toleration
from dreambooth_api.model import BaseModelRef
from dreambooth_api.runtime import Defaults, RuntimeMetadata
from dreambooth_api.runtimeref import LOCAL_RUNTIME_KIND, RUNTIME_KIND
from dreambooth_api.uris import OBJECT_STORE_URI, OBJECT_STORES, VOLUME


class LocalPods(Strict):
    """Resources and placement of a job's worker pods."""

    worker: Resources = Field(
        default_factory=Resources, description="Resources of each worker pod, within bounds of the parent."
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict,
        max_length=32,
        description="Labels that nodes must have to run worker pods, in addition to the parent's. Its "
        "bounds.nodeSelectorKeys must allow them. A job may set other values.",
    )
    tolerations: list[Toleration] = Field(
        default_factory=list[Toleration],
        max_length=32,
        description="Tolerations of worker pods in addition to the parent's, whose bounds.tolerationKeys must allow "
        "them.",
    )


class LocalStorage(Strict):
    """Working storage of jobs, and the default destination of models. bounds.outputs of the parent must allow both."""

    claim_name: ObjectName | None = Field(
        default=None,
        description="PersistentVolumeClaim in the runtime's namespace, all of which bounds.outputs must allow: "
        f"{VOLUME}<claim> or {VOLUME}.",
    )
    uri: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        pattern=OBJECT_STORE_URI,
        description=f"Folder in an object store, {OBJECT_STORES}. Models are uploaded to <uri>/<namespace>/<job>.",
    )


class LocalRuntimeSpec(Strict):
    """Values that jobs do not set themselves. What is omitted is that of the parent."""

    parent: ObjectName = Field(
        description=f"{RUNTIME_KIND} that this runtime extends. Its allowedNamespaces must allow the namespace, and "
        "its bounds what this runtime sets."
    )
    model: BaseModelRef | None = Field(
        default=None, description="Base model of jobs that do not set spec.model. bounds.models must allow it."
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=500,
        description="Container image with the trainer and the parent's Ray version. bounds.images must allow it.",
    )
    pods: LocalPods = Field(default_factory=LocalPods, description="Resources and placement of a job's worker pods.")
    storage: LocalStorage = Field(
        default_factory=LocalStorage, description="Working storage of jobs, and the default destination of models."
    )
    defaults: Defaults = Field(default_factory=Defaults, description="Defaults for fields that a job does not set.")


class LocalDreamBoothRuntime(Strict):
    """A complete LocalDreamBoothRuntime, as in a file."""

    api_version: ApiVersion = Field(description=API_VERSION)
    kind: Literal["LocalDreamBoothRuntime"] = Field(description=LOCAL_RUNTIME_KIND)
    metadata: RuntimeMetadata
    spec: LocalRuntimeSpec
