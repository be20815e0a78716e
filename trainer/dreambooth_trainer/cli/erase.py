"""`dreambooth erase`: remove everything that a job made."""

from __future__ import annotations

from pathlib import Path

import click

from dreambooth_trainer.cli import options
from dreambooth_trainer.cli.run import default_folder
from dreambooth_trainer.store.erase import erase_job
from dreambooth_trainer.store.owner import named


@click.command()
@options.job_file
@click.option("--out", help="The job's folder or URL. Default: as for run.")
def erase(job_file: Path, out: str | None) -> None:
    """Remove a job's images, latents, checkpoints, weights and published copy."""
    job = options.read_job(job_file, ())
    erased = list(erase_job(job, out or str(default_folder(job).resolve())))
    for place in erased:
        if not place.ours:
            click.echo(f"left {place.url} as it is: it holds {named(place.kept)}, and no model of this job")
        elif place.kept:
            click.echo(f"erased {place.url}, except {named(place.kept)}: this job did not make that")
        else:
            click.echo(f"erased {place.url}")
    if not erased:
        click.echo("nothing left to erase")
