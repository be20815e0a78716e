"""`dreambooth hypernetwork`: trains a network that predicts adapters from images."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from dreambooth_trainer.cli.options import check_new_folder
from dreambooth_trainer.hypernetwork import DEFAULT_STEPS, MAX_SEED


@click.group()
def hypernetwork() -> None:
    """Train a network that predicts the adapter of a subject from its images."""


@hypernetwork.command()
@click.argument("jobs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the network.")
@click.option("--steps", default=DEFAULT_STEPS, show_default=True, type=click.IntRange(1), help="Optimizer steps.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, MAX_SEED), help="Seed of weights, order.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for intermediate state. Defaults to <out>.work.")
def train(jobs: tuple[Path, ...], out: Path, steps: int, seed: int, work: Path | None) -> None:
    """Train on finished LoRA jobs, and measure the loss on a tenth of them. If interrupted, the same command continues.

    JOBS are folders of jobs that `dreambooth run` has written, or folders with such folders in them. All jobs have the
    same base model, rank, alpha and identifier.
    """
    check_new_folder(out)
    from dreambooth_trainer.hypernetwork.jobs import config_of, denoising_of, examples_of, layers_of, read_jobs
    from dreambooth_trainer.hypernetwork.train import summary, train_network

    found = read_jobs(jobs)
    first, layers, examples = found[0], layers_of(found), examples_of(found)
    config = config_of(first.plan, first.base_digest, layers, examples[0].features.shape[1])
    work = work or out.with_name(out.name + ".work")
    measured = train_network(
        examples, denoising_of(found, layers), config, out, steps=steps, seed=seed, work=work, console=Console()
    )
    for line in (*summary(measured, len(found)), f"published {out}"):
        click.echo(line)
