"""`dreambooth score`: computes the paper's metrics for any images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.status import printable
from dreambooth_api.uris import BUILTIN_SPRITES, BUILTIN_SUBJECT

if TYPE_CHECKING:
    from dreambooth_trainer.benchmark.generated import ScoredImages
    from dreambooth_trainer.benchmark.scoring import ScoreReport


@click.command()
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of generated images, or folder of a job. The prompt of each image is in metadata.jsonl in the folder "
    "(file_name and text), or in a .txt file beside the image.",
)
@click.option("--references", help=f"Folder or URL of real images of the subject, or {BUILTIN_SUBJECT}.")
@click.option("--class-images", type=click.Path(path_type=Path), help="Folder of generated class images, for PRES.")
@click.option("--prompt", help="Prompt of all images without one of their own.")
@click.option("--identifier", help="Word to remove from the prompts, for example sks: CLIP does not know it.")
@click.option(
    "--dino",
    help=f"Encoder in place of DINO: Hub ID, folder or {BUILTIN_SPRITES}. Defaults to that of the job, and "
    f"without a job to the paper's, or {BUILTIN_SPRITES} with its subjects as references.",
)
@click.option("--clip", help="Encoder in place of CLIP, with the same defaults.")
@click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Format."
)
def score(
    images: Path,
    references: str | None,
    class_images: Path | None,
    prompt: str | None,
    identifier: str | None,
    dino: str | None,
    clip: str | None,
    output: Literal["table", "json"],
) -> None:
    """Compute DINO, CLIP-I, CLIP-T, PRES and DIV of images, also of other programs.

    Of the folder of a job, the evaluation images are scored, with the prompts, photos and encoders of the job.
    """
    from dreambooth_trainer.benchmark import scoring
    from dreambooth_trainer.cluster.hardware import local_devices

    subjects, defaults = _read(images, references, class_images, prompt, identifier)
    devices, note = local_devices()
    if note:
        click.echo(note, err=True)
    encoders = scoring.open_encoders(dino or defaults[0], clip or defaults[1], "cuda" if devices else "cpu")
    report = scoring.score(subjects, encoders)
    if output == "json":
        click.echo(report.model_dump_json(by_alias=True, indent=2))
    else:
        _print_table(report)


def _read(
    images: Path, references: str | None, class_images: Path | None, prompt: str | None, identifier: str | None
) -> tuple[dict[str, ScoredImages], tuple[str, str]]:
    """The images of each subject, and the names of the default encoders."""
    from dreambooth_trainer.benchmark.generated import read_scored_images
    from dreambooth_trainer.benchmark.scoring import default_encoders, is_job, read_job

    if is_job(images):
        options = {
            "--references": references,
            "--class-images": class_images,
            "--prompt": prompt,
            "--identifier": identifier,
        }
        rule, remedy = "is not used for the folder of a job, which has its own", "leave it out"
        if issues := [ValidationIssue(name, str(v), rule, remedy) for name, v in options.items() if v is not None]:
            raise UserError(issues)
        return read_job(images)
    if references is None:
        remedy = "set a folder of real images of the subject"
        raise UserError(ValidationIssue("--references", None, "is required unless --images is a job", remedy))
    own = read_scored_images(images, references, class_images, prompt, identifier)
    return {"subject": own}, default_encoders(references)


def _print_table(report: ScoreReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from dreambooth_api.metrics import METRICS

    table = Table("Score", "Value", "Real images", "Better")
    directions = {True: "higher", False: "lower", None: ""}
    for metric in METRICS:
        bound = report.scores.real_images.get(metric.name)
        value = report.scores.values.get(metric.name)
        if value is not None:
            shown = "" if bound is None else f"{bound:.3f}"
            table.add_row(metric.label, f"{value:.3f}", shown, directions[metric.higher_is_better])
    console = Console()
    console.print(table)
    lines = [f"{report.images} images, {report.references} real images, {report.class_images} class images"]
    for label, encoder in (("DINO", report.dino_encoder), ("CLIP", report.clip_encoder)):
        lines.append(f"encoder {label}: {encoder.name}, {encoder.digest}")
    labels = {metric.name: metric.label for metric in METRICS}
    lines += [f"{labels[name]} is not computed: {reason}" for name, reason in report.not_computed.items()]
    if not report.comparable_with_paper:
        lines.append("These encoders are not those of the paper: the scores are on another scale.")
    for line in lines:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
