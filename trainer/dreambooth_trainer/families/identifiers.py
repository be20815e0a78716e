"""Selects identifiers for subjects whose job sets `identifier: auto`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.words import contains_word
from dreambooth_trainer.families.registry import load_tokenizer

# A token that is a word: CLIP marks its end, byte-level BPE and SentencePiece the space before it.
_WORD = re.compile(r"(?=.*</w>$|[Ġ▁])[Ġ▁]?(.+?)(?:</w>)?")


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
            new_token = job.spec.training.traits.tokens
            identifier = rare_identifier(folder, seed_text, [*texts, *selected], new_token=new_token)
        selected.append(identifier)
    return tuple(selected)


def rare_identifier(folder: Path, seed_text: str, prompts: Iterable[str] = (), *, new_token: bool = False) -> str:
    """A rare identifier (paper, section 3.1): a single token of three letters with a high rank in the vocabulary.

    Equal arguments give equal identifiers.

    Args:
        prompts: texts that must not contain the identifier.
        new_token: a token of this name is added to the tokenizer, which must not have one as a part of words. It is
            found inside of words, too: prompts must not contain it there.

    Raises:
        UserError: the tokenizer has no such token.
    """
    vocabulary = load_tokenizer(folder).get_vocab()
    words = {match[1]: rank for token, rank in vocabulary.items() if (match := _WORD.fullmatch(token))}
    short = sorted((w for w in words if len(w) == 3 and w.isascii() and w.isalpha()), key=lambda w: words[w])
    if new_token:
        short = [word for word in short if word not in vocabulary]
    used = " ".join(prompts).lower()
    short = [word for word in short if not (word in used if new_token else contains_word(used, word.lower()))]
    if new_token:
        short = [word for word in short if word == word.lower()]
    if not short:
        rule, remedy = "found no rare token of three letters in the model's tokenizer", "set an identifier, such as sks"
        raise UserError(ValidationIssue("spec.subject.identifier", "auto", rule, remedy))
    rare = short[-max(1, len(short) // 4) :]
    return rare[int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:8]) % len(rare)]
