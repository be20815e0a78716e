"""Checks that a model's family can do what a job asks for."""

from __future__ import annotations

from dreambooth_api.errors import ValidationIssue
from dreambooth_trainer.families.base import Family, ImagePrompts, SingleFileWriter
from dreambooth_trainer.planning.plan import Plan


def capability_issues(plan: Plan, family: Family) -> list[ValidationIssue]:
    """Issues of settings that the family of the base model does not support."""
    issues: list[ValidationIssue] = []
    if plan.train_text_encoder and not family.trainable_text_encoders:
        rule = f"is not supported for {family.name}, whose text encoder is a language model"
        field = "spec.training.textEncoder.train"
        issues.append(ValidationIssue(field, True, rule, "remove it, or set false"))
    if plan.new_tokens and not family.extensible_text_encoders:
        rule = f"adds tokens, which is not supported for {family.name}, only for Stable Diffusion 1, 2, XL and FLUX.1"
        issues.append(ValidationIssue("spec.training.method", plan.spec.training.method, rule, "set method: LoRA"))
    if plan.image_prompts is not None and not isinstance(family, ImagePrompts):
        rule = f"has no image-prompt adapters for {family.name}, only for Stable Diffusion 1, 2 and XL"
        issues.append(ValidationIssue("spec.training.method", plan.spec.training.method, rule, "set method: LoRA"))
    if "safetensors" in (plan.spec.output.formats or ()) and not isinstance(family, SingleFileWriter):
        rule = f"is not available for {family.name}: there is no converter to a single file"
        issues.append(ValidationIssue("spec.output.formats", "safetensors", rule, "set diffusers, or lora with LoRA"))
    return issues
