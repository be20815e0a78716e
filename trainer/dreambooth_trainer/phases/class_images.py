"""Generates class images with the base model on all workers. Jobs can share them (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import JsonValue

from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.planning.plan import fingerprint
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.sampling.generate import GenerationResult, generate_images
from dreambooth_trainer.sampling.pipeline import ImageRequest, noise_seed
from dreambooth_trainer.store.image_store import ImageStore
from dreambooth_trainer.store.run_record import read_completion


def class_image_key(context: Context) -> str:
    """Digest of everything that class images depend on, except their number. Equal keys mean equal images."""
    plan = context.plan
    return fingerprint(
        {
            "model": context.base_digest,
            "prompt": plan.class_prompt,
            "sampler": plan.class_image_sampler.model_dump(),
            "resolution": plan.resolution,
            "precision": plan.precision,
        }
    )


def shared_folder(context: Context) -> str:
    """URL of the folder of images in the scope of `priorPreservation.sharing`."""
    job = context.plan.job
    match job.spec.prior_preservation.sharing:
        case "Cluster":
            return f"{context.store}/cluster"
        case "Namespace":
            return f"{context.store}/namespaces/{job.metadata.namespace}"
        case "Job":
            return str(context.folder.work)


def class_image_store(context: Context) -> ImageStore:
    """The store of this job's class images."""
    return ImageStore(f"{shared_folder(context)}/class-images/{class_image_key(context)}")


def class_image_names(context: Context) -> list[str]:
    """Names of the class images that this job trains on; empty without prior preservation."""
    return (
        [f"{index:06d}" for index in range(context.plan.num_class_images)]
        if context.plan.spec.prior_preservation.enabled
        else []
    )


def _inputs(context: Context) -> JsonValue:
    if not context.plan.spec.prior_preservation.enabled:
        return None
    return {"key": class_image_key(context), "count": context.plan.num_class_images}


def _complete(context: Context) -> bool:
    # Training reads the latents. The class images are needed again only if the latents have to be encoded again.
    encoded = (
        read_completion(context.folder, context.keys, TrainerPhase.ENCODE) is not None
        and context.folder.latents.exists()
    )
    names = class_image_names(context)
    return encoded or not names or set(names) <= class_image_store(context).names()


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    names = class_image_names(context)
    if not names:
        return {"wanted": 0, "reused": 0, "generated": 0, "store": ""}
    store = class_image_store(context)
    progress.total(len(names))
    if not set(names) <= store.names():
        result = generate_missing(context, names, progress.done)
        return {"wanted": len(names), "reused": result.reused, "generated": result.generated, "store": store.url}
    progress.done(len(names), reused=len(names))
    return {"wanted": len(names), "reused": len(names), "generated": 0, "store": store.url}


def generate_missing(context: Context, names: list[str], on_progress: Callable[..., None]) -> GenerationResult:
    """Generate the class images that do not exist, unless another job generates them."""
    plan, store, key = context.plan, class_image_store(context), class_image_key(context)
    requests = [ImageRequest(name, plan.class_prompt, noise_seed(key, name)) for name in names]

    def on_wait() -> None:
        on_progress(len(store.names() & set(names)), waiting="another job generates them")

    with store.lease(on_wait):
        config = context.sampling_config(plan.class_image_sampler)
        return generate_images(context.pool, plan.model, config, store, requests, on_progress)


CLASS_IMAGES = Phase(TrainerPhase.CLASS_IMAGES, _inputs, _complete, _run)
