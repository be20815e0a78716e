"""Checks that the base model's text encoder reads the whole of every prompt of a job."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dreambooth_api.errors import ValidationIssue
from dreambooth_trainer.families.registry import load_tokenizer
from dreambooth_trainer.metrics.prompts import fill_template
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.sampling.evaluation_set import evaluation_prompts


def check_prompts(plan: Plan, folder: Path) -> tuple[list[ValidationIssue], list[str]]:
    """Issues of prompts that are longer than the text encoder can read, and warnings about the identifier.

    Args:
        folder: local folder of the base model.
    """
    tokenizer = _tokenizer(plan, folder)
    warnings = [
        warning
        for field, subject in zip(plan.spec.subject_fields, plan.subjects, strict=True)
        for warning in _identifier_warnings(tokenizer, subject.identifier, field)
    ]
    return long_prompts(plan, folder, prompts_by_field(plan)), warnings


def long_prompts(plan: Plan, folder: Path, prompts: Iterable[tuple[str, str]]) -> list[ValidationIssue]:
    """An issue for each field with a prompt that is longer than the text encoder can read.

    Args:
        folder: local folder of the base model.
        prompts: with the fields that they come from.
    """
    tokenizer = _tokenizer(plan, folder)
    issues: dict[str, ValidationIssue] = {}
    for field, written in prompts:
        prompt = written
        for identifier, own in plan.new_tokens.items():
            prompt = prompt.replace(identifier, " ".join(own))
        if field not in issues and (rule := _broken_limit(tokenizer, prompt)):
            issues[field] = ValidationIssue(field, None, rule, "shorten it")
    return list(issues.values())


def _tokenizer(plan: Plan, folder: Path) -> Any:
    """The tokenizer of a base model, with the new tokens of a plan."""
    tokenizer = load_tokenizer(folder)
    for own in plan.new_tokens.values():
        tokenizer.add_tokens(own)
    return tokenizer


def prompts_by_field(plan: Plan) -> Iterable[tuple[str, str]]:
    """All prompts of a job, with the fields that they come from. Default prompts come from the class."""
    spec = plan.spec
    for field, given, subject in zip(spec.subject_fields, spec.all_subjects, plan.subjects, strict=True):
        own = f"{field}.class"
        yield f"{field}.instancePrompt" if given.instance_prompt else own, subject.instance_prompt
        for name, caption in subject.captions.items():
            yield f'{field}.captions["{name}"]', caption
        class_prompt_field = "spec.priorPreservation.classPrompt" if spec.subject else f"{field}.classPrompt"
        yield class_prompt_field if given.class_prompt else own, subject.class_prompt
        for index, template in enumerate(evaluation_prompts(plan, subject)):
            from_job = f"spec.evaluation.prompts[{index}]"
            yield from_job if spec.evaluation.prompts else own, fill_template(template, subject.noun)
        for index, template in enumerate(spec.training.validation.prompts if spec.training.validation else ()):
            yield f"spec.training.validation.prompts[{index}]", fill_template(template, subject.noun)


def _broken_limit(tokenizer: Any, prompt: str) -> str:
    """The rule that a prompt violates, or an empty string."""
    tokens: list[int] = tokenizer(prompt, verbose=False).input_ids
    limit: int = tokenizer.model_max_length
    if len(tokens) <= limit:
        return ""
    # CLIP marks start and end with tokens, T5 the end.
    marks = tokenizer.num_special_tokens_to_add()
    ignored = tokenizer.decode(tokens[limit - 1 : -1]).strip()
    return (
        f"the prompt {prompt!r} has {len(tokens) - marks} tokens, the text encoder reads {limit - marks}: {ignored!r} "
        "would be ignored"
    )


def _identifier_warnings(tokenizer: Any, identifier: str, field: str) -> Iterable[str]:
    tokens: list[str] = tokenizer.tokenize(identifier)
    if len(tokens) > 1:
        words = ", ".join(token.removesuffix("</w>") for token in tokens)
        yield (
            f"the identifier {identifier!r} is {len(tokens)} tokens for this model ({words}); a single rare token is "
            f"learned better: set {field.removeprefix('spec.')}.identifier: auto to select one"
        )
