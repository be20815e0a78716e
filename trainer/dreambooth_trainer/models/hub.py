"""Downloads models from the Hugging Face Hub: only the files that are loaded.

A commit that is in the cache needs no request.
"""

from __future__ import annotations

import functools
import glob
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.models.hub_requests import request

_COMMIT = re.compile(r"[0-9a-f]{40}")
T = TypeVar("T")


@dataclass(frozen=True)
class Repository:
    """A model repository on the Hub at one commit.

    Attributes:
        path: field that contains the model ID, for error messages.
        names: names of all files, with slashes.
        checksums: SHA-256 of weights by name, in hex. Empty if the Hub did not list them.
    """

    model_id: str
    path: str
    commit: str
    names: frozenset[str]
    checksums: Mapping[str, str]

    def read(self, name: str) -> str:
        """Download a small file and return its text."""
        from huggingface_hub import hf_hub_download

        file = self._request(lambda: hf_hub_download(self.model_id, name, revision=self.commit))
        return Path(file).read_text()

    def download(self, names: Sequence[str]) -> Path:
        """Download files, and return the folder of this commit in the cache. The folder's name is the commit."""
        from huggingface_hub import snapshot_download

        patterns = [glob.escape(name) for name in names]
        return Path(
            self._request(lambda: snapshot_download(self.model_id, revision=self.commit, allow_patterns=patterns))
        )

    def _request(self, call: Callable[[], T]) -> T:
        return request(call, self.model_id, self.commit, self.path)


def open_repository(model_id: str, revision: str | None, path: str, index: str) -> Repository:
    """List the files of a model on the Hub and resolve its commit. Downloads only the index.

    Args:
        path: field that contains the model ID, for error messages.
        index: file that describes the model.

    Raises:
        UserError: wrong ID or revision, no index, missing permissions, or offline mode and not in the cache.
        TransientError: the Hub or the network failed.
    """
    from huggingface_hub import snapshot_download

    def download_index() -> Path:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=[index]))

    folder = request(download_index, model_id, revision, path)
    commit = folder.name
    names = _names(model_id, commit, folder)
    if index not in names:
        rule, remedy = f"has no {index} on the Hub", "use another model, or the path of a local folder"
        raise UserError(ValidationIssue(path, model_id, rule, remedy))
    return Repository(model_id, path, commit, names, _checksums(commit, folder))


def cached_snapshot(model_id: str, revision: str | None, index: str) -> Path | None:
    """The folder of a model in the cache, without a request; None if the cache does not contain its index."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=[index], local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def fetch(
    model_id: str, revision: str | None, path: str, index: str, select: Callable[[Repository], Sequence[str]]
) -> Path:
    """Download files of a model, and return their folder in the cache. The folder's name is the commit.

    Args:
        select: returns the names of the files to download. Its errors are not converted.

    Raises:
        UserError, TransientError: as `open_repository`.
    """
    if revision is None or not _COMMIT.fullmatch(revision):
        revision = open_repository(model_id, revision, path, index).commit
    return _fetch_commit(model_id, revision, path, index, select)


@functools.cache
def _fetch_commit(
    model_id: str, commit: str, path: str, index: str, select: Callable[[Repository], Sequence[str]]
) -> Path:
    repository = open_repository(model_id, commit, path, index)
    return repository.download(select(repository))


def _names(model_id: str, commit: str, folder: Path) -> frozenset[str]:
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return frozenset(file.path for file in get_cached_repo_tree(model_id, revision=commit))
    except CachedRepoTreeNotFoundError:
        # The cache was filled by an older version of huggingface_hub, and there is no network: use the cached files.
        return frozenset(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def _checksums(commit: str, folder: Path) -> dict[str, str]:
    # get_cached_repo_tree reads the same file, but returns it without the checksums (huggingface_hub 2.4).
    from huggingface_hub._tree_cache import read_tree_cache

    tree = read_tree_cache(str(folder.parents[1]), commit) or {}
    return {name: file.lfs_sha256 for name, file in tree.items() if file.lfs_sha256}


def converted_revision(model_id: str, path: str) -> str | None:
    """Git reference of the pull request in which the Hub's bot converted a model's weights to safetensors, or None.

    transformers uses the same pull request, and requests a conversion from a public service if there is none. In
    offline mode, a pull request in the cache is used.
    """
    from huggingface_hub import HfApi, constants, scan_cache_dir
    from huggingface_hub.errors import HfHubHTTPError

    if constants.is_offline_mode():
        references = (ref for repo in scan_cache_dir().repos if repo.repo_id == model_id for ref in repo.refs)
        return next((ref for ref in references if ref.startswith("refs/pr/")), None)

    def find() -> str | None:
        title = "Adding `safetensors` variant of this model"
        try:
            for pull in HfApi().get_repo_discussions(model_id, author="SFconvertbot", discussion_type="pull_request"):
                if pull.author == "SFconvertbot" and pull.title == title and pull.status == "open":
                    return pull.git_reference
        except HfHubHTTPError as error:
            # The owner can disable pull requests, and mirrors do not have them.
            if error.response.status_code not in (403, 404):
                raise
        return None

    return request(find, model_id, None, path)
