"""Preprocesses the subject's images: upright photos, and squares at the training resolution."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image
from pydantic import JsonValue

from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.images.decode import prepare_photo
from dreambooth_trainer.images.prepare import prepare_images
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.store.folder import atomic_directory


def _inputs(context: Context) -> JsonValue:
    files: list[JsonValue] = [[raw.name, hashlib.sha256(raw.data).hexdigest()] for raw in context.images]
    return {"files": files, "resolution": context.plan.resolution}


def _complete(context: Context) -> bool:
    return context.folder.prepared.exists() and context.folder.photos.exists()


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    progress.total(len(context.images))
    images, warnings = prepare_images(context.images, context.plan.resolution, context.plan.spec.subject.captions)
    with atomic_directory(context.folder.prepared) as prepared, atomic_directory(context.folder.photos) as photos:
        for number, (raw, image) in enumerate(zip(context.images, images, strict=True)):
            _save(image.image, prepared / f"{number:03d}.png")
            _save(prepare_photo(raw, context.plan.resolution), photos / f"{number:03d}.png")
            progress.done(number + 1)
    return {"images": len(images), "warnings": list(warnings)}


def _save(image: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


PREPARE = Phase(TrainerPhase.PREPARE, _inputs, _complete, _run)
