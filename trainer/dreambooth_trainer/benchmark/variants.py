"""What a benchmark compares: methods, and ablations of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Strict
from dreambooth_api.imagefolder import METADATA, caption_files, decode_metadata, is_candidate, is_visible, normalized
from dreambooth_api.methods import METHODS
from dreambooth_api.preservation import MODES, PreservationMode
from dreambooth_trainer.benchmark.dataset import DatasetSubject
from dreambooth_trainer.store.folder import atomic_directory

ClassNoun = Literal["Right", "Wrong", "None"]
CLASS_NOUNS: Final[dict[ClassNoun, str]] = {
    "Right": "that of the dataset",
    "Wrong": "that of the next of the compared subjects with another class",
    "None": "a second rare token, so that no prompt names a class",
}
NO_NOUN = "zwx"
"""Differs from the identifier of jobs that set none."""


class Variant(Strict):
    """A method, and the settings that are compared; None for those that are not.

    Attributes:
        mode: of prior preservation.
        class_noun: in all prompts.
        images: number of images of the subject.
        class_images: number of class images.
    """

    method: str
    mode: PreservationMode | None = None
    class_noun: ClassNoun | None = None
    images: int | None = None
    class_images: int | None = None

    @property
    def variant(self) -> str:
        """Name of the row in tables."""
        parts = [self.method, self.mode]
        if self.class_noun is not None:
            parts.append(f"class noun {self.class_noun}")
        if self.images is not None:
            parts.append("1 image" if self.images == 1 else f"{self.images} images")
        if self.class_images is not None:
            parts.append(f"{self.class_images} class images")
        return ", ".join(filter(None, parts))

    @property
    def usual(self) -> bool:
        """Whether the images and prompts are those of the dataset."""
        return self.class_noun in (None, "Right") and self.images is None

    @property
    def slug(self) -> str:
        """Name of the folder."""
        return self.variant.replace(", ", "-").replace(" ", "-")


def make_variants(
    methods: Sequence[str],
    modes: Sequence[PreservationMode] = (),
    class_nouns: Sequence[ClassNoun] = (),
    images: Sequence[int] = (),
    class_images: Sequence[int] = (),
) -> list[Variant]:
    """All combinations. Methods get only the settings that they have; an empty sequence is a default."""
    every = itertools.product(
        methods, modes or (None,), class_nouns or (None,), images or (None,), class_images or (None,)
    )
    found: dict[Variant, None] = {}
    for method, mode, noun, count, class_count in every:
        own = mode if METHODS[method].changes_weights else None
        has_class_images = METHODS[method].changes_weights and "num_class_images" in MODES[own or "Images"].members
        variant = Variant(
            method=method, mode=own, class_noun=noun, images=count,
            class_images=class_count if has_class_images else None,
        )  # fmt: skip
        found.setdefault(variant)
    return list(found)


def vary(subject: DatasetSubject, variant: Variant, subjects: Sequence[DatasetSubject], folder: Path) -> DatasetSubject:
    """A subject with the class noun and the number of images of a variant.

    Args:
        subjects: of the dataset.
        folder: for copies of images; see `write_images`.

    Raises:
        UserError: no subject has another class, or the subject has fewer images.
    """
    if variant.class_noun == "None":
        subject = replace(subject, class_=NO_NOUN)
    elif variant.class_noun == "Wrong":
        subject = replace(subject, class_=_wrong_noun(subject, subjects))
    if variant.images is not None:
        images = write_images(subject, variant.images, folder)
        subject = replace(subject, folder=images, references=subject.folder)
    return subject


def _wrong_noun(subject: DatasetSubject, subjects: Sequence[DatasetSubject]) -> str:
    names = [one.name for one in subjects]
    first = names.index(subject.name) + 1
    others = [one.class_ for one in (*subjects[first:], *subjects[:first]) if one.class_ != subject.class_]
    if not others:
        rule = f"has only subjects of the class {subject.class_}; Wrong takes the class noun of another class"
        raise UserError(ValidationIssue("--class-nouns", "Wrong", rule, "compare more subjects, or leave out Wrong"))
    return others[0]


def write_images(subject: DatasetSubject, count: int, folder: Path) -> Path:
    """The folder `<folder>/<count>/<name>` with copies of the first images of a subject and their captions.

    Raises:
        UserError: the subject has fewer, or its captions cannot be read.
    """
    files = sorted(path.name for path in subject.folder.iterdir() if path.is_file() and is_visible(path.name))
    found = [name for name in files if is_candidate(name)]
    if count > len(found):
        rule = f"is more than the {len(found)} images directly in the folder of {subject.name}"
        raise UserError(ValidationIssue("--images", count, rule, f"use at most {len(found)}, or leave it out"))
    chosen = found[:count]
    names = [*chosen, *caption_files(chosen, files).values()]
    content = {name: (subject.folder / name).read_bytes() for name in names}
    if METADATA in files:
        content[METADATA] = _rows_of(chosen, (subject.folder / METADATA).read_bytes())
    target = (folder / str(count) / subject.name).resolve()
    if target.is_dir() and {path.name: path.read_bytes() for path in target.glob("*.*")} == content:
        return target
    with atomic_directory(target) as draft:
        for name, data in content.items():
            (draft / name).write_bytes(data)
    return target


def _rows_of(names: Sequence[str], metadata: bytes) -> bytes:
    """The captions of some images in `metadata.jsonl`."""
    chosen = set(map(normalized, names))
    rows = decode_metadata(METADATA, metadata).items()
    kept = [json.dumps({"file_name": name, "text": text}) for name, text in rows if normalized(name) in chosen]
    return "\n".join(kept).encode()
