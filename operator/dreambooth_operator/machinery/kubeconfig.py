"""Which kubeconfig files, context and namespace apply, by the rules of kubectl.

`kubernetes.aio` merges several files, but takes the current context of the last one; kubectl takes that of the first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

DEFAULT = Path("~/.kube/config")


class KubeconfigError(Exception):
    """No connection can be read from the kubeconfig. The message is one sentence with the remedy."""


@dataclass(frozen=True)
class Kubeconfig:
    """The context that applies.

    Attributes:
        paths: the files that exist, joined as in $KUBECONFIG.
        context: name of the context.
        namespace: namespace of the context; "default" if it has none.
        contexts: names of all contexts.
    """

    paths: str
    context: str
    namespace: str
    contexts: tuple[str, ...]


def read_kubeconfig(path: str | None = None, context: str | None = None) -> Kubeconfig:
    """Read `path`, else the files in $KUBECONFIG, else ~/.kube/config.

    Raises:
        KubeconfigError: there is no file, a file cannot be read, or the context does not exist.
    """
    listed = [path] if path else os.environ.get("KUBECONFIG", "").split(os.pathsep)
    named = [Path(name).expanduser() for name in filter(None, listed)] or [DEFAULT.expanduser()]
    documents = {file: document for file in named if (document := _read(file, required=bool(path)))}
    if not documents:
        names = os.pathsep.join(map(str, named))
        raise KubeconfigError(
            f"there is no kubeconfig at {names}; get one from your cluster's administrator or provider, and set "
            "--kubeconfig or KUBECONFIG to its path"
        )
    paths = os.pathsep.join(map(str, documents))
    contexts: dict[str, Any] = {}
    for document in documents.values():
        for name, entry in _contexts(document):
            contexts.setdefault(name, entry)  # as in kubectl, the first file has precedence
    current = next((str(name) for d in documents.values() if (name := d.get("current-context"))), "")
    chosen = context or current
    if chosen not in contexts:
        known = ", ".join(contexts) or "none"
        rule = f"has no context {chosen!r}" if chosen else "has no current context"
        raise KubeconfigError(f"the kubeconfig {paths} {rule}; select one with --context (it has: {known})")
    entry: Any = contexts[chosen] or {}
    if not isinstance(entry, dict):
        raise KubeconfigError(
            f"the context {chosen!r} of the kubeconfig {paths} is not a mapping; write cluster and user below it"
        )
    namespace: Any = cast("dict[str, Any]", entry).get("namespace")
    return Kubeconfig(paths, chosen, str(namespace or "default"), tuple(contexts))


def _read(file: Path, *, required: bool) -> dict[str, Any]:
    """The document in a file; empty if there is none. Only a file that was named by an option must exist."""
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise KubeconfigError(f"there is no kubeconfig at {file}; correct --kubeconfig") from None
        return {}
    except OSError as error:
        raise KubeconfigError(
            f"the kubeconfig {file} cannot be read: {error.strerror}; correct its permissions"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        where = getattr(getattr(error, "problem_mark", None), "line", None)
        line = f" (line {where + 1})" if isinstance(where, int) else ""
        raise KubeconfigError(f"the kubeconfig {file} is not valid YAML{line}; correct or replace the file") from error
    if document is not None and not isinstance(document, dict):
        raise KubeconfigError(f"the kubeconfig {file} is not a mapping; correct or replace the file")
    return cast("dict[str, Any]", document or {})


def _contexts(document: dict[str, Any]) -> list[tuple[str, Any]]:
    entries: Any = document.get("contexts")
    listed = cast("list[Any]", entries if isinstance(entries, list) else [])
    named = [cast("dict[str, Any]", entry) for entry in listed if isinstance(entry, dict) and "name" in entry]
    return [(str(entry["name"]), entry.get("context")) for entry in named]
