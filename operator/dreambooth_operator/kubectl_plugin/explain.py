"""One sentence for each error of a connection, with the remedy. Pure."""

from __future__ import annotations

from dreambooth_operator.machinery.client import ApiError
from dreambooth_operator.resources import GROUP, JOBS

_ANONYMOUS = "system:anonymous"


def explain_api_error(error: ApiError) -> str:
    """What an error response of the API server means to a user of the plugin."""
    message = error.message.strip().rstrip(".")
    if error.status == 401 or (error.status == 403 and _ANONYMOUS in message):
        return (
            f"the API server does not accept your credentials ({message or 'Unauthorized'}); log in to the cluster "
            "again, or select another user with --context"
        )
    if error.status == 403 and "at the cluster scope" in message:
        return f"{message}; select one namespace with -n, or ask an administrator for rights in all of them"
    if error.status == 403:
        return f"{message}; ask an administrator for the role edit or view in this namespace, or select one with -n"
    if error.is_not_found and _names_no_object(message):
        return (
            f"the cluster has no {JOBS.plural}.{GROUP}; install the operator with its CRDs (helm install "
            "dreambooth-operator), or select another cluster with --context"
        )
    if error.is_not_found and message.startswith(f"{JOBS.plural}."):
        return f"{message}; to list jobs, run kubectl dreambooth list, with -n for another namespace"
    if error.is_transient:
        return f"the API server cannot answer now ({error.status}: {message}); try again later"
    return message or str(error)


def explain_connection_error(host: str, error: BaseException) -> str:
    """Why the API server at `host` was not reached."""
    reason = str(error) or type(error).__name__
    return (
        f"the API server{host and f' {host}'} does not respond: {reason}; check that the cluster runs and is "
        "reachable from here, or select another with --context"
    )


def _names_no_object(message: str) -> bool:
    """Whether a 404 is about a resource type: those of objects quote the name."""
    return '"' not in message
