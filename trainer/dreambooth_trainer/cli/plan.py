"""`dreambooth validate` and `dreambooth plan`: report the errors of a job file, and show what a job will do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from dreambooth_api.defaulting import with_local_defaults
from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.status import printable
from dreambooth_trainer.cli import options
from dreambooth_trainer.jobfile.runtimefile import load_runtime

if TYPE_CHECKING:
    from dreambooth_trainer.planning.make_plan import PlannedJob


@click.command()
@options.job_source
@click.option(
    "--online",
    is_flag=True,
    help="Also check the base model and the encoders on the Hugging Face Hub: ID, access, family and files. "
    "No weights are downloaded.",
)
def validate(job: options.JobSource, online: bool) -> None:
    """Report all errors in a job, in its images and in its use of the base model, if these are on this machine.

    JOB is a job file, or photos with --class: a folder, or a URI as in subject.images.uri.
    """
    from dreambooth_trainer.cli.offline import check_images, check_plan

    loaded = job.read()
    checks = [check_images, check_plan]
    if online:
        from dreambooth_trainer.cli.online import check_models

        # First, because it downloads what the other checks read.
        checks.insert(0, check_models)
    notes: list[str] = []
    issues: list[ValidationIssue] = []
    for check in checks:
        try:
            notes += check(loaded)
        except UserError as error:
            issues += [issue for issue in error.issues if issue not in issues]
    if issues:
        raise UserError(issues)
    click.echo(f"{job.source}: DreamBoothJob {loaded.metadata.name} is valid")
    _print_notes(Console(), notes)


def _print_notes(console: Console, warnings: Iterable[str]) -> None:
    for warning in warnings:
        console.print(f"note: {printable(warning)}", highlight=False, markup=False, soft_wrap=True)


@click.command()
@options.job_source
@click.option(
    "--runtime",
    "runtime_file",
    metavar="RUNTIME.yaml",
    type=click.Path(path_type=Path),
    help="Plan for a cluster: file of the DreamBoothRuntime, which supplies defaults and the hardware of the workers. "
    "It may also contain a LocalDreamBoothRuntime whose parent that is.",
)
@click.option("--output", "-o", type=click.Choice(["json"]), help="Print the plan for programs.")
def plan(job: options.JobSource, runtime_file: Path | None, output: str | None) -> None:
    """Show what a job will do: resolved defaults, memory per process, the ZeRO stage and the reason for it.

    JOB is a job file, or photos with --class: a folder, or a URI as in subject.images.uri.
    """
    loaded = job.read()
    show = _print_json if output else _print_plan
    runtime, local = load_runtime(runtime_file) if runtime_file else (None, None)
    if local is not None:
        loaded = loaded.model_copy(update={"spec": with_local_defaults(loaded.spec, local)})
    from dreambooth_trainer.cluster.capacity import wait_for_capacity
    from dreambooth_trainer.cluster.session import has_address, ray_cluster
    from dreambooth_trainer.images.own_class_images import check_class_images
    from dreambooth_trainer.images.subjects import prepare_subjects
    from dreambooth_trainer.runner import plan_for_runtime, prepare_job

    if runtime is not None:
        show(*plan_for_runtime(loaded, runtime))
        return
    with ray_cluster() if has_address() else contextlib.nullcontext():
        if has_address():
            wait_for_capacity(loaded.spec.cluster, lambda line: _print_notes(Console(stderr=True), [line]))
        prepared = prepare_job(loaded)
    # A run does this in its first phase.
    check_class_images(prepared.class_images, prepared.plan.resolution)
    _, warnings = prepare_subjects(prepared.images, prepared.plan.spec, prepared.plan.resolution)
    show(prepared.planned, (*prepared.warnings, *warnings))


def _print_plan(planned: PlannedJob, warnings: tuple[str, ...]) -> None:
    from dreambooth_trainer.models.hub_requests import license_name
    from dreambooth_trainer.planning.describe import rows

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    models = {"base model": planned.plan.model, "super-resolution": planned.plan.model.super_resolution}
    for label, value in rows(planned):
        table.add_row(label, value)
        model = models.get(label)
        # A model from the Hub has a commit.
        if model and model.revision and (name := license_name(model.id)):
            table.add_row("license", name)
    console = Console()
    console.print(table, highlight=False, markup=False)
    _print_notes(console, warnings)


def _print_json(planned: PlannedJob, warnings: tuple[str, ...]) -> None:
    from dreambooth_trainer.planning.describe import as_json

    click.echo(json.dumps({**as_json(planned), "warnings": list(warnings)}, indent=2))
