"""Removes what a job made: images, latents, checkpoints, weights, pictures and the published copy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import fsspec

from dreambooth_trainer.faults import Fault, UserError
from dreambooth_trainer.spec import DreamBoothJob

# What has one of these at its top is a job's folder, or a published model; nothing else is touched.
FOLDER_SIGNS = ("job.yaml", "work")
MODEL_SIGNS = ("dreambooth.json", "job.yaml")


def erase_job(job: DreamBoothJob, folder: str) -> Iterator[str]:
    """Remove a job's folder and its published copy, yielding each URL that was removed. Missing ones are fine.

    Class images in a shared store stay: they hold nothing of the subject, and other jobs use them.

    Raises:
        UserError: a folder holds something, but nothing of a job; nothing of it is removed.
    """
    places: dict[str, tuple[str, ...]] = {folder: FOLDER_SIGNS}
    published = job.spec.output.uri
    if published is not None and "://" in published and published != folder:
        places[published] = MODEL_SIGNS
    for url, signs in places.items():
        fs, path = fsspec.url_to_fs(url)
        if not fs.exists(path):
            continue
        entries = {entry: entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False)}
        if entries and not set(signs).intersection(entries.values()):
            raise UserError(Fault("--out", url, "is no folder of a job", "write the folder that the job ran in"))
        # Signs go last: an erasure that was cut short must know the rest for its own.
        for entry in [*sorted(entries, key=lambda entry: entries[entry] in signs), path]:
            with contextlib.suppress(FileNotFoundError):
                fs.rm(entry, recursive=True)
        yield url
