"""`dreambooth bench`: compares fine-tuning methods on a dataset of subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.methods import METHODS
from dreambooth_api.preservation import MODES
from dreambooth_api.status import printable
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.benchmark.variants import CLASS_NOUNS

if TYPE_CHECKING:
    from dreambooth_trainer.benchmark.jobs import Case
    from dreambooth_trainer.benchmark.kind import Benchmark

N = TypeVar("N", bound=str)


@click.group()
def bench() -> None:
    """Compare fine-tuning methods."""


_OPTIONS = (
    click.option(
        "--dataset", required=True, help=f"Folder with the format of the paper's dataset, or {BUILTIN_SPRITES}."
    ),
    click.option(
        "--base", default=BUILTIN_SPRITES, show_default=True, help=f"Base model: Hub ID, folder or {BUILTIN_SPRITES}."
    ),
    click.option(
        "--methods",
        default=",".join(name for name, traits in METHODS.items() if traits.trains),
        show_default=True,
        help="Methods to compare. None, which trains nothing, needs an IP-Adapter for the base model.",
    ),
    click.option(
        "--modes",
        help=f"Modes of prior preservation to compare: {','.join(MODES)}. Defaults to the default mode of each method.",
    ),
    click.option(
        "--seeds",
        default=3,
        show_default=True,
        type=click.IntRange(1, 100),
        help="Runs of each subject or pair and method.",
    ),
    click.option(
        "--out", type=click.Path(path_type=Path), default=Path("out/bench"), show_default=True, help="Folder."
    ),
    click.option(
        "--parallel",
        default=1,
        show_default=True,
        type=click.IntRange(1, 1000),
        help="Jobs that run at the same time, each on its own GPUs or on an equal share of the cores.",
    ),
    click.option("--keep-models", is_flag=True, help="Keep the weights of scored jobs."),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a field of spec in all jobs to whose method it applies.",
    ),
)


def _list_of(known: Mapping[Any, str]) -> str:
    return "; ".join(f"{name}, {meaning}" for name, meaning in known.items())


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that all benchmarks have."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@bench.command()
@click.option("--subjects", type=click.IntRange(1), help="Number of subjects. Defaults to all, or 20 sprites.")
@click.option("--class-nouns", help=f"Class nouns of the prompts: {_list_of(CLASS_NOUNS)}. Defaults to Right.")
@click.option("--images", help="Numbers of images per subject, such as 1,3,5: the first ones by name. Defaults to all.")
@click.option("--class-images", help="Numbers of class images, such as 50,200. Defaults to that of each job.")
@_shared
def paper(
    subjects: int | None, class_nouns: str | None, images: str | None, class_images: str | None, **options: Any
) -> None:
    """Compare methods by the metrics of the paper: each subject with each method, mode and seed is one job.

    Finished jobs are not repeated, so the same command continues after an interruption, and more subjects, seeds,
    methods or modes add jobs. Writes results.md, results.json and index.html into the folder after each job.
    Lists of modes, class nouns and numbers are ablations: all of their combinations are compared.
    """
    from dreambooth_trainer.benchmark.single import SINGLE, open_single

    ablations: dict[str, Any] = {}
    if class_nouns is not None:
        ablations["class_nouns"] = _names("--class-nouns", "class noun", class_nouns, CLASS_NOUNS)
    for name, text in (("images", images), ("class_images", class_images)):
        if text is not None:
            ablations[name] = _numbers(f"--{name.replace('_', '-')}", text)
    _compare(SINGLE, partial(open_single, count=subjects), ablations=ablations, **options)


@bench.command()
@click.option("--pairs", "count", type=click.IntRange(1), help="Number of pairs. Defaults to all, or 10 of sprites.")
@_shared
def pairs(count: int | None, **options: Any) -> None:
    """Compare methods by images with two subjects: each pair with each method, mode and seed is one job.

    A subject is paired with the next one of another class. Both are trained in one model, and both are in each prompt
    that is scored. Otherwise as bench paper.
    """
    from dreambooth_trainer.benchmark.pairs import PAIRS, open_pairs

    _compare(PAIRS, partial(open_pairs, count=count), **options)


def _compare(
    benchmark: Benchmark,
    open_cases: Callable[[str, Path], tuple[list[Case], str]],
    *,
    dataset: str,
    base: str,
    methods: str,
    modes: str | None,
    seeds: int,
    out: Path,
    parallel: int,
    keep_models: bool,
    sets: tuple[str, ...],
    ablations: Mapping[str, Any] | None = None,
) -> None:
    """Run the jobs of a benchmark that have no result, and write the results.

    Args:
        open_cases: reads the subjects of each job from a dataset, and returns a line for the user as well.
        ablations: further arguments of `make_variants`.
    """
    from rich.console import Console

    from dreambooth_trainer.benchmark.execute import run_all
    from dreambooth_trainer.benchmark.results import RunResult
    from dreambooth_trainer.benchmark.runs import Run, make_runs
    from dreambooth_trainer.benchmark.steps import claim_folder, write_results
    from dreambooth_trainer.benchmark.variants import make_variants

    selected = _names("--methods", "method", methods, METHODS)
    preserved = [] if modes is None else _names("--modes", "mode", modes, MODES)
    claim_folder(out, benchmark)
    cases, note = open_cases(dataset, out)
    if note:
        click.echo(printable(note))
    variants = make_variants(selected, preserved, **(ablations or {}))
    runs = make_runs(cases, variants, seeds, base, sets, out)
    results = {run.root: result for run in runs if (result := run.result()) is not None}
    click.echo(f"{len(runs)} jobs, {len(results)} of them finished")

    def write() -> str:
        finished = [(run, results[run.root]) for run in runs if run.root in results]
        return write_results(benchmark, finished, len(runs), dataset, out)

    def on_result(run: Run, result: RunResult) -> None:
        results[run.root] = result
        write()
        click.echo(printable(f"{run.title}: {result.total_seconds:.0f} s, {len(results)} of {len(runs)} jobs finished"))

    if remaining := [run for run in runs if run.root not in results]:
        run_all(
            benchmark, remaining, out / "store", Console(), parallel=parallel, keep_models=keep_models,
            on_result=on_result,
        )  # fmt: skip
    click.echo(printable(f"{write()}\nwrote {out}/results.md, {out}/results.json and {out}/index.html"))


def _names(option: str, noun: str, text: str, known: Mapping[N, object]) -> list[N]:
    """The names in a list separated by commas, each once.

    Raises:
        UserError: with the names that are not known.
    """
    given = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    remedy = f"use some of {', '.join(known)}"
    issues = [ValidationIssue(option, name, f"is not a {noun}", remedy) for name in given if name not in known]
    if not given:
        issues = [ValidationIssue(option, text, f"has no {noun}", remedy)]
    if issues:
        raise UserError(issues)
    by_text = {str(name): name for name in known}
    return [by_text[name] for name in given]


def _numbers(option: str, text: str) -> list[int]:
    """The positive numbers in a list separated by commas, each once.

    Raises:
        UserError: with what is not a positive number.
    """
    given = list(dict.fromkeys(part.strip() for part in text.split(",")))
    wrong = [part for part in given if not (part.isascii() and part.isdigit() and int(part) > 0)]
    if wrong:
        rule = "is not a positive number"
        raise UserError([ValidationIssue(option, part, rule, "list numbers, such as 1,3,5") for part in wrong])
    return [int(part) for part in given]
