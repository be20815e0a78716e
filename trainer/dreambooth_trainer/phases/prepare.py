"""Preprocesses the images of the subjects: upright photos, and squares at the training resolution."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image
from pydantic import JsonValue

from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.images.decode import prepare_photo
from dreambooth_trainer.images.subjects import prepare_subjects
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.store.folder import atomic_directory


def _inputs(context: Context) -> JsonValue:
    files: list[JsonValue] = [
        [[raw.name, hashlib.sha256(raw.data).hexdigest()] for raw in images] for images in context.images
    ]
    return {"files": files, "resolution": context.plan.resolution}


def _complete(context: Context) -> bool:
    return context.folder.prepared.exists() and context.folder.photos.exists()


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    progress.total(sum(map(len, context.images)))
    subjects, warnings = prepare_subjects(context.images, context.plan.spec, context.plan.resolution)
    done = 0
    with atomic_directory(context.folder.prepared) as prepared, atomic_directory(context.folder.photos) as photos:
        for subject, (raws, images) in enumerate(zip(context.images, subjects, strict=True)):
            for number, (raw, image) in enumerate(zip(raws, images.images, strict=True)):
                name = f"{subject}-{number:03d}.png"
                _save(image.image, prepared / name)
                _save(prepare_photo(raw, context.plan.resolution), photos / name)
                done += 1
                progress.done(done)
    return {"images": done, "warnings": list[JsonValue](warnings)}


def _save(image: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


PREPARE = Phase(TrainerPhase.PREPARE, _inputs, _complete, _run)
