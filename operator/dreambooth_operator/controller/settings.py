"""Settings of the operator that its deployment chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Audience of the tokens with which trainers authenticate to the status server.
AUDIENCE = "dreambooth-progress"


@dataclass(frozen=True, slots=True)
class PodSelector:
    """Pods by their namespace (all if it is empty) and labels."""

    namespace: str
    labels: Mapping[str, str]


# The labels of KubeRay's Helm chart, and of its kustomize installation.
KUBERAY_LABELS = ({"app.kubernetes.io/name": "kuberay-operator"}, {"app.kubernetes.io/name": "kuberay"})
PROMETHEUS_LABELS = {"app.kubernetes.io/name": "prometheus"}


@dataclass(frozen=True, slots=True)
class Settings:
    """Defaults are those of the Helm chart.

    Attributes:
        progress_url: HTTPS URL of the status server as trainers reach it, without a trailing slash.
        head_grace_seconds: how long a head pod may be not ready before its attempt fails.
        pods_ready_seconds: minimum time that the pods of an attempt have to become ready.
        retry_seconds: delay before the first retry. It doubles with each failure, up to max_retry_seconds.
        watch_namespaces: namespaces whose jobs are reconciled; all if it is empty.
        local_runtimes: whether jobs may use LocalDreamBoothRuntimes, which users of a namespace write.
        operator_namespace: namespace of this operator.
        kuberay: KubeRay's pods, which may reach the dashboards of jobs; any of the selectors.
        prometheus: pods that may read the metrics of jobs.
    """

    progress_url: str = "https://dreambooth-operator.dreambooth-system.svc:8082"
    head_grace_seconds: float = 120
    pods_ready_seconds: float = 1800
    retry_seconds: float = 10
    max_retry_seconds: float = 360
    watch_namespaces: tuple[str, ...] = ()
    local_runtimes: bool = False
    operator_namespace: str = "dreambooth-system"
    kuberay: tuple[PodSelector, ...] = field(
        default_factory=lambda: tuple(PodSelector("", labels) for labels in KUBERAY_LABELS)
    )
    prometheus: PodSelector = field(default_factory=lambda: PodSelector("", PROMETHEUS_LABELS))
