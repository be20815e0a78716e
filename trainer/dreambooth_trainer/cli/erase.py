"""`dreambooth erase`: deletes the data of a job."""

from __future__ import annotations

from pathlib import Path

import click

from dreambooth_api.errors import UserError
from dreambooth_api.status import printable
from dreambooth_trainer.cli import options
from dreambooth_trainer.cli.run import default_folder
from dreambooth_trainer.store.erase import erase_job
from dreambooth_trainer.store.owner import MARKER, enumerate_names


@click.command()
@options.job_file
@click.option("--out", help="Folder or URL of the job. Defaults to spec.output.uri if it is local, else out/<name>.")
def erase(job_file: Path, out: str | None) -> None:
    """Delete a job's images, latents, checkpoints, weights and published copy."""
    job = options.read_job(job_file, ())
    try:
        results = list(erase_job(job, out or str(default_folder(job).resolve())))
    except UserError as error:
        # The marker of the folder is written before anything else, and deleted last.
        unclaimed = out is not None and not (Path(out) / MARKER).exists()
        rejected = unclaimed or all(issue.path == "--out" for issue in error.issues)
        if not options.is_from_operator(job_file) or not rejected:
            raise
        # The job was rejected before it wrote anything. It must not wait for ever for what it does not own.
        click.echo(printable(f"nothing to delete: {error}"))
        return
    for erased in results:
        if not erased.owned:
            click.echo(f"kept {erased.url}: not a model of this job ({enumerate_names(erased.kept)})")
        elif erased.kept:
            click.echo(f"deleted {erased.url}, except {enumerate_names(erased.kept)}: not created by this job")
        else:
            click.echo(f"deleted {erased.url}")
    if not results:
        click.echo("nothing to delete")
