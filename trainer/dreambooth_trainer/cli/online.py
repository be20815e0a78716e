"""Checks a job's models on the Hub without downloading weights, for `dreambooth validate --online`."""

from __future__ import annotations

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import DreamBoothJob
from dreambooth_trainer.families.registry import pinned, stage_folders
from dreambooth_trainer.metrics.encoder_files import pinned_commits
from dreambooth_trainer.planning.model_facts import check_model
from dreambooth_trainer.planning.plan import encoder_names, model_ref


def check_models(job: DreamBoothJob) -> list[str]:
    """Check the base model and the encoders of a job: ID, access, family, and the files that are loaded.

    Returns:
        The commit of each model from the Hub, as lines of text.

    Raises:
        UserError: with the issues of all models.
        TransientError: the Hub cannot be reached.
    """
    commits: dict[str, str] = {}
    issues: list[ValidationIssue] = []
    try:
        model = pinned(model_ref(job))
        folders = stage_folders(model)
        check_model(folders[""], job.spec)
        for source, folder in zip((model, model.super_resolution), folders.values(), strict=False):
            if source is not None and source.revision == folder.name:  # a snapshot of the Hub
                commits[source.id] = folder.name
    except UserError as error:
        issues += error.issues
    if job.spec.evaluation.enabled:
        try:
            commits |= pinned_commits(*encoder_names(job))
        except UserError as error:
            issues += error.issues
    if issues:
        raise UserError(issues)
    return [f"{model_id} is available, commit {commit}" for model_id, commit in commits.items()]
