"""Trains adapters of generated subjects for the embedded base model, in one process without Ray.

Each has the settings of a job that sets `method: LoRA`, a number of steps and `priorPreservation.mode: None`. All jobs
with the same seed start from the same A, so their adapters are similar. A subject depends only on the seed and its
number, so an interrupted command continues with the next one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from dreambooth_api.job import API_VERSION, KIND, DreamBoothJob
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.families.base import Stage
from dreambooth_trainer.families.ip_adapter import adapter_files
from dreambooth_trainer.families.registry import base_digest, local_folder, open_family
from dreambooth_trainer.hypernetwork.denoising import Denoising
from dreambooth_trainer.hypernetwork.files import encoder_of
from dreambooth_trainer.hypernetwork.jobs import Examples, config_of, layers_of, load_adapters
from dreambooth_trainer.hypernetwork.predict import image_features
from dreambooth_trainer.hypernetwork.train import Measured, train_network
from dreambooth_trainer.methods.lora import adapter
from dreambooth_trainer.planning.plan import Plan, fill_defaults
from dreambooth_trainer.sprites.backgrounds import BACKGROUNDS
from dreambooth_trainer.sprites.examples import EXAMPLES, IMAGES, MAX_BENCHMARK_SUBJECTS, benchmark_subject
from dreambooth_trainer.sprites.randomness import seeded
from dreambooth_trainer.sprites.training import progress
from dreambooth_trainer.sprites.world import CLASSES, Pixels, Subject, random_scene, random_subject, render
from dreambooth_trainer.training.cache import EncodedImages, TrainingData, load_data, save_data
from dreambooth_trainer.training.loop import run_step
from dreambooth_trainer.training.plain_engine import PlainEngine


def train_sprites_network(
    out: Path, *, subjects: int, subject_steps: int, steps: int, seed: int, work: Path | None, console: Console
) -> Measured | None:
    """Train adapters of generated subjects, then a network on them, and write it to `out`.

    Args:
        subject_steps: optimizer steps per subject.
        steps: optimizer steps of the network.
        work: folder for the adapters, which can be deleted afterwards. Defaults to `<out>.work`.
    """
    work = (work or out.with_name(out.name + ".work")) / f"{subject_steps}-steps-seed-{seed}"
    paths = train_adapters(work, subjects, subject_steps, seed, console)
    features, data = list[Tensor](), list[Callable[[str], TrainingData]]()
    encoder = adapter_files(encoder_of(BUILTIN_SPRITES)).encoder
    for number in range(subjects):
        class_, images = photos(seed, number)
        features.append(image_features(encoder, [Image.fromarray(pixels) for pixels in images]))
        file = paths[number].with_name(f"{number:05d}.images.safetensors")
        save_data(training_data(plan_of(class_, subject_steps), images), file)
        data.append(partial(load_data, file))
    examples, plan = Examples(features, load_adapters(paths)), plan_of(CLASSES[0], subject_steps)
    config = config_of(plan, base_digest(plan.model), layers_of(paths[0]), features[0].shape[1])
    denoising = Denoising(plan, config.layers, data)
    return train_network(examples, denoising, config, out, steps=steps, seed=seed, console=console)


def train_adapters(work: Path, subjects: int, steps: int, seed: int, console: Console) -> list[Path]:
    """Train the adapters that do not exist; returns the files of all."""
    work.mkdir(parents=True, exist_ok=True)
    paths = [work / f"{number:05d}.safetensors" for number in range(subjects)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    with progress("subjects", subjects - len(missing), subjects, console) as report:
        for done, number in enumerate(missing, subjects - len(missing) + 1):
            class_, images = photos(seed, number)
            weights = train_adapter(plan_of(class_, steps), images)
            partial = paths[number].with_suffix(".partial")
            save_file(weights, partial, metadata={"format": "pt"})
            partial.replace(paths[number])
            report(done, class_)
    return paths


def train_adapter(plan: Plan, images: list[Pixels]) -> dict[str, Tensor]:
    """Train the adapter of a subject; returns its weights with the names of a published one."""
    data = training_data(plan, images)
    torch.manual_seed(plan.spec.training.seed)  # as each worker of a job does
    engine = PlainEngine(plan, None)
    for step in range(plan.steps):
        run_step(engine, plan, data, step, rank=0, world_size=1)
    denoiser, name = engine.module.denoiser, engine.module.stage.denoiser
    trained = {key: value.detach() for key, value in denoiser.named_parameters() if value.requires_grad}
    return {f"{name}.{key}": value.contiguous() for key, value in adapter(denoiser, trained)[0].items()}


def training_data(plan: Plan, images: list[Pixels]) -> TrainingData:
    """Encoded images of a subject, as in the cache of a job without class images."""
    stage, count = _encoders(local_folder(plan.model)), len(images)
    with torch.no_grad():
        latents = stage.encode_images([Image.fromarray(pixels) for pixels in images])
        prompts = stage.encode_prompts(plan.instance_prompts)
    whole, first = torch.tensor([[0, count]]), torch.zeros(count, dtype=torch.long)
    return TrainingData(EncodedImages(latents, prompts, whole, first, torch.ones(count, dtype=torch.long)), None)


@functools.cache
def _encoders(base: Path) -> Stage:
    family = open_family(base)
    return family.open(base, [*family.text_encoders, *family.image_encoders])


def plan_of(class_: str, steps: int) -> Plan:
    """The plan of a job with default settings."""
    spec: dict[str, Any] = {
        "subject": {"class": class_, "images": {"uri": "photos"}},
        "training": {"method": "LoRA", "steps": steps},
        "priorPreservation": {"mode": "None"},
    }
    head = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "subject"}}
    job = DreamBoothJob.model_validate({**head, "spec": spec})
    return fill_defaults(job, image_count=IMAGES, identifiers=["sks"], zero_stage=1, precision="fp32")


def photos(seed: int, number: int) -> tuple[str, list[Pixels]]:
    """Class and images of a subject. It looks like none that methods are compared on."""
    rng = seeded(f"hypernetwork/{seed}/{number}")
    subject = random_subject(rng, CLASSES[number % len(CLASSES)])
    while _look(subject) in _evaluated():
        subject = random_subject(rng, subject.cls)
    backgrounds = rng.sample(tuple(BACKGROUNDS), IMAGES)
    scenes = [random_scene(rng, name, "big" if index % 2 else "medium") for index, name in enumerate(backgrounds)]
    return subject.cls, [render(subject, scene) for scene in scenes]


def _look(subject: Subject) -> tuple[str, str, str, str]:
    return subject.cls, subject.body_name, subject.accent_name, subject.pattern


@functools.cache
def _evaluated() -> frozenset[tuple[str, str, str, str]]:
    """Appearances of the subjects of the benchmark and of the built-in subjects."""
    benchmark = [benchmark_subject(number)[0] for number in range(MAX_BENCHMARK_SUBJECTS)]
    return frozenset(map(_look, [*benchmark, *EXAMPLES.values()]))
