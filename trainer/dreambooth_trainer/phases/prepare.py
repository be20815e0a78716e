"""Preprocesses the subject's images: decoded, upright, square, at the training resolution."""

from __future__ import annotations

import hashlib
import io

from pydantic import JsonValue

from dreambooth_trainer.images.prepare import prepare_images
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.store.folder import atomic_directory


def _inputs(context: Context) -> JsonValue:
    files: list[JsonValue] = [[raw.name, hashlib.sha256(raw.data).hexdigest()] for raw in context.images]
    return {"files": files, "resolution": context.plan.resolution}


def _complete(context: Context) -> bool:
    return context.folder.prepared.exists()


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    progress.total(len(context.images))
    images, warnings = prepare_images(context.images, context.plan.resolution, context.plan.spec.subject.captions)
    with atomic_directory(context.folder.prepared) as draft:
        for number, prepared in enumerate(images):
            buffer = io.BytesIO()
            prepared.image.save(buffer, "PNG")
            (draft / f"{number:03d}.png").write_bytes(buffer.getvalue())
            progress.done(number + 1)
    return {"images": len(images), "warnings": list(warnings)}


PREPARE = Phase("prepare", _inputs, _complete, _run)
