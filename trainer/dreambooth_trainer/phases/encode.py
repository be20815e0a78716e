"""Encodes all images and prompts once, instead of at every training step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from PIL import Image
from pydantic import JsonValue

from dreambooth_api.errors import TransientError
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.cluster.hardware import work_device
from dreambooth_trainer.families.ip_adapter import adapter_digest
from dreambooth_trainer.families.registry import local_folder, open_family
from dreambooth_trainer.hypernetwork.files import network_digest
from dreambooth_trainer.hypernetwork.predict import predict_initial_adapter
from dreambooth_trainer.images.augment import augment, resized
from dreambooth_trainer.images.captions import caption_for
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.phases.class_images import (
    class_image_names,
    class_image_store,
    generate_missing,
    own_class_image_store,
    own_class_images,
    store_own_images,
)
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.sampling.encode_images import encode_class_images, latent_store
from dreambooth_trainer.sampling.image_prompts import encode_image_prompts
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.image_store import ImageStore

# Heavy libraries are imported inside functions: the driver does not need them.
if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth_trainer.families.base import Stage, Tensors
    from dreambooth_trainer.training.cache import EncodedImages

EncodePrompts: TypeAlias = "Callable[[Sequence[str]], Mapping[str, Tensor]]"
VAE_BATCH_SIZE = 8
"""Images per forward pass of the autoencoder."""


@dataclass(frozen=True)
class ClassImages:
    """Class images of one class prompt.

    Attributes:
        names: of the images to encode.
        own: whether the job provides them; otherwise they are generated.
    """

    prompt: str
    store: ImageStore
    names: list[str]
    own: bool = False


def class_images_of(context: Context) -> list[ClassImages]:
    """The class images of this job: its own first, then generated ones; empty without prior preservation."""
    names, own = class_image_names(context), own_class_images(context)
    generated = [ClassImages(prompt, class_image_store(context, prompt), names[prompt]) for prompt in names]
    if not own:
        return generated
    first = ClassImages(generated[0].prompt, own_class_image_store(context), list(own), own=True)
    return [first, *(images for images in generated if images.names)]


def instance_prompts(context: Context) -> list[list[str]]:
    """The prompt of each image of each subject: its caption, if it has one, or the instance prompt."""
    return [
        [caption_for(image.name, subject.captions) or subject.instance_prompt for image in images]
        for subject, images in zip(context.plan.subjects, context.images, strict=True)
    ]


def instance_weights(context: Context) -> list[int]:
    """Number of times that each image of each subject occurs in an epoch, in one list."""
    return [image.weight for images in context.images for image in images]


def _inputs(context: Context) -> JsonValue:
    plan, training = context.plan, context.plan.spec.training
    if (prompts := plan.image_prompts) is not None:
        return {
            "prepare": context.keys[TrainerPhase.PREPARE],
            "model": context.base_digest,
            "adapter": adapter_digest(prompts.adapter),
            "scale": prompts.scale,
            "identifiers": [subject.identifier for subject in plan.subjects],
        }
    return {
        "prepare": context.keys[TrainerPhase.PREPARE],
        "class_images": context.keys[TrainerPhase.CLASS_IMAGES],
        "model": context.base_digest,
        "prompts": [list[JsonValue](prompts) for prompts in instance_prompts(context)],
        "weights": list[JsonValue](instance_weights(context)),
        "class_prompts": [subject.class_prompt for subject in plan.subjects]
        if plan.spec.preservation == "Prediction"
        else None,
        # Jobs without it keep the key that they had before this setting existed.
        **({"network": network_digest(plan.hyper_network)} if plan.hyper_network else {}),
        "text_encoder": plan.live_text_encoders,
        "tokens": [list[JsonValue](tokens) for tokens in plan.new_tokens.values()],
        "augmentation": [training.random_crop, training.random_flip, training.seed]
        if plan.variants_per_image > 1
        else None,
    }


def _complete(context: Context) -> bool:
    if context.plan.image_prompts is not None:
        return context.folder.trained.exists()
    if context.plan.hyper_network is not None and not context.folder.initial_adapter.exists():
        return False
    return all(context.folder.of_stage(stage.stage).latents.exists() for stage in context.plan.stages)


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    if context.plan.image_prompts is not None:
        count = sum(map(len, context.images))
        progress.total(count)
        context.pool.call(encode_image_prompts, context.plan, context.folder)
        progress.done(count)
        return {"images": count}
    class_images = class_images_of(context)
    count = sum(map(len, context.images)) * context.plan.variants_per_image
    count += sum(len(images.names) for images in class_images)
    count *= len(context.plan.stages)
    progress.total(count)
    encode_shared(context, class_images, progress.done)
    prompts, weights = instance_prompts(context), instance_weights(context)
    context.pool.call(encode, context.plan, context.folder, prompts, weights, class_images)
    if context.plan.hyper_network is not None:
        context.pool.call(predict_initial_adapter, context.plan, context.folder)
    progress.done(count)
    return {"images": count}


def encode_shared(context: Context, class_images: list[ClassImages], on_progress: Callable[[int], None]) -> None:
    """Store the latents of the class images, next to the images. Damaged images are generated again.

    Raises:
        TransientError: images are deleted or damaged while they are used.
    """
    plan, done = context.plan, 0
    for stage, images in itertools.product(plan.stages, class_images):
        encode_names = partial(encode_class_images, context.pool, stage, images.store)
        lost = encode_names(images.names, plan.resolution, lambda count, before=done: on_progress(before + count))
        if lost:
            if images.own:
                store_own_images(context, lost)
            else:
                generate_missing(context, images.prompt, lost, lambda *_, **__: None)
            if lost := encode_names(lost, plan.resolution, lambda _: None):
                raise TransientError(f"{images.store.url}: {lost[0]}.png was deleted or damaged while it was used")
        done += len(images.names)


def encode(
    plan: Plan, folder: JobFolder, prompts: list[list[str]], weights: list[int], class_images: list[ClassImages]
) -> None:
    """Encode the images of the subjects and all prompts for each stage, and write the cache of the stage.

    It also gets the latents of the class images. The first stage encodes the prompts for all stages. Runs on a worker,
    on its GPU if it has one.

    Args:
        prompts: of each image of each subject.
        weights: see `instance_weights`.
    """
    from dreambooth_trainer.families.base import live_text_encoders
    from dreambooth_trainer.methods.tokens import add_tokens
    from dreambooth_trainer.sampling.generate import unload_models
    from dreambooth_trainer.training.cache import TrainingData, save_data

    unload_models()  # the process may not have memory for two models
    encode_prompts: EncodePrompts | None = None
    all_prompts = [prompt for own in prompts for prompt in own for _ in range(plan.variants_per_image)]
    ranges = consecutive_ranges([len(own) for own in prompts])
    for part in plan.stages:
        base, own = local_folder(part.model), folder.of_stage(part.stage)
        family = open_family(base)
        live = live_text_encoders(family, plan)
        encoders = [name for name in family.text_encoders if name not in live]
        stage = family.open(base, [*encoders, *family.image_encoders])
        add_tokens(stage, plan)
        for module in stage.modules.values():
            module.to(work_device())
        encode_prompts = encode_prompts or partial(stage.encode_prompts, live=live)
        images = [resized(image, part.resolution) for image in instance_images(plan, folder)]
        encoded = _encode_images(stage, images)
        instance = _with_prompts(encode_prompts, encoded, all_prompts, ranges, weights)
        shapes = family.image_shapes(base, part.resolution)
        prior = None
        if class_images:
            prior = _class_images(part, encode_prompts, shapes, class_images, folder.work)
        elif plan.spec.has_class_examples:
            prior = _with_class_prompts(part, encode_prompts, encoded, ranges)
        draft = own.latents.with_suffix(".draft")
        draft.parent.mkdir(exist_ok=True)
        save_data(TrainingData(instance, prior), draft)
        draft.replace(own.latents)


def _class_images(
    stage: Plan,
    encode_prompts: EncodePrompts,
    shapes: Mapping[str, tuple[int, ...]],
    class_images: list[ClassImages],
    scratch: Path,
) -> EncodedImages:
    """The class images that a stage trains on, encoded."""
    import torch

    stacks = [
        latent_store(of_class.store, stage.stage).stack(of_class.names, shapes, scratch) for of_class in class_images
    ]
    stacked = {name: torch.cat([stack[name] for stack in stacks]) for name in shapes}
    prompts = [of_class.prompt for of_class in class_images for _ in of_class.names]
    ranges = consecutive_ranges([len(of_class.names) for of_class in class_images])
    by_prompt: dict[str, tuple[int, int]] = {}
    for of_class, (first, end) in zip(class_images, ranges, strict=True):
        by_prompt[of_class.prompt] = (by_prompt.get(of_class.prompt, (first, end))[0], end)
    own_ranges = [by_prompt[one.class_prompt] for one in stage.subjects]
    return _with_prompts(encode_prompts, stacked, prompts, own_ranges, [1] * len(prompts))


def _with_class_prompts(
    stage: Plan, encode_prompts: EncodePrompts, images: Tensors, subject_ranges: list[tuple[int, int]]
) -> EncodedImages:
    """The images of the subjects with the prompts of their classes. Each augmented variant is an image of its own.

    Args:
        subject_ranges: not counting variants.
    """
    ranges = [(first * stage.variants_per_image, end * stage.variants_per_image) for first, end in subject_ranges]
    prompts = [
        subject.class_prompt
        for subject, (first, end) in zip(stage.subjects, ranges, strict=True)
        for _ in range(first, end)
    ]
    copied = {name: tensor.clone() for name, tensor in images.items()}  # safetensors stores no tensor twice
    return _with_prompts(encode_prompts, copied, prompts, ranges, [1] * len(prompts))


def instance_images(plan: Plan, folder: JobFolder) -> list[Image.Image]:
    """The images of all subjects at the training resolution, with all augmented variants of each image in a row."""
    training, variants = plan.spec.training, range(plan.variants_per_image)
    if len(variants) == 1:
        return [Image.open(path) for path in sorted(folder.prepared.glob("*.png"))]
    photos = [Image.open(path) for path in sorted(folder.photos.glob("*.png"))]
    return [
        augment(
            *(photo, plan.resolution, training.seed, number, variant),
            random_crop=training.random_crop,
            random_flip=training.random_flip,
        )
        for number, photo in enumerate(photos)
        for variant in variants
    ]


def consecutive_ranges(counts: Sequence[int]) -> list[tuple[int, int]]:
    """First and end index of groups of these sizes, one after another."""
    ends = list(itertools.accumulate(counts))
    return list(zip([0, *ends], ends, strict=False))


def _encode_images(stage: Stage, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    import torch

    batches = [
        stage.encode_images(images[start : start + VAE_BATCH_SIZE]) for start in range(0, len(images), VAE_BATCH_SIZE)
    ]
    return {name: torch.cat([batch[name].float().cpu() for batch in batches]) for name in batches[0]}


def _with_prompts(
    encode_prompts: EncodePrompts,
    images: Tensors,
    prompts: list[str],
    subject_ranges: list[tuple[int, int]],
    weights: list[int],
) -> EncodedImages:
    """Encoded images with their prompts.

    Args:
        prompts: of each image.
    """
    import torch

    from dreambooth_trainer.training.cache import EncodedImages

    unique = sorted(set(prompts))
    indices = torch.tensor([unique.index(prompt) for prompt in prompts])
    encoded = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).cpu()
        for name, tensor in encode_prompts(unique).items()
    }
    return EncodedImages(images, encoded, torch.tensor(subject_ranges), indices, torch.tensor(weights))


ENCODE = Phase(TrainerPhase.ENCODE, _inputs, _complete, _run)
