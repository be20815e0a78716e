"""Encode: latents and text conditioning of every image, computed once instead of at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image
from pydantic import JsonValue

from dreambooth_trainer.cluster.hardware import work_device
from dreambooth_trainer.families.registry import local_folder, open_family
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.phases.class_images import class_image_names, class_image_store
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.image_store import ImageStore

# Heavy imports stand in the functions that need them: the driver has no use for them.
if TYPE_CHECKING:
    from dreambooth_trainer.families.base import Components, Family
    from dreambooth_trainer.training.cache import Latents

IMAGES_AT_A_TIME = 8


def instance_prompts(context: Context) -> list[str]:
    """Each subject image's prompt: its caption where it has one."""
    captions = context.plan.spec.subject.captions
    return [captions.get(image.name, context.plan.instance_prompt) for image in context.images]


def _inputs(context: Context) -> JsonValue:
    plan = context.plan
    return {
        "prepare": context.keys["prepare"],
        "class_images": context.keys["class-images"],
        "model": context.base_digest,
        "prompts": list(instance_prompts(context)),
        "text_encoder": plan.train_text_encoder,
    }


def _complete(context: Context) -> bool:
    return context.folder.latents.exists()


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    names = class_image_names(context)
    count = len(context.images) + len(names)
    progress.total(count)
    context.pool.call(
        encode, context.plan, context.folder, instance_prompts(context), class_image_store(context), names
    )
    progress.done(count)
    return {"images": count}


def encode(plan: Plan, folder: JobFolder, prompts: list[str], class_images: ImageStore, names: list[str]) -> None:
    """Encode all images with the base model and write the cache; runs on a worker, on its GPU if it has one."""
    from dreambooth_trainer.sampling.generate import drop_models
    from dreambooth_trainer.training.cache import TrainingData, save_data

    drop_models()  # this process may not have room for two models
    base = local_folder(plan.model)
    family = open_family(base)
    parts = family.load(base, with_vae=True)
    device = work_device()
    if device != "cpu" and parts.vae is not None:
        parts.vae.to(device)  # pyright: ignore[reportArgumentType] - torch's own signature takes a string
        parts.text_encoder.to(device)
    subject = [Image.open(path) for path in sorted(folder.prepared.glob("*.png"))]
    keep_text = not plan.train_text_encoder
    instance = _latents(family, parts, subject, prompts, keep_text=keep_text)
    prior = None
    if names:
        pictures = [class_images.get(name) for name in names]
        prior = _latents(
            family, parts, pictures, [plan.class_prompt] * len(names), keep_text=not plan.train_text_encoder
        )
    draft = folder.latents.with_suffix(".draft")
    save_data(TrainingData(instance, prior), draft)
    draft.replace(folder.latents)


def _latents(
    family: Family, parts: Components, images: Sequence[Image.Image], prompts: list[str], *, keep_text: bool
) -> Latents:
    import torch

    from dreambooth_trainer.training.cache import Latents

    means, stds = [], []
    for first in range(0, len(images), IMAGES_AT_A_TIME):
        mean, std = family.encode_images(parts, images[first : first + IMAGES_AT_A_TIME])
        means.append(mean.float().cpu())
        stds.append(std.float().cpu())
    different = sorted(set(prompts))
    prompt_of = [different.index(prompt) for prompt in prompts]
    ids = family.tokenize(parts, different)
    conditioning = None
    if keep_text:
        device = next(parts.text_encoder.parameters()).device
        with torch.no_grad():
            conditioning = family.encode_prompts(parts.text_encoder, ids.to(device)).float().cpu()
    return Latents(torch.cat(means), torch.cat(stds), torch.tensor(prompt_of), ids, conditioning)


ENCODE = Phase("encode", _inputs, _complete, _run)
