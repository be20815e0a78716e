"""A published model as a pipeline of diffusers."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from dreambooth.errors import ClientError, missing_package
from dreambooth_api.status import printable
from dreambooth_api.uris import HUB, OBJECT_STORES, OUTPUT_URI, VOLUME, hub_repository, is_url


def load_pipeline(location: str, device: str | None) -> Any:
    """The pipeline of a model at a local path or a URI.

    Raises:
        ClientError: the model is on a volume of a cluster, has two stages or images as prompts; a package is missing.
        UserError: the location does not contain a published model, or its files are damaged.
    """
    try:
        folder = local_copy(location)
        from dreambooth_trainer.sampling.from_published import open_pipeline
    except ModuleNotFoundError as error:
        raise missing_package("load_pipeline()", "trainer", error) from error
    loaded, note = open_pipeline(folder, device)
    if note:
        print(note)
    if loaded.super_resolution is not None:
        raise ClientError(f"the model in {location} has two stages; use dreambooth generate --model {location}")
    if loaded.subject_images is not None:
        rule = f"the model in {location} has images as prompts"
        raise ClientError(f"{rule}; use dreambooth generate --model {location}, or the code in its README.md")
    loaded.pipeline.set_progress_bar_config(disable=False)
    return loaded.pipeline


def local_copy(location: str) -> Path:
    """The local folder of a model, downloaded from an object store or the Hub if needed."""
    if location.startswith(VOLUME):
        rule = f"the model is on a volume of the cluster, {location}"
        raise ClientError(f"{rule}; mount it, or set output.uri to an object store or the Hub in the next job")
    if location.startswith("file://"):
        return Path(location.removeprefix("file://"))
    if not is_url(location):
        return Path(location)
    # Others may have written it. fsspec reads more schemes, also several in one: s3://bucket::file:///etc
    if not re.fullmatch(OUTPUT_URI, location.rstrip("/")):
        rule = f"is neither a folder in {OBJECT_STORES} nor {HUB}owner/name"
        raise ClientError(f"the model is in {printable(location)}, which {rule}; copy it to a folder")
    from dreambooth_trainer.store.fetch import fetch_published

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dreambooth" / "models"
    return fetch_published(location if hub_repository(location) is None else location.rstrip("/"), cache)
