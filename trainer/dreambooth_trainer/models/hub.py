"""Downloads models from the Hugging Face Hub: only the files that are loaded.

A commit that is in the cache needs no request. huggingface_hub retries failed requests a few times; errors that remain
are converted to a `UserError`, or to a `TransientError` for an outage.
"""

from __future__ import annotations

import errno
import functools
import glob
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dreambooth_api.errors import TransientError, UserError, ValidationIssue

_COMMIT = re.compile(r"[0-9a-f]{40}")
# Errors of the local file system, not of the Hub.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class Repository:
    """A model repository on the Hub at one commit.

    Attributes:
        path: field that contains the model ID, for error messages.
        names: names of all files, with slashes.
    """

    model_id: str
    path: str
    commit: str
    names: frozenset[str]

    def read(self, name: str) -> str:
        """Download a small file and return its text."""
        from huggingface_hub import hf_hub_download

        with convert_errors(self.model_id, self.commit, self.path):
            return Path(hf_hub_download(self.model_id, name, revision=self.commit)).read_text()


def fetch(
    model_id: str, revision: str | None, path: str, index: str, select: Callable[[Repository], Sequence[str]]
) -> Path:
    """Download files of a model, and return their folder in the cache. The folder's name is the commit.

    Args:
        path: field that contains the model ID, for error messages.
        index: file that describes the model. It is downloaded before `select` is called.
        select: returns the names of the files to download. Its errors are not converted.

    Raises:
        UserError: wrong ID or revision, missing permissions, or offline mode and not in the cache.
        TransientError: the Hub or the network failed.
    """
    from huggingface_hub import snapshot_download

    commit = revision
    if revision is None or not _COMMIT.fullmatch(revision):
        with convert_errors(model_id, revision, path):
            commit = Path(snapshot_download(model_id, revision=revision, allow_patterns=[index])).name
    assert commit is not None
    return _fetch_commit(model_id, commit, path, index, select)


@functools.cache
def _fetch_commit(
    model_id: str, commit: str, path: str, index: str, select: Callable[[Repository], Sequence[str]]
) -> Path:
    from huggingface_hub import snapshot_download

    with convert_errors(model_id, commit, path):
        folder = Path(snapshot_download(model_id, revision=commit, allow_patterns=[index]))
        names = _names(model_id, commit, folder)
    if index not in names:
        rule, remedy = f"has no {index} on the Hub", "use another model, or the path of a local folder"
        raise UserError(ValidationIssue(path, model_id, rule, remedy))
    files = select(Repository(model_id, path, commit, names))
    with convert_errors(model_id, commit, path):
        return Path(snapshot_download(model_id, revision=commit, allow_patterns=[glob.escape(name) for name in files]))


def _names(model_id: str, commit: str, folder: Path) -> frozenset[str]:
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return frozenset(file.path for file in get_cached_repo_tree(model_id, revision=commit))
    except CachedRepoTreeNotFoundError:
        # The cache was filled by an older version of huggingface_hub, and there is no network: use the cached files.
        return frozenset(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def converted_revision(model_id: str, path: str) -> str | None:
    """Git reference of the pull request in which the Hub's bot converted a model's weights to safetensors, or None.

    transformers uses the same pull request, and requests a conversion from a public service if there is none.
    """
    from huggingface_hub import HfApi

    with convert_errors(model_id, None, path):
        requests = HfApi().get_repo_discussions(model_id, author="SFconvertbot", discussion_type="pull_request")
        title = "Adding `safetensors` variant of this model"
        for discussion in requests:
            if discussion.author == "SFconvertbot" and discussion.title == title and discussion.status == "open":
                return discussion.git_reference
    return None


@contextmanager
def convert_errors(model_id: str, revision: str | None, path: str) -> Iterator[None]:
    """Convert errors of huggingface_hub to a `UserError`, or to a `TransientError` if a retry may succeed."""
    try:
        yield
    except Exception as error:
        raise _converted(error, model_id, revision, path) from error


def _converted(error: Exception, model_id: str, revision: str | None, path: str) -> Exception:
    from huggingface_hub import constants, errors

    causes = list(_causes(error))

    def user_error(rule: str, remedy: str) -> UserError:
        return UserError(ValidationIssue(path, model_id, rule, remedy))

    def has(kind: type[BaseException]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    if has(errors.HFValidationError):
        return user_error(
            "was not found as a local folder, and is not a valid Hub ID",
            "use the path of a model's folder, or an ID such as owner/name",
        )
    if has(errors.OfflineModeIsEnabled) or constants.is_offline_mode():
        return user_error(
            "is not in the cache, and HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE, or use a local folder"
        )
    if has(errors.RevisionNotFoundError):
        return user_error(f"has no revision {revision!r} on the Hub", "use an existing commit, tag or branch")
    if has(errors.GatedRepoError):
        remedy = f"accept its license at {constants.ENDPOINT}/{model_id}, and set HF_TOKEN to a token of that account"
        return user_error("is a gated model", remedy)
    if has(errors.RepositoryNotFoundError) or has(errors.DisabledRepoError) or _status(causes) in {401, 403, 404}:
        return user_error(
            "was not found, neither as a local folder nor on the Hub", "check the ID; for a private model, set HF_TOKEN"
        )
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return error
    reason = next(iter(str(causes[-1]).strip().splitlines()), "")
    return TransientError(
        f"{path}: {model_id!r}: cannot be downloaded from {constants.ENDPOINT} ({type(causes[-1]).__name__}: {reason})"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # An outage is raised as "not in the cache", with the actual error as its cause.
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(causes: Sequence[BaseException]) -> int | None:
    """Status code of the Hub's response; None for a server that the Hub redirected to."""
    from huggingface_hub import constants, errors

    for cause in causes:
        if isinstance(cause, errors.HfHubHTTPError) and str(cause.response.url).startswith(constants.ENDPOINT):
            return cause.response.status_code
    return None
