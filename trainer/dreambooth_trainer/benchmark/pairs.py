"""`dreambooth bench pairs`: two subjects in one model, and both in one prompt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.benchmark.dataset import DatasetSubject
from dreambooth_trainer.benchmark.jobs import Case
from dreambooth_trainer.benchmark.kind import COSTS, Benchmark, Column, Published
from dreambooth_trainer.benchmark.pair_scores import joint_prompts, measure_pair
from dreambooth_trainer.benchmark.sprite_dataset import DEFAULT_SUBJECTS, MAX_SUBJECTS
from dreambooth_trainer.benchmark.steps import open_subjects

_PUBLISHED = (
    "Two concepts in each image, of CustomConcept101 by the authors of Custom Diffusion, with 50 DDPM steps "
    "(github.com/adobe-research/custom-diffusion, customconcept101/README.md, table Multiple concept). Concepts and "
    "prompts are others, and the text alignment is 2.5 x the cosine similarity (evaluate.py). With one concept in each "
    "image, it lists DINO 0.5541 for DreamBooth and 0.5335 for Custom Diffusion."
)


def open_pairs(dataset: str, out: Path, count: int | None) -> tuple[list[Case], str]:
    """The first pairs of a dataset, and a line for the user or an empty string.

    Args:
        dataset: folder, or builtin:sprites, which is written to a folder in `out`.
        count: None for all pairs.

    Raises:
        UserError: the dataset cannot be read, has fewer pairs, or has no prompt for both subjects of one.
    """
    # The classes of sprites alternate: neighbors have different ones.
    sprites = min(2 * (count or DEFAULT_SUBJECTS // 2), MAX_SUBJECTS) if dataset == BUILTIN_SPRITES else None
    subjects, note = open_subjects(dataset, sprites, out)
    pairs = make_pairs(subjects)
    if not pairs or (count or 0) > len(pairs):
        rule = f"is more than the {len(pairs)} pairs of subjects of different classes in {dataset}"
        raise UserError(ValidationIssue("--pairs", count or 1, rule, "use fewer pairs, or add subjects"))
    return pairs[:count], note


def make_pairs(subjects: Iterable[DatasetSubject]) -> list[Case]:
    """Pairs each subject, in order, with the next one that has another class and no partner. Some remain without."""
    remaining, pairs = list(subjects), list[Case]()
    while remaining:
        first = remaining.pop(0)
        second = next((subject for subject in remaining if subject.class_ != first.class_), None)
        if second is not None:
            remaining.remove(second)
            pairs.append((first, second))
    return pairs


PAIRS: Final = Benchmark(
    title="Pairs of subjects",
    noun="pair",
    marker=".dreambooth-bench-pairs",
    photos="Photos of one subject",
    columns=(
        Column("dinoLower", "DINO, lower of both ↑"),
        Column("dino", "DINO, mean of both ↑"),
        Column("dinoFirst", "DINO, first ↑"),
        Column("dinoSecond", "DINO, second ↑"),
        Column("clipI", "CLIP-I, mean of both ↑"),
        Column("clipT", "CLIP-T ↑"),
        Column("singleDino", "DINO, one in the prompt ↑"),
        Column("singleClipT", "CLIP-T, one in the prompt ↑"),
        *COSTS,
    ),
    per_case=("dinoLower", "dinoFirst", "dinoSecond", "clipT"),
    claims=(),
    published=Published(
        headings=("", "DINO", "CLIP-I", "CLIP-T x 2.5"),
        rows=(
            ("DreamBooth", "0.3849", "0.6636", "0.7366"),
            ("Custom Diffusion (joint training)", "0.3799", "0.6704", "0.7534"),
            ("Custom Diffusion (optimization)", "0.3684", "0.6595", "0.7599"),
        ),
        note=f"{_PUBLISHED} The encoders are the same.",
        note_for_other_encoders=f"{_PUBLISHED} Its encoders are DINO ViT-S/16 and CLIP ViT-B/32, so its numbers are on "
        "another scale: compare the order of the methods, not the numbers.",
    ),
    prompts=joint_prompts,
    measure=measure_pair,
)
