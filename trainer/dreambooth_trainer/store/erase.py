"""Removes what a job made: images, latents, checkpoints, weights, pictures and the published copy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import fsspec

from dreambooth_trainer.faults import Fault, UserError
from dreambooth_trainer.spec import DreamBoothJob

# What only a job's folder or a published model has at its top: a folder of anything else is not touched.
SIGNS = ("job.yaml", "work", "dreambooth.json")


def erase_job(job: DreamBoothJob, folder: str) -> Iterator[str]:
    """Remove a job's folder and its published copy, yielding each URL that was removed. Missing ones are fine.

    Class images in a shared store stay: they hold nothing of the subject, and other jobs use them.

    Raises:
        UserError: a folder holds something, but nothing of a job; nothing of it is removed.
    """
    urls = [folder]
    published = job.spec.output.uri
    if published is not None and "://" in published and published != folder:
        urls.append(published)
    for url in urls:
        fs, path = fsspec.url_to_fs(url)
        if not fs.exists(path):
            continue
        inside = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False)}
        if inside and not inside.intersection(SIGNS):
            raise UserError(Fault("--out", url, "is no folder of a job", "write the folder that the job ran in"))
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)
        yield url
