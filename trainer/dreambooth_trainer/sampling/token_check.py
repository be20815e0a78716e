"""Checks that prompts are read as they are written if identifiers become tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from dreambooth_api.errors import ValidationIssue
from dreambooth_api.words import inside_word
from dreambooth_trainer.families.registry import load_tokenizer
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.sampling.prompt_check import prompts_by_field


def token_issues(plan: Plan, folder: Path, tokenizers: Sequence[str]) -> list[ValidationIssue]:
    """Issues of identifiers that become tokens: one that is a token already, or is read in other words as well.

    Args:
        folder: local folder of the base model.
        tokenizers: folders of the tokenizers that get the tokens.
    """
    issues: list[ValidationIssue] = []
    vocabulary = {token for name in tokenizers if plan.new_tokens for token in load_tokenizer(folder, name).get_vocab()}
    for field, (identifier, own) in zip(plan.spec.subject_fields, plan.new_tokens.items(), strict=False):
        if rule := next(_misread(plan, identifier, own, vocabulary), ""):
            remedy = f"set auto, or another word in lower case, for example <{identifier.lower().strip('<>')}>"
            issues.append(ValidationIssue(f"{field}.identifier", identifier, rule, remedy))
    return issues


def _misread(plan: Plan, identifier: str, own: Sequence[str], vocabulary: Collection[str]) -> Iterator[str]:
    """Why prompts with a new token would not be read as they are written."""
    for token in own:
        if token in vocabulary:
            yield f"becomes a token, and {token!r} is a token of the base model already"
    if identifier != identifier.lower():
        yield "becomes a token, and has upper-case letters, but the tokenizer reads prompts in lower case"
    # Added tokens are found inside of words, too.
    for other in plan.new_tokens:
        if identifier in other and identifier != other:
            yield f"becomes a token, and is a part of {other!r}, the identifier of another subject"
    for field, prompt in prompts_by_field(plan):
        if inside_word(prompt.lower(), identifier):
            yield f"becomes a token, and would be read inside of a word of the prompt {prompt!r} ({field})"
