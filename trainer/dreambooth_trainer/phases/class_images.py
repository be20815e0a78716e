"""Generates class images with the base model on all workers. Jobs can share them (paper, section 3.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from pydantic import JsonValue

from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.images.decode import prepare_image
from dreambooth_trainer.images.own_class_images import check_class_images
from dreambooth_trainer.images.sources import RawImage
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.planning.plan import fingerprint
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.sampling.generate import GenerationResult, generate_images
from dreambooth_trainer.sampling.pipeline import ImageRequest, noise_seed
from dreambooth_trainer.store.image_store import ImageStore
from dreambooth_trainer.store.run_record import read_completion
from dreambooth_trainer.store.signing import domain_folder, trust_domain


def class_image_key(context: Context, prompt: str) -> str:
    """Digest of everything that class images depend on, except their number. Equal keys mean equal images."""
    plan = context.plan
    return fingerprint(
        {
            "model": context.base_digest,
            "prompt": prompt,
            "sampler": plan.class_image_sampler.model_dump(),
            "resolution": plan.resolution,
            "precision": plan.precision,
        }
    )


def shared_folder(context: Context) -> str:
    """URL of the folder of images in the scope of `priorPreservation.sharing`."""
    job = context.plan.job
    match job.spec.prior_preservation.sharing:
        case "Cluster" if domain := trust_domain():
            return domain_folder(context.store, domain)
        case "Cluster" | "Namespace":
            # Without a key, nothing tells images of other namespaces from forged ones.
            return f"{context.store}/namespaces/{job.metadata.namespace}"
        case "Job":
            return str(context.folder.work)


def class_image_store(context: Context, prompt: str) -> ImageStore:
    """The store of the class images of a class prompt."""
    return ImageStore(f"{shared_folder(context)}/class-images/{class_image_key(context, prompt)}")


def class_image_names(context: Context) -> dict[str, list[str]]:
    """Names of the generated class images that this job trains on, by class prompt; empty in other modes.

    A job with own class images has one prompt. It uses the first generated images, as other jobs do.
    """
    plan = context.plan
    if not plan.spec.uses_class_images:
        return {}
    counts = {prompt: count - plan.num_own_class_images for prompt, count in plan.class_image_counts.items()}
    return {prompt: [f"{index:06d}" for index in range(count)] for prompt, count in counts.items()}


def own_class_images(context: Context) -> dict[str, RawImage]:
    """The job's own class images that it trains on, by name in `own_class_image_store`."""
    used = context.class_images[: context.plan.num_own_class_images]
    return {f"{index:06d}": image for index, image in enumerate(used)}


def own_class_image_store(context: Context) -> ImageStore:
    """A folder of the job, which other jobs do not use. Its name is a digest of all that the latents depend on."""
    inputs = {"model": context.base_digest, "resolution": context.plan.resolution, "files": _own_files(context)}
    return ImageStore(f"{context.folder.work}/own-class-images/{fingerprint(inputs)}")


def _own_files(context: Context) -> list[JsonValue]:
    return [hashlib.sha256(raw.data).hexdigest() for raw in own_class_images(context).values()]


def store_own_images(context: Context, names: Iterable[str]) -> None:
    """Decode own class images to squares at the training resolution.

    Raises:
        UserError: with the issues of all images that cannot be used.
    """
    images, store = own_class_images(context), own_class_image_store(context)
    for name in names:
        store.put(name, prepare_image(images[name], context.plan.resolution))


def _inputs(context: Context) -> JsonValue:
    names = class_image_names(context)
    generated = [{"key": class_image_key(context, prompt), "count": len(names[prompt])} for prompt in names]
    return {"generated": list[JsonValue](generated), "own": _own_files(context)}


def _complete(context: Context) -> bool:
    # Training reads the latents. The class images are needed again only if the latents have to be encoded again.
    encoded = read_completion(context.folder, context.keys, TrainerPhase.ENCODE) is not None and all(
        context.folder.of_stage(stage.stage).latents.exists() for stage in context.plan.stages
    )
    names, own = class_image_names(context), own_class_images(context)
    if not encoded and own and not own.keys() <= own_class_image_store(context).names():
        return False
    return encoded or all(set(names[prompt]) <= class_image_store(context, prompt).names() for prompt in names)


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    names, own = class_image_names(context), own_class_images(context)
    wanted = sum(map(len, names.values())) + len(own)
    progress.total(wanted)
    check_class_images(list(own.values()), context.plan.resolution)
    store_own_images(context, own)
    done, reused = len(own), 0
    for prompt in names:

        def on_progress(count: int, before: int = done, **facts: float | int | str) -> None:
            progress.done(before + count, **facts)

        count = len(names[prompt])
        if set(names[prompt]) <= class_image_store(context, prompt).names():
            reused += count
            on_progress(count, reused=reused)
        else:
            reused += generate_missing(context, prompt, names[prompt], on_progress).reused
        done += count
    stores: JsonValue = {prompt: class_image_store(context, prompt).url for prompt in names}
    return {
        "wanted": wanted,
        "reused": reused,
        "generated": wanted - reused - len(own),
        "provided": len(own) or None,
        "stores": stores,
        "own_store": own_class_image_store(context).url if own else None,
    }


def generate_missing(
    context: Context, prompt: str, names: list[str], on_progress: Callable[..., None]
) -> GenerationResult:
    """Generate the images of a class prompt that do not exist, unless another job generates them."""
    plan, store, key = context.plan, class_image_store(context, prompt), class_image_key(context, prompt)
    requests = [ImageRequest(name, prompt, noise_seed(key, name)) for name in names]

    def on_wait() -> int:
        done = len(store.names() & set(names))
        on_progress(done, waiting="another job generates them")
        return done

    with store.lease(on_wait):
        config = context.sampling_config(plan.class_image_sampler)
        return generate_images(context.pool, plan.model, config, store, requests, on_progress)


CLASS_IMAGES = Phase(TrainerPhase.CLASS_IMAGES, _inputs, _complete, _run)
