"""`builtin:sprites` as a dataset: sprites that no model has seen, in the format of the paper's dataset."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from dreambooth_trainer.benchmark.dataset import write_prompts_and_classes
from dreambooth_trainer.sprites.backgrounds import BACKGROUNDS
from dreambooth_trainer.sprites.captions import SPRITES_PROMPTS
from dreambooth_trainer.sprites.examples import IMAGES
from dreambooth_trainer.sprites.randomness import seeded
from dreambooth_trainer.sprites.world import CLASSES, UNNAMED_COLORS, Subject, random_scene, random_subject, render
from dreambooth_trainer.store.folder import atomic_directory

DEFAULT_SUBJECTS, MAX_SUBJECTS = 20, 99


def write_sprite_dataset(folder: Path, count: int) -> None:
    """Write a dataset with the first `count` subjects, or more if the folder has more. A subject depends on its number.

    Classes alternate. At least one of the two colors of a subject has no word in captions, so that no prompt describes
    the subject completely.
    """
    if folder.exists() and sum(path.is_dir() for path in folder.iterdir()) >= count:
        return  # another process may be reading it
    with atomic_directory(folder) as draft:
        classes: list[tuple[str, str]] = []
        for number in range(count):
            class_ = CLASSES[number % len(CLASSES)]
            name = f"{class_}-{number:02d}"
            rng = seeded(f"benchmark/{number}")
            subject = _held_out(rng, class_)
            (draft / name).mkdir()
            for index, background in enumerate(rng.sample(tuple(BACKGROUNDS), IMAGES)):
                scene = random_scene(rng, background, "big" if index % 2 else "medium")
                Image.fromarray(render(subject, scene)).save(draft / name / f"{index}.png")
            classes.append((name, class_))
        write_prompts_and_classes(draft, classes, SPRITES_PROMPTS)


def _held_out(rng: random.Random, class_: str) -> Subject:
    while True:
        subject = random_subject(rng, class_)
        if {subject.body_name, subject.accent_name} & UNNAMED_COLORS.keys():
            return subject
