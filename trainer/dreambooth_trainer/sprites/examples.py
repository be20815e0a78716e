"""The built-in subjects, `builtin:sprites/<name>` in a job. Captions cannot describe their colors and shapes."""

import random
from pathlib import Path

from PIL import Image

from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.sprites.backgrounds import BACKGROUNDS
from dreambooth_trainer.sprites.randomness import seeded
from dreambooth_trainer.sprites.world import (
    CLASSES,
    UNNAMED_COLORS,
    Pixels,
    Rgb,
    Scene,
    Subject,
    random_scene,
    random_subject,
    render,
)

IMAGES = 5
"""Images per subject."""
MAX_BENCHMARK_SUBJECTS = 99


def _subject(
    cls: str, body: tuple[str, Rgb], accent: tuple[str, Rgb], pattern: str, shape: tuple[float, float, float]
) -> Subject:
    return Subject(cls, body[0], body[1], accent[0], accent[1], pattern, shape)


TEAL, LIME = ("teal", (57, 196, 204)), ("lime", (142, 224, 52))
MAGENTA, SLATE = ("magenta", (217, 33, 186)), ("slate", (88, 104, 122))
PINK, BLUE = ("pink", (252, 157, 196)), ("blue", (43, 113, 217))
ORANGE, PURPLE = ("orange", (247, 124, 25)), ("purple", (109, 61, 173))

EXAMPLES: dict[str, Subject] = {
    "dog-pink-blue": _subject("dog", PINK, BLUE, "striped", (0.8, 0.9, -0.6)),
    "dog-teal-magenta": _subject("dog", TEAL, MAGENTA, "spotted", (-0.7, -0.8, 0.9)),
    "cat-lime-purple": _subject("cat", LIME, PURPLE, "striped", (0.9, 0.8, -0.9)),
    "duck-magenta-teal": _subject("duck", MAGENTA, TEAL, "spotted", (-0.8, 0.9, 0.8)),
    "robot-lime-magenta": _subject("robot", LIME, MAGENTA, "plain", (0.9, -0.8, 0.7)),
    "teapot-slate-orange": _subject("teapot", SLATE, ORANGE, "spotted", (0.8, 0.9, 0.9)),
    "vase-orange-teal": _subject("vase", ORANGE, TEAL, "striped", (-0.9, 0.8, -0.7)),
    "backpack-teal-pink": _subject("backpack", TEAL, PINK, "spotted", (0.9, -0.9, 0.8)),
    "clock-purple-lime": _subject("clock", PURPLE, LIME, "striped", (0.6, 0.8, 0.9)),
}


def benchmark_subject(number: int) -> tuple[Subject, random.Random]:
    """A subject of the benchmark, and the generator of its scenes. They depend only on its number.

    Classes alternate. At least one of the two colors of a subject has no word in captions, so that no prompt describes
    the subject completely.
    """
    rng = seeded(f"benchmark/{number}")
    while True:
        subject = random_subject(rng, CLASSES[number % len(CLASSES)])
        if {subject.body_name, subject.accent_name} & UNNAMED_COLORS.keys():
            return subject, rng


def example_scenes(name: str) -> list[Scene]:
    """The scenes of a subject, each with another background. They depend only on its name."""
    rng = seeded(f"example/{name}")
    backgrounds = rng.sample(tuple(BACKGROUNDS), IMAGES)
    return [random_scene(rng, name, "big" if index % 2 else "medium") for index, name in enumerate(backgrounds)]


def example_images(name: str) -> list[Pixels]:
    """Render the images of a subject, uint8 [32, 32, 3] each.

    Raises:
        KeyError: unknown name.
    """
    if name not in EXAMPLES:
        raise KeyError(f"{BUILTIN_SPRITES}/{name}: is not a built-in subject; use one of {', '.join(EXAMPLES)}")
    return [render(EXAMPLES[name], scene) for scene in example_scenes(name)]


def write_examples(folder: Path) -> list[Path]:
    """Write `<folder>/<name>/0.png` and so on for all subjects, and return the paths."""
    paths: list[Path] = []
    for name in EXAMPLES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, pixels in enumerate(example_images(name)):
            path = folder / name / f"{index}.png"
            Image.fromarray(pixels).save(path)
            paths.append(path)
    return paths
