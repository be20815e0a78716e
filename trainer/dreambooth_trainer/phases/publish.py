"""Publishes the model: weights, model card, images and scores in one folder, and the report next to it."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
from pydantic import JsonValue

from dreambooth_api import layout
from dreambooth_api.errors import UserError
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.model import public_name
from dreambooth_api.status import TrainerPhase
from dreambooth_api.uris import hub_repository, is_url
from dreambooth_trainer.families.base import AdapterInfo, KohyaWriter, SingleFileWriter
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.jobfile.load import dump_job
from dreambooth_trainer.models.files import (
    ADAPTER_FILE,
    EMBEDDINGS_PATTERN,
    IMAGE_EMBEDS_FILE,
    INDEX,
    IP_ADAPTER_FILE,
    embeddings_file,
)
from dreambooth_trainer.models.hub_requests import license_fields
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.phases.evaluate import check_thresholds
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.store.claim import claim_url
from dreambooth_trainer.store.folder import atomic_directory, link_or_copy
from dreambooth_trainer.store.hub_output import upload_repository
from dreambooth_trainer.store.owner import model_issues, read_manifest, remote_issues
from dreambooth_trainer.store.published import (
    MANIFEST,
    ModelManifest,
    build_manifest,
    contents_digest,
    single_file_name,
)

# Libraries of the report are imported inside functions, so that a run with nothing left to do exits quickly.
if TYPE_CHECKING:
    from dreambooth_trainer.report.contents import Report

# Loaders read these files first. Object stores cannot rename folders, so they are uploaded last: a model without them
# is incomplete. The manifest is uploaded first, so that an incomplete model can be erased.
UPLOADED_LAST = (INDEX, ADAPTER_FILE, embeddings_file(0), IMAGE_EMBEDS_FILE)


def _inputs(context: Context) -> JsonValue:
    spec, validation = context.plan.spec, context.plan.spec.training.validation
    return {
        "evaluate": context.keys[TrainerPhase.EVALUATE],
        # The key of the training has select and patience.
        "output": spec.output.model_dump(mode="json", exclude={"select"}),
        "formats": list(context.plan.formats),
        "thresholds": spec.evaluation.thresholds.model_dump(mode="json"),
        # Of the report. Jobs without it keep the key that they had before this setting existed.
        **({"validation": validation.model_dump(mode="json", exclude={"patience"})} if validation else {}),
    }


def _complete(context: Context) -> bool:
    return context.folder.model.exists() and context.folder.report.exists()


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    from dreambooth_trainer.report.collect import collect_report
    from dreambooth_trainer.report.loading import tool_files
    from dreambooth_trainer.report.page import write_report

    check_thresholds(context)
    folder, plan = context.folder, context.plan
    report = collect_report(folder)
    with atomic_directory(folder.model) as draft:
        notes = _write_model_folder(draft, context, report)
        manifest = build_manifest(plan, context.base_digest, draft)
        (draft / MANIFEST).write_text(manifest.model_dump_json(by_alias=True, indent=2))
        if issues := model_issues(folder.model, plan.job):
            raise UserError(issues)
    write_report(replace(report, tool_files=tool_files(plan, manifest.files, report.pipeline_class)), folder.report)
    uri = str(folder.model)
    remote = plan.spec.output.uri
    if remote is not None and is_url(remote):
        uri = remote
        upload(folder.model, manifest, remote, plan.job, progress)
    if not plan.spec.output.keep_checkpoints:
        for stage in plan.stages:
            shutil.rmtree(folder.of_stage(stage.stage).checkpoints, ignore_errors=True)
    return {"uri": uri, "digest": contents_digest(manifest), "warnings": list[JsonValue](notes)}


def _write_model_folder(draft: Path, context: Context, report: Report) -> list[str]:
    """Write all files but the manifest; returns messages about files that the family of the model cannot have."""
    from dreambooth_trainer.report.card import model_card, save_gallery
    from dreambooth_trainer.report.grids import comparison_grid
    from dreambooth_trainer.report.loading import tool_files
    from dreambooth_trainer.report.page import write_report

    folder, plan, notes = context.folder, context.plan, list[str]()
    if "diffusers" in plan.formats:
        ignored = shutil.ignore_patterns(ADAPTER_FILE, EMBEDDINGS_PATTERN)
        shutil.copytree(folder.trained, draft, ignore=ignored, copy_function=link_or_copy, dirs_exist_ok=True)
    if "safetensors" in plan.formats:
        written = context.pool.call(_save_single_file, folder.trained, draft / single_file_name(plan))
        if not written:
            notes.append("no single file was published: the format is not available for this family of models")
    if "lora" in plan.formats:
        for stage in plan.stages:
            (draft / stage.stage).mkdir(exist_ok=True)
            link_or_copy(
                str(folder.of_stage(stage.stage).trained / ADAPTER_FILE), str(draft / stage.stage / ADAPTER_FILE)
            )
        if plan.spec.training.traits.kohya:
            target = draft / f"{plan.job.metadata.name}.safetensors"
            if not context.pool.call(_save_kohya_adapter, plan, folder.trained, target):
                notes.append(
                    "no adapter in kohya's layout was published: it is not available for this family of models"
                )
    if "embeddings" in plan.formats:
        for path in folder.trained.glob(EMBEDDINGS_PATTERN):
            link_or_copy(str(path), str(draft / path.name))
    for name in (IP_ADAPTER_FILE, IMAGE_EMBEDS_FILE) if "ip-adapter" in plan.formats else ():
        link_or_copy(str(folder.trained / name), str(draft / name))
    (draft / "job.yaml").write_text(dump_job(plan.job, public=True))
    if plan.spec.evaluation.enabled:
        (draft / "scores.json").write_bytes(folder.scores.read_bytes())
    subjects = report.subjects
    summaries = [(one.comparison, *one.prompt_comparisons[:6], one.class_comparison) for one in subjects]
    # By prompt: an instance prompt may be an evaluation prompt, too.
    rows = {row.prompt: row for summary in summaries for row in summary}
    comparison_grid(list(rows.values())).save(draft / layout.COMPARISON)
    comparison_grid([one.comparison for one in subjects], pairs=4).save(draft / layout.SUBJECT)
    prompts = [comparison for one in subjects for comparison in one.prompt_comparisons]
    comparison_grid(prompts).save(draft / layout.RECONTEXTUALIZATION)
    classes = {one.class_prompt: one.class_comparison for one in subjects}
    comparison_grid(list(classes.values()), pairs=4).save(draft / layout.CLASS)
    report = replace(
        report, tool_files=tool_files(plan, {path.name for path in draft.iterdir()}, report.pipeline_class)
    )
    licensed = license_fields(plan.model.id) if plan.model.revision else {}
    gallery = save_gallery(report, draft)
    card = model_card(report, layout.COMPARISON, gallery=gallery, formats=plan.formats, license_fields=licensed)
    card.save(draft / "README.md")
    # The model may be uploaded to a public place. The report in the job's folder has the photos.
    write_report(report, draft / layout.REPORT, photos=False)
    return notes


def _save_kohya_adapter(plan: Plan, model: Path, target: Path) -> bool:
    """Write an adapter in kohya's layout; returns whether the family of the model has that layout."""
    family = open_family(model)
    if not isinstance(family, KohyaWriter):
        return False
    base_model, prompts = public_name(plan.model.id), ", ".join(plan.instance_prompts)
    info = AdapterInfo(plan.job.metadata.name, base_model, prompts, plan.resolution)
    family.save_kohya_adapter(model, target, info)
    return True


def _save_single_file(model: Path, target: Path) -> bool:
    """Write a single file; returns whether the family of the model has that format."""
    family = open_family(model)
    if isinstance(family, SingleFileWriter):
        family.save_single_file(model, target)
        return True
    return False


def upload(model: Path, manifest: ModelManifest, uri: str, job: DreamBoothJob, progress: PhaseProgress) -> None:
    """Upload a model to a URL or a repository on the Hub. It replaces a model that this job published there earlier.

    Raises:
        UserError: the folder belongs to another job, or contains a file of another owner that would be replaced.
    """
    if hub_repository(uri) is not None:
        progress.total(len(manifest.files))
        upload_repository(model, manifest.files, uri, job)
        progress.done(len(manifest.files))
        return
    if issues := remote_issues(uri, job, manifest.files):
        raise UserError(issues)
    fs, root = fsspec.url_to_fs(uri)
    previous = read_manifest(fs, root)
    before = previous.files if previous is not None else {}
    # The manifest lists obsolete files until they are deleted: an interrupted upload leaves no unlisted files.
    draft = manifest.model_copy(update={"files": {**before, **manifest.files}})
    claim_url(uri, job)
    fs.pipe_file(f"{root}/{MANIFEST}", draft.model_dump_json(by_alias=True, indent=2).encode())
    progress.total(len(manifest.files))
    for number, name in enumerate(sorted(manifest.files, key=lambda name: (name in UPLOADED_LAST, name))):
        target = f"{root}/{name}"
        fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        fs.put_file(str(model / name), target)
        progress.done(number + 1)
    for name in before.keys() - manifest.files.keys():
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{name}")
    fs.put_file(str(model / MANIFEST), f"{root}/{MANIFEST}")
    progress.done(len(manifest.files))


PUBLISH = Phase(TrainerPhase.PUBLISH, _inputs, _complete, _run)
