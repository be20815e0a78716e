"""How good is a base model? Measured by the evaluator on what the model draws; printed as one table."""

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
from dreambooth_trainer.sprites.world import CLASSES, COLOURS, PATTERNS, SIZE

Pixels = NDArray[np.uint8]
CHUNK = 64
"""Images drawn at once."""


@dataclass(frozen=True)
class Score:
    """One row: what was measured, the value, and over how many images."""

    name: str
    value: float
    images: int


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """A quiet pipeline from a published folder."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], *, seed: int = 0, guidance: float = 3.0, steps: int = 20
) -> list[Pixels]:
    """One sprite a prompt, uint8 [32, 32, 3]."""
    drawn: list[Pixels] = []
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
        drawn += [(array * 255).round().astype(np.uint8) for array in result.images]
    return drawn


def accuracy(
    evaluator: SpritesEvaluator, sprites: Sequence[Pixels], told: Sequence[str], label: Callable[[str], str]
) -> float:
    """Share of `sprites` for which the evaluator picks, among all labels, the word each was asked for."""
    words = list(dict.fromkeys(told))
    found = evaluator.classify(sprites, [label(word) for word in words])
    return float(np.mean([words[index] == word for index, word in zip(found, told, strict=True)]))


def class_score(
    pipeline: StableDiffusionPipeline, evaluator: SpritesEvaluator, each: int, guidance: float = 3.0
) -> Score:
    """Are "a dog", "a cat" ... what they should be?"""
    told = [cls for cls in CLASSES for _ in range(each)]
    sprites = draw(pipeline, [phrase(cls) for cls in told], seed=1, guidance=guidance)
    return Score(f"class, guidance {guidance:g}", accuracy(evaluator, sprites, told, phrase), len(told))


def word_scores(pipeline: StableDiffusionPipeline, evaluator: SpritesEvaluator, each: int) -> Iterable[Score]:
    """Do places, colours, patterns and sizes follow the words?"""
    cases: dict[str, tuple[Sequence[str], Callable[[str, str], str]]] = {
        "background": (tuple(BACKGROUNDS), lambda cls, word: phrase(cls, background=word)),
        "body colour": (tuple(COLOURS), lambda cls, word: phrase(cls, colour=word)),
        "pattern": (PATTERNS, lambda cls, word: phrase(cls, pattern=word)),
        "size": (("small", "big"), lambda cls, word: phrase(cls, size=word)),
    }
    for seed, (name, (words, say)) in enumerate(cases.items(), start=2):
        right: list[bool] = []
        asked = [(cls, word) for cls in CLASSES for word in words for _ in range(max(1, each // len(words)))]
        sprites = draw(pipeline, [say(cls, word) for cls, word in asked], seed=seed)
        for cls in CLASSES:
            chosen = [index for index, (asked_cls, _) in enumerate(asked) if asked_cls == cls]
            found = evaluator.classify([sprites[index] for index in chosen], [say(cls, word) for word in words])
            right += [words[guess] == asked[index][1] for guess, index in zip(found, chosen, strict=True)]
        yield Score(name, float(np.mean(right)), len(asked))


def rare_scores(pipeline: StableDiffusionPipeline, evaluator: SpritesEvaluator, each: int) -> Iterable[Score]:
    """Does "a sks dog" look like "a dog"? Same noise, with and without the rare token."""
    told = [cls for cls in CLASSES for _ in range(each)]
    rare = [RARE_TOKENS[index % len(RARE_TOKENS)] for index in range(len(told))]
    plain = draw(pipeline, [phrase(cls) for cls in told], seed=7)
    marked = draw(pipeline, [phrase(cls, rare=token) for cls, token in zip(told, rare, strict=True)], seed=7)
    yield Score("class with a rare token", accuracy(evaluator, marked, told, phrase), len(told))
    first, second = evaluator.image_features_subject(plain), evaluator.image_features_subject(marked)
    yield Score("cosine, same noise, with / without rare token", float((first * second).sum(dim=1).mean()), len(told))


def diversity_score(
    pipeline: StableDiffusionPipeline, evaluator: SpritesEvaluator, each: int, guidance: float
) -> Score:
    """Mean distance (1 - subject cosine) of two pictures of "a <class>"; the world's own is near 1."""
    distances: list[float] = []
    for seed, cls in enumerate(CLASSES):
        features = evaluator.image_features_subject(
            draw(pipeline, [phrase(cls)] * each, seed=20 + seed, guidance=guidance)
        )
        apart = ~torch.eye(each, dtype=torch.bool)
        distances.append(float((1 - features @ features.T)[apart].mean()))
    return Score(f"diversity, guidance {guidance:g}", float(np.mean(distances)), each * len(CLASSES))


def check_sprites(
    folder: Path, sheet: Path | None = None, each: int = 32, console: Console | None = None
) -> list[Score]:
    """Measure the base model in `folder`; print the table; write a contact sheet of classes x places."""
    pipeline, evaluator = load_pipeline(folder), load_evaluator(folder / "evaluator")
    scores = [class_score(pipeline, evaluator, each, guidance) for guidance in (1.5, 3.0)]
    scores += word_scores(pipeline, evaluator, each)
    scores += rare_scores(pipeline, evaluator, each)
    scores += [diversity_score(pipeline, evaluator, min(each, 16), guidance) for guidance in (1.5, 3.0)]
    if sheet is not None:
        prompts = [phrase(cls, background=place) for cls in CLASSES for place in BACKGROUNDS]
        contact_sheet(draw(pipeline, prompts, seed=3), len(BACKGROUNDS), sheet)
    table = Table("measured", "value", "images", title=f"base model {folder}")
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
