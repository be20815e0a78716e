"""Captions of sprites, from words that are one token each."""

import random

from dreambooth_trainer.sprites.backgrounds import BACKGROUNDS
from dreambooth_trainer.sprites.world import CLASSES, COLORS, PATTERNS, Scene, Subject

RARE_TOKENS: tuple[str, ...] = (
    "sks", "zwx", "olis", "ktn", "pll", "xxy", "ucd", "phol", "qrv", "vtk", "mzb", "bnh",
)  # fmt: skip
"""Words without a meaning. They occur at random in captions, so that the base model learns to ignore them."""

OPENINGS: tuple[tuple[str, int], ...] = (("a", 70), ("a photo of a", 18), ("a picture of a", 6), ("", 3), ("the", 3))
"""Opening words and their sampling weights."""

EXTRA_WORDS: tuple[str, ...] = (
    "an", "and", "with", "my", "one", "this", "drawing", "sprite", "close", "up", "top", "front", "of",
    "gray", "black", "teal", "lime", "magenta", "shiny", "old", "new", "cute", "nice", "toy", "animal", "object",
)  # fmt: skip
"""Words that are one token each but never in a caption, for prompts of users and as identifiers."""

WORDS: tuple[str, ...] = tuple(
    sorted(
        {word for opening, _ in OPENINGS for word in opening.split()}
        | {word for phrase in BACKGROUNDS.values() for word in phrase.split()}
        | set(CLASSES) | set(COLORS) | set(PATTERNS) | set(RARE_TOKENS) | set(EXTRA_WORDS) | {"small", "big"}
    )
)  # fmt: skip

SPRITES_PROMPTS: tuple[str, ...] = (
    "a {}",
    *(f"a {size}{{}} {place}" for place in BACKGROUNDS.values() for size in ("", "small ", "big ")),
)
"""25 evaluation prompts; `{}` is "sks dog" for the subject and "dog" for its class."""


def phrase(
    cls: str, *, size: str = "", rare: str = "", color: str = "", pattern: str = "", background: str = ""
) -> str:
    """A caption in the only word order of the training data: a small sks red striped dog on the beach."""
    place = BACKGROUNDS[background] if background else ""
    return " ".join(word for word in ("a", size, rare, color, pattern, cls, place) if word)


def caption(subject: Subject, scene: Scene, rng: random.Random) -> str:
    """A correct caption with a random subset of the attributes. One in ten has a rare token without a meaning."""
    words: list[str] = []
    if scene.size != "medium" and rng.random() < 0.6:
        words.append(scene.size)
    if rng.random() < 0.10:
        words.append(rng.choice(RARE_TOKENS) if rng.random() < 0.8 else _random_word(rng))
    if subject.body_name in COLORS and rng.random() < 0.45:
        words.append(subject.body_name)
    if rng.random() < (0.15 if subject.pattern == "plain" else 0.45):
        words.append(subject.pattern)
    words.append(subject.cls)
    if rng.random() < 0.7:
        words.append(BACKGROUNDS[scene.background])
    openings, weights = zip(*OPENINGS, strict=True)
    opening = rng.choices(openings, weights)[0]
    return " ".join([opening, *words]).strip()


def _random_word(rng: random.Random) -> str:
    # Teaches the base model to ignore words of several tokens as well.
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 3)))
