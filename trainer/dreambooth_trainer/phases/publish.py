"""Publish: the model with its card, pictures and scores in one folder, and the report beside it."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import fsspec
from pydantic import JsonValue

from dreambooth_api.errors import UserError
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.uris import is_url
from dreambooth_trainer.families.base import ADAPTER_FILE
from dreambooth_trainer.families.registry import open_family, weights_digest
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.phases.evaluate import check_thresholds
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.store.folder import atomic_directory
from dreambooth_trainer.store.owner import model_issues, read_manifest, remote_issues
from dreambooth_trainer.store.published import MANIFEST, ModelManifest, build_manifest

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
    from dreambooth_trainer.report.collect import collect_report
    from dreambooth_trainer.report.page import write_report

    check_thresholds(context)
    folder, plan = context.folder, context.plan
    report = collect_report(folder)
    with atomic_directory(folder.model) as draft:
        _fill(draft, context, report)
        note = build_manifest(plan, context.base_digest, draft)
        (draft / MANIFEST).write_text(note.model_dump_json(by_alias=True, indent=2))
        if issues := model_issues(folder.model, plan.job):
            raise UserError(issues)
    write_report(report, folder.report)
    digest, uri = weights_digest(folder.trained), str(folder.model)
    remote = plan.spec.output.uri
    if remote is not None and is_url(remote):
        uri = remote
        upload(folder.model, note, remote, plan.job, progress)
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
    if (folder.trained / ADAPTER_FILE).exists():
        shutil.copyfile(folder.trained / ADAPTER_FILE, draft / ADAPTER_FILE)
    for path in draft.rglob("*.safetensors"):
        # safetensors (0.8) writes files that nobody but their owner can read.
        path.chmod(0o644)
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


def upload(model: Path, note: ModelManifest, uri: str, job: DreamBoothJob, progress: PhaseProgress) -> None:
    """Bring a model to a URL, in place of this job's earlier one there.

    Raises:
        UserError: the place is not this job's, or holds a file of somebody else that would be replaced.
    """
    if issues := remote_issues(uri, job, note.files):
        raise UserError(issues)
    fs, root = fsspec.url_to_fs(uri)
    earlier = read_manifest(fs, root)
    dropped = set(earlier.files).difference(note.files) if earlier is not None else set[str]()
    # Until they are gone the note lists them: an upload that is cut short leaves nothing that no note lists.
    draft = note.model_copy(update={"files": tuple(sorted(dropped.union(note.files)))})
    fs.makedirs(root, exist_ok=True)
    # Of two jobs that find the place empty, one creates the note.
    with fs.open(f"{root}/{MANIFEST}", "wb" if earlier is not None else "xb") as file:
        cast("Any", file).write(draft.model_dump_json(by_alias=True, indent=2).encode())
    progress.total(len(note.files))
    for number, name in enumerate(sorted({*note.files} - {MANIFEST}, key=lambda name: (name == INDEX, name))):
        target = f"{root}/{name}"
        fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        fs.put_file(str(model / name), target)
        progress.done(number + 1)
    for name in dropped:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{name}")
    fs.put_file(str(model / MANIFEST), f"{root}/{MANIFEST}")
    progress.done(len(note.files))


PUBLISH = Phase("publish", _inputs, _complete, _run)
