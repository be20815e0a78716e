"""`builtin:sprites` as a dataset: sprites that no model has seen, in the format of the paper's dataset."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dreambooth_trainer.benchmark.dataset import write_prompts_and_classes
from dreambooth_trainer.sprites.backgrounds import BACKGROUNDS
from dreambooth_trainer.sprites.captions import SPRITES_PROMPTS
from dreambooth_trainer.sprites.examples import IMAGES, MAX_BENCHMARK_SUBJECTS, benchmark_subject
from dreambooth_trainer.sprites.world import random_scene, render
from dreambooth_trainer.store.folder import atomic_directory

DEFAULT_SUBJECTS, MAX_SUBJECTS = 20, MAX_BENCHMARK_SUBJECTS


def write_sprite_dataset(folder: Path, count: int) -> None:
    """Write a dataset with the first `count` subjects, or more if the folder has more. See `benchmark_subject`."""
    if folder.exists() and sum(path.is_dir() for path in folder.iterdir()) >= count:
        return  # another process may be reading it
    with atomic_directory(folder) as draft:
        classes: list[tuple[str, str]] = []
        for number in range(count):
            subject, rng = benchmark_subject(number)
            name = f"{subject.cls}-{number:02d}"
            (draft / name).mkdir()
            for index, background in enumerate(rng.sample(tuple(BACKGROUNDS), IMAGES)):
                scene = random_scene(rng, background, "big" if index % 2 else "medium")
                Image.fromarray(render(subject, scene)).save(draft / name / f"{index}.png")
            classes.append((name, subject.cls))
        write_prompts_and_classes(draft, classes, SPRITES_PROMPTS)
