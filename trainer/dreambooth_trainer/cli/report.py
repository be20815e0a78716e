"""`dreambooth report`: regenerates the report of a finished job from its folder."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("out", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--no-photos", is_flag=True, help="Leave out the images of the subjects.")
def report(out: Path, no_photos: bool) -> None:
    """Regenerate OUT/report.html from the files in OUT, the folder of a finished job.

    The report in OUT/model never shows the images of the subjects.
    """
    from dreambooth_trainer.report.collect import collect_report
    from dreambooth_trainer.report.page import write_report
    from dreambooth_trainer.store.folder import JobFolder

    folder = JobFolder(out.resolve())
    write_report(collect_report(folder), folder.report, photos=not no_photos)
    click.echo(f"wrote {folder.report}")
