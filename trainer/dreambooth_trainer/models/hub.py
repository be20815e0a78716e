"""Models from the Hugging Face Hub: fetches only what is loaded, and separates an outage from a wrong name.

A commit that is in the cache needs no call. huggingface_hub itself waits and repeats a few times before it gives up.
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
# This machine's refusal, not the hub's.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class Repository:
    """A model on the hub at one commit.

    Attributes:
        path: the field that names it, for messages.
        names: its files, relative, with slashes.
    """

    model_id: str
    path: str
    commit: str
    names: frozenset[str]

    def read(self, name: str) -> str:
        """The text of a small file."""
        from huggingface_hub import hf_hub_download

        with explained(self.model_id, self.commit, self.path):
            return Path(hf_hub_download(self.model_id, name, revision=self.commit)).read_text()


def fetch(
    model_id: str, revision: str | None, path: str, first: str, choose: Callable[[Repository], Sequence[str]]
) -> Path:
    """The folder in the cache with the files of a model that `choose` names. The folder's name is the commit.

    Args:
        path: the field that names the model, for messages.
        first: the file that describes the model; it is fetched before `choose` is called.
        choose: which files to fetch; what it raises ends the download.

    Raises:
        UserError: the name, the revision or the rights are wrong, or the user wants no network.
        TransientError: the hub, or the way to it, is at refusal.
    """
    from huggingface_hub import snapshot_download

    commit = revision
    if revision is None or not _COMMIT.fullmatch(revision):
        with explained(model_id, revision, path):
            commit = Path(snapshot_download(model_id, revision=revision, allow_patterns=[first])).name
    assert commit is not None
    return _fetch_commit(model_id, commit, path, first, choose)


@functools.cache
def _fetch_commit(
    model_id: str, commit: str, path: str, first: str, choose: Callable[[Repository], Sequence[str]]
) -> Path:
    from huggingface_hub import snapshot_download

    with explained(model_id, commit, path):
        folder = Path(snapshot_download(model_id, revision=commit, allow_patterns=[first]))
        names = _names(model_id, commit, folder)
    if first not in names:
        remedy = "write a model that has one, or the folder of one"
        raise UserError(ValidationIssue(path, model_id, f"is on the hub, but has no {first}", remedy))
    files = choose(Repository(model_id, path, commit, names))
    with explained(model_id, commit, path):
        return Path(snapshot_download(model_id, revision=commit, allow_patterns=[glob.escape(name) for name in files]))


def _names(model_id: str, commit: str, folder: Path) -> frozenset[str]:
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return frozenset(file.path for file in get_cached_repo_tree(model_id, revision=commit))
    except CachedRepoTreeNotFoundError:
        # A cache that an older library filled, and no network: what is there is all there is.
        return frozenset(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def converted_revision(model_id: str, path: str) -> str | None:
    """The pull request in which the hub's own bot has converted a model's weights to safetensors.

    transformers looks there as well, and would ask a public service for a conversion if there is none.
    """
    from huggingface_hub import HfApi

    with explained(model_id, None, path):
        requests = HfApi().get_repo_discussions(model_id, author="SFconvertbot", discussion_type="pull_request")
        title = "Adding `safetensors` variant of this model"
        for discussion in requests:
            if discussion.author == "SFconvertbot" and discussion.title == title and discussion.status == "open":
                return discussion.git_reference
    return None


@contextmanager
def explained(model_id: str, revision: str | None, path: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a UserError or a TransientError."""
    try:
        yield
    except Exception as error:
        raise _explanation(error, model_id, revision, path) from error


def _explanation(error: Exception, model_id: str, revision: str | None, path: str) -> Exception:
    from huggingface_hub import constants, errors

    causes = list(_causes(error))

    def refusal(rule: str, remedy: str) -> UserError:
        return UserError(ValidationIssue(path, model_id, rule, remedy))

    def has(kind: type[BaseException]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    if has(errors.HFValidationError):
        return refusal(
            "is neither a folder here nor an id on the hub", "write the folder of a model, or an id such as owner/name"
        )
    if has(errors.OfflineModeIsEnabled) or constants.is_offline_mode():
        return refusal(
            "is not in the cache, and HF_HUB_OFFLINE forbids to fetch it", "unset HF_HUB_OFFLINE, or write a folder"
        )
    if has(errors.RevisionNotFoundError):
        return refusal(f"has no revision {revision!r} on the hub", "write a commit, tag or branch that it has")
    if has(errors.GatedRepoError):
        remedy = f"accept its license at {constants.ENDPOINT}/{model_id}, and set HF_TOKEN to a token of that account"
        return refusal("is open only to those who accept its license", remedy)
    if has(errors.RepositoryNotFoundError) or has(errors.DisabledRepoError) or _status(causes) in {401, 403, 404}:
        return refusal("is not on the hub, or is private", "check the id; for a private model set HF_TOKEN")
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return error
    said = next(iter(str(causes[-1]).strip().splitlines()), "")
    return TransientError(
        f"{path}: {model_id!r}: cannot be fetched from {constants.ENDPOINT} now ({type(causes[-1]).__name__}: {said})"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # An outage comes as "not in the cache", with the reason behind it.
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(causes: Sequence[BaseException]) -> int | None:
    """The HTTP status with which the hub itself refused; None for another server that it sent us to."""
    from huggingface_hub import constants, errors

    for cause in causes:
        if isinstance(cause, errors.HfHubHTTPError) and str(cause.response.url).startswith(constants.ENDPOINT):
            return cause.response.status_code
    return None
