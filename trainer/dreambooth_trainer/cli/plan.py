"""`dreambooth validate` and `dreambooth plan`: report the errors of a job file, and show what a job will do."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from dreambooth_trainer.cli import options


@click.command()
@options.job_file
@options.sets
def validate(job_file: Path, sets: tuple[str, ...]) -> None:
    """Report all errors in a job file."""
    job = options.read_job(job_file, sets)
    click.echo(f"{job_file}: DreamBoothJob {job.metadata.name} is valid")


@click.command()
@options.job_file
@options.sets
def plan(job_file: Path, sets: tuple[str, ...]) -> None:
    """Show what a job will do: resolved defaults, memory per process, the ZeRO stage and the reason for it."""
    job = options.read_job(job_file, sets)
    from dreambooth_trainer.cluster.session import has_address, ray_cluster
    from dreambooth_trainer.planning.describe import rows
    from dreambooth_trainer.runner import prepare_job

    with ray_cluster() if has_address() else contextlib.nullcontext():
        prepared = prepare_job(job)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, value in rows(prepared.planned):
        table.add_row(label, value)
    console = Console()
    console.print(table, highlight=False, markup=False)
    for warning in prepared.warnings:
        console.print(f"note: {warning}", highlight=False, markup=False, soft_wrap=True)
