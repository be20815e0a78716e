"""Measures the quality of a base model with the evaluator, on generated images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from dreambooth_trainer.sprites.backgrounds import BACKGROUNDS
from dreambooth_trainer.sprites.captions import RARE_TOKENS, phrase
from dreambooth_trainer.sprites.evaluator import SpritesEvaluator, load_evaluator
from dreambooth_trainer.sprites.sheets import contact_sheet
from dreambooth_trainer.sprites.world import CLASSES, COLORS, PATTERNS, SIZE

Pixels = NDArray[np.uint8]
CHUNK = 64
"""Images per batch."""


@dataclass(frozen=True)
class Score:
    """One row of the table: a metric, its value, and the number of images."""

    name: str
    value: float
    images: int


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load a pipeline without a progress bar."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], *, seed: int = 0, guidance: float = 3.0, steps: int = 20
) -> list[Pixels]:
    """Generate one sprite per prompt, uint8 [32, 32, 3] each."""
    sprites: list[Pixels] = []
    for first in range(0, len(prompts), CHUNK):
        generator = torch.Generator().manual_seed(seed * 1_000 + first)
        result: Any = pipeline(
            list(prompts[first : first + CHUNK]),
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=SIZE,
            width=SIZE,
            generator=generator,
            output_type="np",
        )
        sprites += [(array * 255).round().astype(np.uint8) for array in result.images]
    return sprites


def accuracy(
    evaluator: SpritesEvaluator, sprites: Sequence[Pixels], labels: Sequence[str], prompt_of: Callable[[str], str]
) -> float:
    """Zero-shot accuracy: share of `sprites` that the evaluator assigns to the label they were generated for."""
    choices = list(dict.fromkeys(labels))
    predictions = evaluator.classify(sprites, [prompt_of(choice) for choice in choices])
    return float(np.mean([choices[index] == label for index, label in zip(predictions, labels, strict=True)]))


def class_score(
    pipeline: StableDiffusionPipeline, evaluator: SpritesEvaluator, each: int, guidance: float = 3.0
) -> Score:
    """Accuracy of the classes in prompts such as "a dog", with `each` images per class."""
    labels = [cls for cls in CLASSES for _ in range(each)]
    sprites = generate(pipeline, [phrase(cls) for cls in labels], seed=1, guidance=guidance)
    return Score(f"class, guidance {guidance:g}", accuracy(evaluator, sprites, labels, phrase), len(labels))


def word_scores(pipeline: StableDiffusionPipeline, evaluator: SpritesEvaluator, each: int) -> Iterable[Score]:
    """Accuracy of backgrounds, colors, patterns and sizes in prompts."""
    cases: dict[str, tuple[Sequence[str], Callable[[str, str], str]]] = {
        "background": (tuple(BACKGROUNDS), lambda cls, word: phrase(cls, background=word)),
        "body color": (tuple(COLORS), lambda cls, word: phrase(cls, color=word)),
        "pattern": (PATTERNS, lambda cls, word: phrase(cls, pattern=word)),
        "size": (("small", "big"), lambda cls, word: phrase(cls, size=word)),
    }
    for seed, (name, (words, prompt_of)) in enumerate(cases.items(), start=2):
        correct: list[bool] = []
        labels = [(cls, word) for cls in CLASSES for word in words for _ in range(max(1, each // len(words)))]
        sprites = generate(pipeline, [prompt_of(cls, word) for cls, word in labels], seed=seed)
        for cls in CLASSES:
            indices = [index for index, (label, _) in enumerate(labels) if label == cls]
            prompts = [prompt_of(cls, word) for word in words]
            predictions = evaluator.classify([sprites[index] for index in indices], prompts)
            correct += [words[guess] == labels[index][1] for guess, index in zip(predictions, indices, strict=True)]
        yield Score(name, float(np.mean(correct)), len(labels))


def rare_scores(pipeline: StableDiffusionPipeline, evaluator: SpritesEvaluator, each: int) -> Iterable[Score]:
    """Accuracy of the class in prompts with a rare token, and similarity to images of the same noise without it."""
    labels = [cls for cls in CLASSES for _ in range(each)]
    tokens = [RARE_TOKENS[index % len(RARE_TOKENS)] for index in range(len(labels))]
    plain = generate(pipeline, [phrase(cls) for cls in labels], seed=7)
    rare = generate(pipeline, [phrase(cls, rare=token) for cls, token in zip(labels, tokens, strict=True)], seed=7)
    yield Score("class with a rare token", accuracy(evaluator, rare, labels, phrase), len(labels))
    first, second = evaluator.image_features_subject(plain), evaluator.image_features_subject(rare)
    similarity = float((first * second).sum(dim=1).mean())
    yield Score("cosine, same noise, with / without rare token", similarity, len(labels))


def diversity_score(
    pipeline: StableDiffusionPipeline, evaluator: SpritesEvaluator, each: int, guidance: float
) -> Score:
    """Mean distance (1 - subject cosine) between two images of "a <class>". For rendered sprites, it is near 1."""
    distances: list[float] = []
    for seed, cls in enumerate(CLASSES):
        features = evaluator.image_features_subject(
            generate(pipeline, [phrase(cls)] * each, seed=20 + seed, guidance=guidance)
        )
        off_diagonal = ~torch.eye(each, dtype=torch.bool)
        distances.append(float((1 - features @ features.T)[off_diagonal].mean()))
    return Score(f"diversity, guidance {guidance:g}", float(np.mean(distances)), each * len(CLASSES))


def check_sprites(
    folder: Path, sheet: Path | None = None, each: int = 32, console: Console | None = None
) -> list[Score]:
    """Measure the base model in `folder` and print a table.

    Args:
        sheet: PNG file for a contact sheet of all classes and backgrounds.
        each: images per class and metric.
    """
    pipeline, evaluator = load_pipeline(folder), load_evaluator(folder / "evaluator")
    scores = [class_score(pipeline, evaluator, each, guidance) for guidance in (1.5, 3.0)]
    scores += word_scores(pipeline, evaluator, each)
    scores += rare_scores(pipeline, evaluator, each)
    scores += [diversity_score(pipeline, evaluator, min(each, 16), guidance) for guidance in (1.5, 3.0)]
    if sheet is not None:
        prompts = [phrase(cls, background=background) for cls in CLASSES for background in BACKGROUNDS]
        contact_sheet(generate(pipeline, prompts, seed=3), len(BACKGROUNDS), sheet)
    table = Table("metric", "value", "images", title=f"base model {folder}")
    for score in scores:
        table.add_row(score.name, f"{score.value:.3f}", str(score.images))
    (console or Console()).print(table)
    return scores


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--each", type=int, default=32)
    arguments = parser.parse_args()
    check_sprites(arguments.folder, arguments.sheet, arguments.each)
