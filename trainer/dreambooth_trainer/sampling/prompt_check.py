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
    tokenizer = load_tokenizer(folder)
    issues: dict[str, ValidationIssue] = {}
    for field, prompt in _prompts(plan):
        if field not in issues and (rule := _broken_limit(tokenizer, prompt)):
            issues[field] = ValidationIssue(field, None, rule, "shorten it")
    return list(issues.values()), list(_identifier_warnings(tokenizer, plan.identifier))


def _prompts(plan: Plan) -> Iterable[tuple[str, str]]:
    """All prompts of a job, with the fields that they come from. Default prompts come from the class."""
    subject, prompts = plan.spec.subject, plan.spec.evaluation.prompts
    yield "spec.subject.instancePrompt" if subject.instance_prompt else "spec.subject.class", plan.instance_prompt
    for name, caption in subject.captions.items():
        yield f'spec.subject.captions["{name}"]', caption
    class_prompt = plan.spec.prior_preservation.class_prompt
    yield "spec.priorPreservation.classPrompt" if class_prompt else "spec.subject.class", plan.class_prompt
    for index, template in enumerate(evaluation_prompts(plan)):
        field = f"spec.evaluation.prompts[{index}]" if prompts else "spec.subject.class"
        yield field, fill_template(template, plan.subject_noun)


def _broken_limit(tokenizer: Any, prompt: str) -> str:
    """The rule that a prompt violates, or an empty string."""
    tokens: list[int] = tokenizer(prompt, verbose=False).input_ids
    limit: int = tokenizer.model_max_length
    if len(tokens) <= limit:
        return ""
    # Two of the `limit` tokens mark start and end.
    ignored = tokenizer.decode(tokens[limit - 1 : -1]).strip()
    return (
        f"the prompt {prompt!r} has {len(tokens) - 2} tokens, the text encoder reads {limit - 2}: {ignored!r} would be "
        "ignored"
    )


def _identifier_warnings(tokenizer: Any, identifier: str) -> Iterable[str]:
    tokens: list[str] = tokenizer.tokenize(identifier)
    if len(tokens) > 1:
        words = ", ".join(token.removesuffix("</w>") for token in tokens)
        yield (
            f"the identifier {identifier!r} is {len(tokens)} tokens for this model ({words}); a single rare token is "
            "learned better: set subject.identifier: auto to select one"
        )
