"""How a job names its runtime: `spec.runtimeRef`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dreambooth_api.fields import ObjectName, Strict

RuntimeKind = Literal["DreamBoothRuntime", "LocalDreamBoothRuntime"]
RUNTIME_KIND: RuntimeKind = "DreamBoothRuntime"
LOCAL_RUNTIME_KIND: RuntimeKind = "LocalDreamBoothRuntime"
# The runtime of jobs without runtimeRef.
DEFAULT_RUNTIME = "default"


class RuntimeRef(Strict):
    """Reference to a DreamBoothRuntime, or to a LocalDreamBoothRuntime in the job's namespace."""

    kind: RuntimeKind = Field(
        default=RUNTIME_KIND,
        description=f"{RUNTIME_KIND}, which is cluster-scoped, or {LOCAL_RUNTIME_KIND}, which is in the job's "
        "namespace.",
    )
    name: ObjectName = Field(description="Name of the runtime.")
