"""From what a user passes to `Client.run` to a job. Both backends read job files as `dreambooth run` does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import API_VERSION, KIND, DreamBoothJob, JobSpec
from dreambooth_trainer.jobfile.fromphotos import default_name, job_from_photos
from dreambooth_trainer.jobfile.load import build_job, load_job
from dreambooth_trainer.jobfile.overrides import Override, Sets
from dreambooth_trainer.jobfile.yamltext import Document

Spec = DreamBoothJob | JobSpec | Mapping[str, Any] | str | os.PathLike[str]
"""A job, a spec, either as a mapping with the keys of a job file, or the path of a job file."""

DEFAULT_NAME = "dreambooth"


def read_job(
    spec: Spec | None,
    images: str | os.PathLike[str] | None,
    class_: str | None,
    name: str | None,
    settings: Mapping[str, Any] | None,
) -> DreamBoothJob:
    """The job that the arguments of `Client.run` describe. Relative paths are relative to the current folder.

    Raises:
        UserError: with all issues.
    """
    overrides = [
        Override(("spec", *_path(key)), value, f"settings[{key!r}] {value!r}")
        for key, value in (settings or {}).items()
    ]
    if images is not None and spec is None:
        subject = [] if class_ is None else [Override(("spec", "subject", "class"), class_, f"class_={class_!r}")]
        return job_from_photos(os.fspath(images), [*subject, *overrides], name or default_name(os.fspath(images)))
    if spec is None or images is not None or class_ is not None:
        rule = "needs either a spec, or images and class_"
        raise UserError(
            ValidationIssue("run", None, rule, "write run(images='photos', class_='dog') or run('job.yaml')")
        )
    if isinstance(spec, str | os.PathLike):
        return _renamed(load_job(Path(spec), overrides), name)
    return _from_mapping(spec, name, overrides)


def _from_mapping(spec: DreamBoothJob | JobSpec | Mapping[str, Any], name: str | None, sets: Sets) -> DreamBoothJob:
    value: dict[str, JsonValue] = (
        dict(spec)
        if isinstance(spec, Mapping)
        else spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    )
    if "spec" in value or "metadata" in value:
        head: dict[str, JsonValue] = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": DEFAULT_NAME}}
        value = head | value
        return _renamed(build_job(Document(value, 1, {}), sets, "spec", Path.cwd()), name)
    value = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name or DEFAULT_NAME},
        "spec": value,
    }
    return build_job(Document(value, 1, {}), sets, "spec", Path.cwd())


def _renamed(job: DreamBoothJob, name: str | None) -> DreamBoothJob:
    if name is None:
        return job
    value = job.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    value["metadata"]["name"] = name
    return build_job(Document(value, 1, {}), (), "name", Path.cwd())


def _path(key: str) -> list[str]:
    """The path of a key such as training.steps. Below captions, the rest is a file name."""
    parts = key.removeprefix("spec.").split(".")
    if "captions" in parts[:-1]:
        end = parts.index("captions") + 1
        return [*parts[:end], ".".join(parts[end:])]
    return parts
