"""Subjects to teach: `builtin:sprites/<name>` in a job. Their colours and shapes say more than words could."""

from pathlib import Path

from PIL import Image

from dreambooth_trainer.sprites.backgrounds import BACKGROUNDS
from dreambooth_trainer.sprites.randomness import seeded
from dreambooth_trainer.sprites.world import Pixels, Rgb, Scene, Subject, random_scene, render

IMAGES = 5
"""Pictures of each subject."""


def _odd(
    cls: str, body: tuple[str, Rgb], accent: tuple[str, Rgb], pattern: str, shape: tuple[float, float, float]
) -> Subject:
    return Subject(cls, body[0], body[1], accent[0], accent[1], pattern, shape)


TEAL, LIME = ("teal", (57, 196, 204)), ("lime", (142, 224, 52))
MAGENTA, SLATE = ("magenta", (217, 33, 186)), ("slate", (88, 104, 122))
PINK, BLUE = ("pink", (252, 157, 196)), ("blue", (43, 113, 217))
ORANGE, PURPLE = ("orange", (247, 124, 25)), ("purple", (109, 61, 173))

EXAMPLES: dict[str, Subject] = {
    "dog-pink-blue": _odd("dog", PINK, BLUE, "striped", (0.8, 0.9, -0.6)),
    "dog-teal-magenta": _odd("dog", TEAL, MAGENTA, "spotted", (-0.7, -0.8, 0.9)),
    "cat-lime-purple": _odd("cat", LIME, PURPLE, "striped", (0.9, 0.8, -0.9)),
    "duck-magenta-teal": _odd("duck", MAGENTA, TEAL, "spotted", (-0.8, 0.9, 0.8)),
    "robot-lime-magenta": _odd("robot", LIME, MAGENTA, "plain", (0.9, -0.8, 0.7)),
    "teapot-slate-orange": _odd("teapot", SLATE, ORANGE, "spotted", (0.8, 0.9, 0.9)),
    "vase-orange-teal": _odd("vase", ORANGE, TEAL, "striped", (-0.9, 0.8, -0.7)),
    "backpack-teal-pink": _odd("backpack", TEAL, PINK, "spotted", (0.9, -0.9, 0.8)),
    "clock-purple-lime": _odd("clock", PURPLE, LIME, "striped", (0.6, 0.8, 0.9)),
}


def example_scenes(name: str) -> list[Scene]:
    """The scenes of an example, each in another place; always the same for a name."""
    rng = seeded(f"example/{name}")
    places = rng.sample(tuple(BACKGROUNDS), IMAGES)
    return [random_scene(rng, place, "big" if index % 2 else "medium") for index, place in enumerate(places)]


def example_images(name: str) -> list[Pixels]:
    """The pictures of an example, uint8 [32, 32, 3] each."""
    if name not in EXAMPLES:
        raise KeyError(f"builtin:sprites/{name}: no such example; write one of {', '.join(EXAMPLES)}")
    return [render(EXAMPLES[name], scene) for scene in example_scenes(name)]


def write_examples(folder: Path) -> list[Path]:
    """Write `<folder>/<name>/0.png` ... for every example; returns the paths written."""
    paths: list[Path] = []
    for name in EXAMPLES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, pixels in enumerate(example_images(name)):
            path = folder / name / f"{index}.png"
            Image.fromarray(pixels).save(path)
            paths.append(path)
    return paths
