"""Requests to the Hugging Face Hub: retries during an outage, and errors that name the remedy.

Errors that the user has to fix (401, 403, 404, offline mode) become a `UserError` at once. All others (429, 5xx,
timeouts, lost connections, truncated files) are retried, and then become a `TransientError`.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from dreambooth_api.errors import TransientError, UserError, ValidationIssue
from dreambooth_api.status import printable

# Between attempts, unless the Hub asks for longer. huggingface_hub itself retries only some of its requests.
RETRY_WAITS_SECONDS = (1, 2, 4, 8)
# The Hub's rate limits count requests in windows of five minutes.
MAX_WAIT_SECONDS = 300
# Errors of the local file system, not of the Hub.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_ON_A_CLUSTER = "on a cluster, in the Secret of the runtime's storage.credentialsSecret"

log = logging.getLogger(__name__)
T = TypeVar("T")


def request(call: Callable[[], T], model_id: str, revision: str | None, path: str, *, write: bool = False) -> T:
    """Call a function of huggingface_hub, and repeat the call during an outage.

    Args:
        path: field that contains the model ID, for error messages.
        write: the call changes a repository.

    Raises:
        UserError: wrong ID or revision, missing permissions, or offline mode and not in the cache.
        TransientError: the Hub or the network failed, also after retries.
    """
    for wait in (*RETRY_WAITS_SECONDS, None):
        try:
            return call()
        except Exception as error:
            converted = _converted(error, model_id, revision, path, write=write)
            if wait is None or not isinstance(converted, TransientError):
                raise converted from error
            seconds = max(wait, _requested_wait(error))
            log.warning("%s; retrying in %d s", converted, seconds)
            time.sleep(seconds)
    raise AssertionError("the last attempt returns or raises")


def _converted(error: Exception, model_id: str, revision: str | None, path: str, *, write: bool) -> Exception:
    from huggingface_hub import constants, errors

    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return error
    causes = list(_causes(error))

    def has(kind: type[BaseException]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    problem: tuple[str, str] | None = None
    if has(errors.HFValidationError):
        rule = "was not found as a local folder, and is not a valid Hub ID"
        problem = rule, "use the path of a model's folder, or an ID such as owner/name"
    elif has(errors.OfflineModeIsEnabled) or constants.is_offline_mode():
        rule = "needs the Hub" if write else "is not in the cache"
        problem = f"{rule}, and HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE, or use a local folder"
    elif has(errors.RevisionNotFoundError):
        problem = f"has no revision {revision!r} on the Hub", "use an existing commit, tag or branch"
    elif has(errors.GatedRepoError):
        problem = _gated(model_id)
    elif has(errors.DisabledRepoError):
        problem = "is disabled on the Hub", "use another model"
    elif (response := _response(causes)) is not None:
        problem = _denied(*response, write=write)
    if problem is not None:
        return UserError(ValidationIssue(path, model_id, *problem))
    reason = next(iter(printable(str(causes[-1])).strip().splitlines()), "")
    verb = "changed on" if write else "downloaded from"
    return TransientError(
        f"{path}: {model_id!r}: cannot be {verb} {constants.ENDPOINT} ({type(causes[-1]).__name__}: {reason})"
    )


def _denied(status: int, headers: Mapping[str, str], *, write: bool) -> tuple[str, str] | None:
    """Rule and remedy for a response of the Hub; None if it is not the user's error."""
    from huggingface_hub import constants

    message = " ".join(printable(headers.get("X-Error-Message", "")).split())
    if status == 401 and ("credentials" in message or "token" in message.lower()):
        remedy = f"set HF_TOKEN to a valid token of {constants.ENDPOINT}/settings/tokens ({_ON_A_CLUSTER}), or unset it"
        return f"the Hub rejects the access token: {message}", remedy
    if status == 403:
        details = f": {message}" if message else ""
        access = "write to this repository" if write else "read this model"
        remedy = f"set HF_TOKEN to a token that may {access} ({_ON_A_CLUSTER})"
        return f"the Hub denies access{details}", remedy
    if write and status in (401, 404):
        remedy = f"set HF_TOKEN to a token with write access ({_ON_A_CLUSTER}), and check the name of the owner"
        return "cannot be written to without a valid token", remedy
    if status in (401, 404):
        # Without access, the Hub does not reveal whether a repository exists.
        remedy = f"check the ID; for a private model, set HF_TOKEN ({_ON_A_CLUSTER})"
        return "was not found, neither as a local folder nor on the Hub", remedy
    return None


def _gated(model_id: str) -> tuple[str, str]:
    """Rule and remedy for a model whose license has to be accepted."""
    from huggingface_hub import constants

    name = license_name(model_id)
    rule = f"is a gated model (license {name})" if name else "is a gated model"
    remedy = (
        f"accept its license at {constants.ENDPOINT}/{model_id}, and set HF_TOKEN to a token of that account "
        f"({_ON_A_CLUSTER})"
    )
    return rule, remedy


def license_fields(model_id: str) -> dict[str, str]:
    """The fields license, license_name and license_link of a model's card; empty if the Hub does not tell.

    The card is public for gated models.
    """
    from huggingface_hub import HfApi, constants

    try:
        card = HfApi().model_info(model_id).card_data
    except Exception:
        return {}  # nothing depends on it
    values = {name: card.get(name) for name in ("license", "license_name", "license_link")} if card else {}
    found = {name: printable(value) for name, value in values.items() if isinstance(value, str) and value}
    if (link := found.get("license_link")) and "://" not in link:  # relative to the base model's repository
        found["license_link"] = f"{constants.ENDPOINT}/{model_id}/blob/main/{link}"
    return found


def license_name(model_id: str) -> str:
    """The name of a model's license; empty if the Hub does not tell."""
    fields = license_fields(model_id)
    return fields.get("license_name") or fields.get("license") or ""


def _requested_wait(error: Exception) -> float:
    """Seconds that the Hub asks to wait before the next request; 0 if it does not."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers

    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            headers = cause.response.headers
            retry_after, limit = headers.get("Retry-After", ""), parse_ratelimit_headers(headers)
            seconds = int(retry_after) if retry_after.isdecimal() else limit.reset_in_seconds if limit else 0
            return min(seconds, MAX_WAIT_SECONDS)
    return 0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # An outage is raised as "not in the cache", with the actual error as its cause.
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _response(causes: Sequence[BaseException]) -> tuple[int, Mapping[str, str]] | None:
    """Status and headers of the Hub's response; None for a file server that the Hub redirected to."""
    from huggingface_hub import constants, errors

    for cause in causes:
        if not isinstance(cause, errors.HfHubHTTPError):
            continue
        # A mirror redirects to the Hub itself, which names this error in a header.
        named = isinstance(cause, errors.RepositoryNotFoundError)
        if named or str(cause.response.url).startswith(constants.ENDPOINT):
            return cause.response.status_code, cause.response.headers
    return None
