"""`dreambooth report`: regenerates the report of a finished job from its folder."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("out", type=click.Path(path_type=Path, exists=True, file_okay=False))
def report(out: Path) -> None:
    """Regenerate OUT/report.html from the files in OUT, the folder of a finished job."""
    from dreambooth_trainer.report.collect import collect_report
    from dreambooth_trainer.report.page import write_report
    from dreambooth_trainer.store.folder import JobFolder

    folder = JobFolder(out.resolve())
    write_report(collect_report(folder), folder.report)
    click.echo(f"wrote {folder.report}")
