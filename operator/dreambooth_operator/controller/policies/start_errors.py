"""Errors that keep pods from starting until a user corrects them: the job ends with the remedy. Pure.

All other reasons, for example a full quota, no free GPU or an unreachable registry, may disappear, so the job waits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dreambooth_api.status import Failure
from dreambooth_operator.controller.builder import DecisionBuilder
from dreambooth_operator.controller.observed import RayCluster
from dreambooth_operator.controller.observed_pods import Pod, one_line

# Objects may be applied in any order, and caches of kubelet and scheduler may be behind.
_GRACE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _UserError:
    """`pattern` is searched in "REASON: MESSAGE" of a pod or a RayCluster; its first group is the missing object."""

    pattern: str
    reason: str
    remedy: str


_AGAIN = "and create the job again."
_USER_ERRORS = (
    _UserError(
        pattern=r"persistentvolumeclaims? \"([^\"]+)\" not found",
        reason="VolumeClaimNotFound",
        remedy=f"Create PersistentVolumeClaim {{name}} in namespace {{namespace}}, or name an existing one, {_AGAIN}",
    ),
    _UserError(
        pattern=r"secret \"([^\"]+)\" not found",
        reason="SecretNotFound",
        remedy=f"Create Secret {{name}} in namespace {{namespace}}, or name an existing one, {_AGAIN}",
    ),
    _UserError(
        pattern=r"configmap \"([^\"]+)\" not found",
        reason="ConfigMapNotFound",
        remedy=f"Create ConfigMap {{name}} in namespace {{namespace}}, or name an existing one, {_AGAIN}",
    ),
    _UserError(
        pattern=r"references non-existent (?:secret|config) key: (\S+)|couldn't find key (\S+) in",
        reason="KeyNotFound",
        remedy=f"Add key {{name}} to the Secret or ConfigMap in the message, {_AGAIN}",
    ),
    _UserError(
        pattern=r"no PriorityClass with name (\S+) was found",
        reason="PriorityClassNotFound",
        remedy=f"Set spec.runPolicy.priorityClassName to one that kubectl get priorityclasses lists, {_AGAIN}",
    ),
    _UserError(
        pattern=r"(?:minimum|maximum) \S+ usage per |max limit to request ratio per ",
        reason="LimitRangeExceeded",
        remedy=f"Set spec.cluster.resources within the LimitRange of namespace {{namespace}}, {_AGAIN}",
    ),
    _UserError(
        pattern=r"^InvalidImageName\b",
        reason="InvalidImageName",
        remedy=f"Correct spec.cluster.image, or the image of the runtime, {_AGAIN}",
    ),
    _UserError(
        pattern=r"^(?:ErrImagePull|ImagePullBackOff)\b.*?(?:: not found|manifest unknown|repository does not exist)",
        reason="ImageNotFound",
        remedy=f"Correct spec.cluster.image, or the image and the pull Secret of the runtime, {_AGAIN}",
    ),
)


def start_error(builder: DecisionBuilder, cluster: RayCluster | None, pods: Sequence[Pod]) -> Failure | None:
    """A failure if pods of an attempt cannot start until a user corrects an error. Call it before the trainer runs."""
    found = _find(cluster, pods)
    since = builder.status.starting_since
    if found is None or since is None:
        return None
    left_seconds = _GRACE_SECONDS - (builder.now - since).total_seconds()
    if left_seconds > 0:
        builder.requeue_after(left_seconds)
        return None
    error, match, text = found
    name = next((group for group in match.groups() if group), "")
    remedy = error.remedy.format(name=name, namespace=builder.job.key.namespace)
    return Failure(
        reason=error.reason, message=f"The pods cannot start: {text.rstrip('. ')}. {remedy}", retryable=False
    )


def _find(cluster: RayCluster | None, pods: Sequence[Pod]) -> tuple[_UserError, re.Match[str], str] | None:
    texts = [f"{pod.reason}: {pod.message}" for pod in pods if pod.reason]
    if cluster and cluster.trouble:  # pods that the API server rejects exist only in KubeRay's message
        texts.append(one_line(cluster.trouble))
    for text in texts:
        for error in _USER_ERRORS:
            if match := re.search(error.pattern, text):
                return error, match, text
    return None
