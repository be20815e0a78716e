"""Steps of all benchmarks: the folder, the subjects of the dataset, and the files with the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.benchmark.dataset import DatasetSubject, read_dataset
from dreambooth_trainer.benchmark.kind import Benchmark
from dreambooth_trainer.benchmark.page import write_page
from dreambooth_trainer.benchmark.results import RunResult
from dreambooth_trainer.benchmark.runs import Run
from dreambooth_trainer.benchmark.sprite_dataset import DEFAULT_SUBJECTS, MAX_SUBJECTS, write_sprite_dataset
from dreambooth_trainer.benchmark.summary import as_markdown, summarize
from dreambooth_trainer.store.folder import atomic_write


def claim_folder(out: Path, benchmark: Benchmark) -> None:
    """Create the folder of a benchmark, or continue in it.

    Raises:
        UserError: the folder has files of somebody else or of another kind of benchmark, which could be overwritten.
    """
    marker = out / benchmark.marker
    if out.exists() and not marker.exists() and (not out.is_dir() or any(out.iterdir())):
        rule = f"is not empty and not the folder of a benchmark of {benchmark.noun}s, so its files could be overwritten"
        raise UserError(ValidationIssue("--out", str(out), rule, "use another folder"))
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()


def open_subjects(dataset: str, count: int | None, out: Path) -> tuple[list[DatasetSubject], str]:
    """The first subjects of a dataset, and a line for the user or an empty string.

    Args:
        dataset: folder, or builtin:sprites, which is written to a folder in `out`.
        count: None for all subjects.

    Raises:
        UserError: the dataset cannot be read, or has fewer subjects.
    """
    folder = Path(dataset)
    if dataset == BUILTIN_SPRITES:
        folder, count = out / "dataset", count or DEFAULT_SUBJECTS
        if count > MAX_SUBJECTS:
            rule = f"is more than {MAX_SUBJECTS}, the number of subjects of {BUILTIN_SPRITES}"
            raise UserError(ValidationIssue("--subjects", count, rule, "use fewer subjects"))
        write_sprite_dataset(folder, count)
    found = read_dataset(folder)
    missing = ", ".join(found.missing)
    if count is not None and count > len(found.subjects):
        rule = f"is more than the {len(found.subjects)} subjects in {folder}"
        remedy = f"use fewer subjects, or add the missing folders: {missing}" if missing else "use fewer subjects"
        raise UserError(ValidationIssue("--subjects", count, rule, remedy))
    note = f"{len(found.missing)} subjects have no folder in {folder} and are left out: {missing}"
    return list(found.subjects[:count]), note if missing and count is None else ""


def write_results(
    benchmark: Benchmark, finished: Sequence[tuple[Run, RunResult]], jobs: int, dataset: str, out: Path
) -> str:
    """Write results.md, results.json and index.html, and return the Markdown.

    Args:
        jobs: number of all jobs.
    """
    summary = summarize(benchmark, [result for _, result in finished], dataset, jobs)
    text = as_markdown(benchmark, summary)
    atomic_write(out / "results.md", text)
    atomic_write(out / "results.json", summary.model_dump_json(by_alias=True, indent=1))
    write_page(benchmark, summary, [run for run, _ in finished], out / "index.html")
    return text
