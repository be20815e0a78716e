"""Trains a HyperNetwork for the embedded base model on generated subjects, in one process without jobs.

Each subject has the encoded images that a LoRA job would have. Half of the prompts describe the scene, so that the
network need not learn it. Class examples are the same images with prompts without the identifier.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

from dreambooth_api.job import API_VERSION, KIND, DreamBoothJob
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.families.base import Stage
from dreambooth_trainer.families.ip_adapter import adapter_files
from dreambooth_trainer.families.registry import base_digest, local_folder, open_family
from dreambooth_trainer.hypernetwork.check import target_layers
from dreambooth_trainer.hypernetwork.denoising import Denoising
from dreambooth_trainer.hypernetwork.files import encoder_of
from dreambooth_trainer.hypernetwork.jobs import config_of
from dreambooth_trainer.hypernetwork.predict import image_features
from dreambooth_trainer.hypernetwork.train import Example, Measured, train_network
from dreambooth_trainer.planning.plan import Plan, fill_defaults
from dreambooth_trainer.sprites.backgrounds import BACKGROUNDS
from dreambooth_trainer.sprites.captions import phrase
from dreambooth_trainer.sprites.examples import EXAMPLES, IMAGES, MAX_BENCHMARK_SUBJECTS, benchmark_subject
from dreambooth_trainer.sprites.randomness import seeded
from dreambooth_trainer.sprites.training import progress
from dreambooth_trainer.sprites.world import CLASSES, Scene, Subject, random_scene, random_subject, render
from dreambooth_trainer.training.cache import EncodedImages, TrainingData, load_data, save_data

IDENTIFIER = "sks"
CAPTIONED = 0.5
"""Share of images with prompts that describe the scene."""


def train_sprites_network(
    out: Path, *, subjects: int, steps: int, seed: int, work: Path | None, console: Console
) -> Measured | None:
    """Train a network on generated subjects, and write it to `out`.

    Args:
        work: folder for the state, which can be deleted afterwards. Defaults to `<out>.work`.
    """
    work = work or out.with_name(out.name + ".work")
    (work / "images").mkdir(parents=True, exist_ok=True)
    plan, encoder = plan_of(CLASSES[0]), adapter_files(encoder_of(BUILTIN_SPRITES)).encoder
    files = [work / "images" / f"{number:05d}.safetensors" for number in range(subjects)]
    examples = list[Example]()
    with progress("subjects", 0, subjects, console) as report:
        for number, file in enumerate(files):
            one = generated_subject(seed, number)
            examples.append(Example(image_features(encoder, one.images), str(number), f"{seed}/{number}"))
            save_data(training_data(one), file)
            report(number + 1, "")
    layers = target_layers(local_folder(plan.model), plan)
    config = config_of(plan, base_digest(plan.model), layers, examples[0].features.shape[1])
    denoising = Denoising(plan, layers, [partial(load_data, file) for file in files])
    return train_network(examples, denoising, config, out, steps=steps, seed=seed, work=work, console=console)


@dataclass(frozen=True)
class GeneratedSubject:
    """Images of a subject with their prompts, without and with the identifier."""

    subject: Subject
    images: list[Image.Image]
    class_prompts: list[str]
    instance_prompts: list[str]


def generated_subject(seed: int, number: int) -> GeneratedSubject:
    """A subject that depends only on the seed and its number, and looks like none that methods are compared on."""
    rng = seeded(f"hypernetwork/{seed}/{number}")
    subject = random_subject(rng, CLASSES[number % len(CLASSES)])
    while _look(subject) in _evaluated():
        subject = random_subject(rng, subject.cls)
    scenes = [random_scene(rng, name) for name in rng.sample(tuple(BACKGROUNDS), IMAGES)]
    images = [Image.fromarray(render(subject, scene)) for scene in scenes]
    texts = [_words(scene) if rng.random() < CAPTIONED else {} for scene in scenes]
    class_prompts = [phrase(subject.cls, **words) for words in texts]
    return GeneratedSubject(
        subject, images, class_prompts, [phrase(subject.cls, rare=IDENTIFIER, **words) for words in texts]
    )


def _words(scene: Scene) -> dict[str, str]:
    return {"size": "" if scene.size == "medium" else scene.size, "background": scene.background}


def training_data(subject: GeneratedSubject) -> TrainingData:
    """Encoded images and prompts of a subject, as in the cache of a job with mode Prediction."""
    parts = [_encoded(subject.images, prompts) for prompts in (subject.instance_prompts, subject.class_prompts)]
    return TrainingData(*parts)


def _encoded(images: list[Image.Image], prompts: list[str]) -> EncodedImages:
    stage, count = _encoders(), len(images)
    with torch.no_grad():
        latents, texts = stage.encode_images(images), stage.encode_prompts(prompts)
    each = torch.ones(count, dtype=torch.long)
    return EncodedImages(latents, texts, torch.tensor([[0, count]]), torch.arange(count), each)


@functools.cache
def _encoders() -> Stage:
    base = local_folder(plan_of(CLASSES[0]).model)
    family = open_family(base)
    return family.open(base, [*family.text_encoders, *family.image_encoders])


def plan_of(class_: str) -> Plan:
    """The plan of a LoRA job with default settings and mode Prediction."""
    spec: dict[str, Any] = {
        "subject": {"class": class_, "images": {"uri": "photos"}},
        "training": {"method": "LoRA"},
        "priorPreservation": {"mode": "Prediction"},
    }
    head = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "subject"}}
    job = DreamBoothJob.model_validate({**head, "spec": spec})
    return fill_defaults(job, image_count=IMAGES, identifiers=[IDENTIFIER], zero_stage=1, precision="fp32")


def _look(subject: Subject) -> tuple[str, str, str, str]:
    return subject.cls, subject.body_name, subject.accent_name, subject.pattern


@functools.cache
def _evaluated() -> frozenset[tuple[str, str, str, str]]:
    """Appearances of the subjects of the benchmark and of the built-in subjects."""
    benchmark = [benchmark_subject(number)[0] for number in range(MAX_BENCHMARK_SUBJECTS)]
    return frozenset(map(_look, [*benchmark, *EXAMPLES.values()]))
