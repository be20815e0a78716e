"""Publish: the model with its card, pictures and scores in one folder, and the report beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
from pydantic import JsonValue

from dreambooth_trainer.families.registry import open_family, weights_digest
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.phases.evaluate import check_thresholds
from dreambooth_trainer.progress import PhaseProgress
from dreambooth_trainer.published import NOTE, note_of
from dreambooth_trainer.store.folder import whole_folder

# The report's libraries are imported when there is something to report: a run that is done already ends at once.
if TYPE_CHECKING:
    from dreambooth_trainer.report.contents import Report

# A loader opens this first: in a store without renames it is put last, and a model without it is none yet. The note is
# put first: by it an erasure knows a model that was not put up whole.
INDEX = "model_index.json"


def _inputs(context: Context) -> JsonValue:
    spec = context.plan.spec
    return {
        "evaluate": context.keys["evaluate"],
        "output": spec.output.model_dump(mode="json"),
        "thresholds": spec.evaluation.thresholds.model_dump(mode="json"),
    }


def _complete(context: Context) -> bool:
    return context.folder.model.exists() and context.folder.report.exists()


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    from dreambooth_trainer.phases.story import tell_story
    from dreambooth_trainer.report.page import write_report

    check_thresholds(context)
    folder, plan = context.folder, context.plan
    report = tell_story(context)
    with whole_folder(folder.model) as draft:
        _fill(draft, context, report)
    write_report(report, folder.report)
    digest, uri = weights_digest(folder.model), str(folder.model)
    remote = plan.spec.output.uri
    if remote is not None and "://" in remote:
        uri = remote
        _upload(folder.model, remote, progress)
    if not plan.spec.output.keep_checkpoints:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return {"uri": uri, "digest": f"sha256:{digest}"}


def _fill(draft: Path, context: Context, report: Report) -> None:
    from dreambooth_trainer.report.card import model_card
    from dreambooth_trainer.report.grids import comparison_grid
    from dreambooth_trainer.report.page import write_report

    folder, plan = context.folder, context.plan
    formats = plan.spec.output.formats
    if "diffusers" in formats:
        shutil.copytree(folder.trained, draft, dirs_exist_ok=True)
    if "safetensors" in formats:
        target = draft / f"{plan.job.metadata.name}.safetensors"
        context.pool.call(_save_single_file, folder.trained, target)
    (draft / NOTE).write_text(note_of(plan, context.base_digest).model_dump_json(by_alias=True, indent=2))
    (draft / "job.yaml").write_bytes((folder.root / "job.yaml").read_bytes())
    if plan.spec.evaluation.enabled:
        (draft / "scores.json").write_bytes(folder.scores.read_bytes())
    comparison_grid([report.subject, *report.contexts[:6], report.drift]).save(draft / "pictures.png")
    comparison_grid([report.subject]).save(draft / "subject.png")
    comparison_grid(report.contexts).save(draft / "recontextualised.png")
    comparison_grid([report.drift]).save(draft / "class.png")
    model_card(report, "pictures.png").save(draft / "README.md")
    write_report(report, draft / "report.html")


def _save_single_file(model: Path, target: Path) -> None:
    open_family(model).save_single_file(model, target)


def _upload(model: Path, uri: str, progress: PhaseProgress) -> None:
    fs, root = fsspec.url_to_fs(uri)
    files = sorted((p for p in model.rglob("*") if p.is_file()), key=lambda p: (p.name != NOTE, p.name == INDEX, p))
    progress.total(len(files))
    for number, path in enumerate(files):
        target = f"{root}/{path.relative_to(model).as_posix()}"
        fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        fs.put_file(str(path), target)
        progress.done(number + 1)


PUBLISH = Phase("publish", _inputs, _complete, _run)
