"""Selects identifiers for subjects whose job sets `identifier: auto`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.words import contains_word
from dreambooth_trainer.families.registry import load_tokenizer
from dreambooth_trainer.planning.plan import model_ref
from dreambooth_trainer.sampling.evaluation_set import prompt_templates

# A token that is a word: CLIP marks its end, byte-level BPE and SentencePiece the space before it.
_WORD = re.compile(r"(?=.*</w>$|[Ġ▁])[Ġ▁]?(.+?)(?:</w>)?")
# Rare tokens also include words, such as "ewe" and "urn", which have vowels. A single letter is never rare.
_CONSONANTS = re.compile(r"[b-df-hj-np-tv-xz]{2,3}")


def select_identifiers(job: DreamBoothJob, folder: Path) -> tuple[str, ...]:
    """The identifier of each subject. Each `auto` becomes a rare token that no other subject of the job uses.

    Args:
        folder: local folder of the base model.
    """
    subjects, selected = job.spec.all_subjects, list[str]()
    texts = [text for subject in subjects for text in (subject.class_, subject.class_prompt or "")]
    texts += [text for one in subjects for text in prompt_templates(job.spec, model_ref(job).id, one.class_)]
    texts += [text for one in subjects for text in (one.identifier, one.instance_prompt or "", *one.captions.values())]
    texts += validation.prompts if (validation := job.spec.training.validation) else ()
    for subject in subjects:
        identifier = subject.identifier
        if identifier == "auto":
            seed_text = f"{job.metadata.namespace}/{job.metadata.name}"
            new_token = job.spec.training.traits.tokens
            identifier = rare_identifier(folder, seed_text, [*texts, *selected], new_token=new_token)
        selected.append(identifier)
    return tuple(selected)


def rare_identifier(folder: Path, seed_text: str, prompts: Iterable[str] = (), *, new_token: bool = False) -> str:
    """A rare identifier (paper, section 3.1): a token of two or three letters among the last of the vocabulary.

    Equal arguments give equal identifiers.

    Args:
        prompts: texts that must not contain the identifier.
        new_token: a token of this name is added to all tokenizers. It is found inside of words, too: neither the
            prompts nor another token of the vocabulary may contain it.

    Raises:
        UserError: the tokenizer has no such token.
    """
    tokenizer = load_tokenizer(folder)
    vocabulary = tokenizer.get_vocab()
    words = {match[1]: token for token in vocabulary if (match := _WORD.fullmatch(token))}
    words = {word: token for word, token in words.items() if _CONSONANTS.fullmatch(word)}
    used, parts = " ".join(prompts).lower(), "\n".join(vocabulary)
    if new_token:
        others = (load_tokenizer(folder, path.name) for path in sorted(folder.glob("tokenizer_*")))
        taken = {token for other in others for token in other.get_vocab()}
        free = [word for word in words if word not in used and parts.count(word) == 1 and word not in taken]
    else:
        free = [word for word in words if not contains_word(used, word)]
    free = sorted(_single_tokens(tokenizer, {word: words[word] for word in free}), key=lambda w: vocabulary[words[w]])
    if not free:
        rule, remedy = "found no rare token without vowels in the model's tokenizer", "set an identifier, such as sks"
        raise UserError(ValidationIssue("spec.subject.identifier", "auto", rule, remedy))
    rare = free[-max(1, len(free) // 4) :]
    return rare[int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:8]) % len(rare)]


def _single_tokens(tokenizer: Any, words: Mapping[str, str]) -> list[str]:
    """The words of a mapping to tokens that a prompt encodes as their token, and that the token decodes to."""
    if not words:
        return []
    encoded: list[list[int]] = tokenizer([f"a {word}" for word in words], add_special_tokens=False).input_ids
    vocabulary = tokenizer.get_vocab()
    return [
        word
        for (word, token), ids in zip(words.items(), encoded, strict=True)
        if len(ids) == 2 and ids[1] == vocabulary[token] and tokenizer.decode(ids[1:]).strip() == word
    ]
