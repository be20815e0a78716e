"""A model repository on the Hugging Face Hub as the output of a job: `hf://<owner>/<name>`.

The rules are those of `owner.py`. Each change is one commit on top of the commit that was checked: if somebody else
commits in between, the Hub rejects it. A repository that does not exist is created as a private one.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.uris import hub_repository
from dreambooth_trainer.models.hub_requests import request
from dreambooth_trainer.store.owner import (
    MANIFEST,
    MARKER,
    MAX_BYTES,
    Owner,
    Place,
    owner_of,
    parse_manifest,
    parse_marker,
    place_issues,
)

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

log = logging.getLogger(__name__)
T = TypeVar("T")
_PATH = "spec.output.uri"
# The Hub adds this file to every new repository. No job owns it.
_IGNORED = {".gitattributes"}
# In the marker of a repository that the job created, which is deleted with its last file.
_CREATED = "createdRepository"


@dataclass(frozen=True)
class _Repository:
    """A repository at one commit. `commit` is None if it does not exist, or the token may not read it."""

    repo_id: str
    commit: str | None
    place: Place
    created: bool = False


def repository_issues(uri: str, job: DreamBoothJob) -> list[ValidationIssue]:
    """Reasons why a job may not publish to a repository. Read-only.

    Raises:
        UserError: the token is missing or invalid.
        TransientError: the Hub cannot be reached.
    """
    return _issues(uri, _call(uri, _read), owner_of(job))


def claim_repository(uri: str, job: DreamBoothJob) -> None:
    """Create the repository if it does not exist, and commit the job's marker. It shows that the token may write.

    Raises:
        UserError: the repository belongs to another job, or is not empty; or the token may not write to it.
        TransientError: the Hub cannot be reached.
    """
    own, created = owner_of(job), False

    def claim(repo_id: str) -> list[ValidationIssue]:
        from huggingface_hub import CommitOperationAdd, HfApi

        nonlocal created  # the call is repeated after an outage
        found = _read(repo_id)
        if found.commit is None:
            HfApi().create_repo(repo_id, private=True, exist_ok=True)
            created = True
            found = _read(repo_id)
        issues = _issues(uri, found, own)
        if not issues and found.place.owner != own:
            content = own.model_dump(exclude_defaults=True)
            content |= {_CREATED: True} if created or found.created else {}
            marker = CommitOperationAdd(MARKER, json.dumps(content).encode() + b"\n")
            _commit(found, [marker], f"Reserve for the DreamBoothJob {job.metadata.name}")
        return issues

    if issues := _call(uri, claim):
        raise UserError(issues)


def upload_repository(model: Path, files: Collection[str], uri: str, job: DreamBoothJob) -> None:
    """Upload a model, and delete the files of a model that this job published there earlier, in one commit.

    Args:
        files: names of the files of the model except the manifest.

    Raises:
        UserError: the repository belongs to another job, or contains a file of another owner that would be replaced.
        TransientError: the Hub cannot be reached.
    """
    own = owner_of(job)

    def upload(repo_id: str) -> list[ValidationIssue]:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        found = _read(repo_id)
        if issues := _issues(uri, found, own, files):
            return issues
        names = [*files, MANIFEST]
        obsolete = sorted((found.place.owned & set(found.place.names)) - set(names))
        changes = [
            *(CommitOperationAdd(name, str(model / name)) for name in names),
            *(CommitOperationDelete(name) for name in obsolete),
        ]
        _commit(found, changes, f"Publish the model of the DreamBoothJob {job.metadata.name}")
        return []

    claim_repository(uri, job)
    if issues := _call(uri, upload):
        raise UserError(issues)


def erase_repository(own: Owner, uri: str) -> tuple[tuple[str, ...], bool] | None:
    """Delete the job's files from a repository in one commit, or the repository if the job created it.

    Returns:
        The remaining files, and whether the repository belongs to the job: otherwise nothing was deleted. None if it
        does not exist.
    """

    def erase(repo_id: str) -> tuple[tuple[str, ...], bool] | None:
        from huggingface_hub import CommitOperationDelete, HfApi

        found = _read(repo_id)
        place = found.place
        if not place.names:
            if found.commit is None:
                log.warning("%s does not exist, or the token may not read it: nothing was deleted there", uri)
            return None
        if place.owner is None or not place.owner.is_same(own):
            return tuple(sorted(place.names)), False
        owned = place.owned if place.manifest is not None and place.manifest.job.is_same(own) else set[str]()
        deleted = sorted((owned | {MARKER}) & set(place.names))
        kept = tuple(sorted(set(place.names) - set(deleted)))
        if found.created and not kept and not _has_other_refs(repo_id):
            HfApi().delete_repo(repo_id, missing_ok=True)
        else:
            _commit(found, [CommitOperationDelete(name) for name in deleted], "Delete the files of a DreamBoothJob")
        return kept, True

    return _call(uri, erase)


def _call(uri: str, call: Callable[[str], T]) -> T:
    """Call with the ID of the repository. After an outage or a concurrent commit it is called again."""
    repo_id = hub_repository(uri) or ""
    return request(lambda: call(repo_id), repo_id, None, _PATH, write=True)


def _issues(uri: str, found: _Repository, own: Owner, files: Collection[str] = ()) -> list[ValidationIssue]:
    return place_issues(uri, found.place, own, files, lambda name: name in found.place.names)


def _read(repo_id: str) -> _Repository:
    """The names of all files of a repository, and its marker and manifest."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = HfApi().model_info(repo_id, files_metadata=True)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:  # also the answer to an invalid token
            raise
        return _Repository(repo_id, None, Place((), None, None))
    sizes = {file.rfilename: file.size for file in info.siblings or () if file.rfilename not in _IGNORED}
    with tempfile.TemporaryDirectory() as cache:

        def read(name: str) -> bytes | None:
            if (size := sizes.get(name)) is None or size > MAX_BYTES:
                return None
            return Path(hf_hub_download(repo_id, name, revision=info.sha, cache_dir=cache)).read_bytes()

        marker, manifest = read(MARKER), read(MANIFEST)
    owner = parse_marker(marker)
    created = owner is not None and json.loads(marker or b"{}").get(_CREATED) is True
    return _Repository(repo_id, info.sha, Place(set(sizes), owner, parse_manifest(manifest)), created)


def _has_other_refs(repo_id: str) -> bool:
    """Whether somebody added branches, tags or pull requests, which would be deleted with the repository."""
    from huggingface_hub import HfApi

    refs = HfApi().list_repo_refs(repo_id, include_pull_requests=True)
    return any(ref.name != "main" for ref in (*refs.branches, *refs.tags, *(refs.pull_requests or ())))


def _commit(found: _Repository, changes: Sequence[CommitOperationAdd | CommitOperationDelete], message: str) -> None:
    from huggingface_hub import HfApi

    operations: list[Any] = list(changes)
    HfApi().create_commit(found.repo_id, operations, commit_message=message, parent_commit=found.commit)
