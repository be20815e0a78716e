"""`dreambooth bench`: compares fine-tuning methods on a dataset of subjects."""

from __future__ import annotations

from pathlib import Path

import click

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.methods import METHODS
from dreambooth_api.status import printable
from dreambooth_api.uris import BUILTIN_SPRITES


@click.group()
def bench() -> None:
    """Compare fine-tuning methods."""


@bench.command()
@click.option("--dataset", required=True, help=f"Folder with the format of the paper's dataset, or {BUILTIN_SPRITES}.")
@click.option(
    "--base", default=BUILTIN_SPRITES, show_default=True, help=f"Base model: Hub ID, folder or {BUILTIN_SPRITES}."
)
@click.option("--methods", default=",".join(METHODS), show_default=True, help="Methods to compare.")
@click.option("--subjects", type=click.IntRange(1), help="Number of subjects. Defaults to all, or 20 sprites.")
@click.option(
    "--seeds", default=3, show_default=True, type=click.IntRange(1, 100), help="Runs of each subject and method."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/bench"), show_default=True, help="Folder.")
@click.option("--keep-models", is_flag=True, help="Keep the weights of scored jobs.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a field of spec in all jobs.")
def paper(
    dataset: str,
    base: str,
    methods: str,
    subjects: int | None,
    seeds: int,
    out: Path,
    keep_models: bool,
    sets: tuple[str, ...],
) -> None:
    """Compare methods by the metrics of the paper: each subject with each method and seed is one job.

    Finished jobs are not repeated, so the same command continues after an interruption, and more subjects, seeds or
    methods add jobs. Writes results.md, results.json and index.html into the folder after each job.
    """
    from rich.console import Console

    from dreambooth_trainer.benchmark.paper import claim_folder, open_subjects, write_results
    from dreambooth_trainer.benchmark.results import RunResult
    from dreambooth_trainer.benchmark.runs import Run, make_runs, run_all
    from dreambooth_trainer.progress.console import choose_reporter

    selected = _methods(methods)
    claim_folder(out)
    found, note = open_subjects(dataset, subjects, out)
    if note:
        click.echo(printable(note))
    runs = make_runs(found, selected, seeds, base, sets, out)
    results = {run.root: result for run in runs if (result := run.result()) is not None}
    click.echo(f"{len(runs)} jobs, {len(results)} of them finished")

    def write() -> str:
        return write_results([(run, results[run.root]) for run in runs if run.root in results], len(runs), dataset, out)

    def on_result(run: Run, result: RunResult) -> None:
        results[run.root] = result
        write()
        click.echo(f"{len(results)} of {len(runs)} jobs finished")

    if remaining := [run for run in runs if run.root not in results]:
        run_all(remaining, out / "store", choose_reporter(Console()), keep_models=keep_models, on_result=on_result)
    click.echo(printable(f"{write()}\nwrote {out}/results.md, {out}/results.json and {out}/index.html"))


def _methods(text: str) -> list[str]:
    """The methods of a list separated by commas, each once.

    Raises:
        UserError: with the names that are not methods.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    remedy = f"use some of {', '.join(METHODS)}"
    issues = [ValidationIssue("--methods", name, "is not a method", remedy) for name in names if name not in METHODS]
    if not names:
        issues = [ValidationIssue("--methods", text, "has no method", remedy)]
    if issues:
        raise UserError(issues)
    return names
