"""Selects identifiers for subjects whose job sets `identifier: auto`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from dreambooth_api.job import DreamBoothJob
from dreambooth_api.words import contains_word
from dreambooth_trainer.families.registry import load_tokenizer


def select_identifiers(job: DreamBoothJob, folder: Path) -> tuple[str, ...]:
    """The identifier of each subject. Each `auto` becomes a rare token that no other subject of the job uses.

    Args:
        folder: local folder of the base model.
    """
    subjects, selected = job.spec.all_subjects, list[str]()
    texts = [text for subject in subjects for text in (subject.class_, subject.class_prompt or "")]
    texts += [*job.spec.evaluation.prompts, *(subject.identifier for subject in subjects)]
    for subject in subjects:
        identifier = subject.identifier
        if identifier == "auto":
            seed_text = f"{job.metadata.namespace}/{job.metadata.name}"
            identifier = rare_identifier(folder, seed_text, [*texts, *selected])
        selected.append(identifier)
    return tuple(selected)


def rare_identifier(folder: Path, seed_text: str, prompts: Iterable[str] = ()) -> str:
    """A rare identifier (paper, section 3.1): a single token of three letters with a high rank in the vocabulary.

    Equal arguments give equal identifiers.

    Args:
        prompts: texts that must not contain the identifier.
    """
    vocabulary = load_tokenizer(folder).get_vocab()
    words = {word.removesuffix("</w>"): rank for word, rank in vocabulary.items() if word.endswith("</w>")}
    short = sorted((w for w in words if len(w) == 3 and w.isascii() and w.isalpha()), key=lambda w: words[w])
    used = " ".join(prompts).lower()
    short = [word for word in short if not contains_word(used, word.lower())]
    rare = short[-max(1, len(short) // 4) :]
    return rare[int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:8]) % len(rare)]
