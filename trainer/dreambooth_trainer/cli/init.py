"""`dreambooth init`: writes a job file."""

from __future__ import annotations

from pathlib import Path

import click

from dreambooth_trainer.cli import options
from dreambooth_trainer.jobfile.fromphotos import save_job


@click.command()
@options.job_source
@click.option(
    "--save",
    default="job.yaml",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Job file to write. None is overwritten.",
)
def init(job: options.JobSource, save: Path) -> None:
    """Write a job file for photos, with the fields that the options set.

    JOB is a folder of photos, or a URI as in subject.images.uri. A job file is copied with the changes.
    """
    save_job(job.read(), save)
    click.echo(f"wrote {save}; next: dreambooth plan {save}")
