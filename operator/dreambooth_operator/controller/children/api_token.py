"""The service account token for the Kubernetes API, in one container of a pod.

`automountServiceAccountToken` would mount it into every container, also the trainer's.
"""

from __future__ import annotations

from dreambooth_operator.machinery.resources import Json

_NAME = "api-token"
_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # where clients look for it
_TOKEN_SECONDS = 3600


def api_token_volume() -> Json:
    """Token, certificate authority and namespace, as the API server mounts them by default."""
    namespace = {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
    return {
        "name": _NAME,
        "projected": {
            "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": _TOKEN_SECONDS}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [namespace]}},
            ]
        },
    }


def api_token_mount() -> Json:
    """The mount of the volume."""
    return {"name": _NAME, "mountPath": _PATH, "readOnly": True}
