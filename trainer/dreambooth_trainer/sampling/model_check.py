"""Checks that the base model can do what a job asks for, with its configuration and its tokenizers only."""

from __future__ import annotations

from pathlib import Path

from dreambooth_api.errors import UserError
from dreambooth_trainer.families.capabilities import capability_issues
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.sampling.prompt_check import check_prompts
from dreambooth_trainer.sampling.token_check import token_issues


def check_use(plan: Plan, folder: Path) -> list[str]:
    """Warnings about the identifiers of a job.

    Args:
        folder: local folder of the base model. It may be without weights.

    Raises:
        UserError: with all issues of prompts, of identifiers that become tokens, and of settings that the model's
            family does not support.
    """
    issues, warnings = check_prompts(plan, folder)
    if _depends_on_family(plan):
        family = open_family(folder)
        tokenizers = list(family.extensible_text_encoders.values())
        issues += [*capability_issues(plan, family), *token_issues(plan, folder, tokenizers)]
    if issues:
        raise UserError(issues)
    return warnings


def _depends_on_family(plan: Plan) -> bool:
    """Whether the job sets something that some families do not support. Importing a family takes seconds."""
    spec = plan.spec
    asks = plan.live_text_encoders or plan.image_prompts is not None
    return asks or "safetensors" in (spec.output.formats or ())
