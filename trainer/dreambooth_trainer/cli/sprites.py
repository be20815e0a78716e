"""`dreambooth sprites`: trains and checks the embedded base model, and exports its subjects."""

from __future__ import annotations

from pathlib import Path

import click

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.cli.options import check_new_folder
from dreambooth_trainer.hypernetwork import DEFAULT_STEPS, MAX_SEED


@click.group()
def sprites() -> None:
    """Train or check the embedded base model, or export its subjects as images."""


@sprites.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the weights.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of data, weights and order.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for intermediate state. Defaults to <out>.work.")
def train(out: Path, seed: int, work: Path | None) -> None:
    """Train the base model, its evaluator and its IP-Adapter. If interrupted, the same command continues."""
    from dreambooth_trainer.sprites.recipe import train_sprites

    check_new_folder(out)
    train_sprites(out, seed=seed, work=work)


@sprites.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the weights.")
@click.option(
    "--model", type=click.Path(path_type=Path), help="Folder of the base model. Defaults to the embedded one."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of data, weights and order.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for intermediate state. Defaults to <out>.work.")
def adapter(out: Path, model: Path | None, seed: int, work: Path | None) -> None:
    """Train only the IP-Adapter of a base model. If interrupted, the same command continues."""
    from dreambooth_trainer.sprites import WEIGHTS
    from dreambooth_trainer.sprites.recipe import train_sprites_adapter

    check_new_folder(out)
    train_sprites_adapter(out, model or WEIGHTS, seed=seed, work=work)


@sprites.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the network.")
@click.option(
    "--subjects", default=2000, show_default=True, type=click.IntRange(2), help="Number of generated subjects."
)
@click.option("--steps", default=DEFAULT_STEPS, show_default=True, type=click.IntRange(1), help="Optimizer steps.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, MAX_SEED),
    help="Seed of subjects, weights and order.",
)
@click.option("--work", type=click.Path(path_type=Path), help="Folder for intermediate state. Defaults to <out>.work.")
def hypernetwork(out: Path, subjects: int, steps: int, seed: int, work: Path | None) -> None:
    """Train a HyperNetwork on generated subjects. If interrupted, the same command continues."""
    from rich.console import Console

    from dreambooth_trainer.hypernetwork.sprite_subjects import train_sprites_network
    from dreambooth_trainer.hypernetwork.train import summary

    check_new_folder(out)
    measured = train_sprites_network(out, subjects=subjects, steps=steps, seed=seed, work=work, console=Console())
    for line in (*summary(measured, subjects), f"published {out}"):
        click.echo(line)


@sprites.command()
@click.option("--model", type=click.Path(path_type=Path), help="Folder of the weights. Defaults to the embedded ones.")
@click.option("--sheet", type=click.Path(path_type=Path), help="PNG file for a contact sheet.")
def check(model: Path | None, sheet: Path | None) -> None:
    """Measure the base model with its separately trained evaluator."""
    from dreambooth_trainer.sprites import WEIGHTS
    from dreambooth_trainer.sprites.check import check_sprites

    check_sprites(model or WEIGHTS, sheet)


@sprites.command()
@click.argument("folder", type=click.Path(path_type=Path))
def examples(folder: Path) -> None:
    """Write the built-in subjects as PNG files, one folder per subject."""
    from dreambooth_trainer.sprites.examples import EXAMPLES, write_examples

    if existing := [name for name in EXAMPLES if (folder / name).exists()]:
        rule = f"contains {existing[0]}, which would be overwritten"
        raise UserError(ValidationIssue("FOLDER", str(folder), rule, "use another folder"))
    write_examples(folder)
    click.echo(f"wrote {len(EXAMPLES)} subjects to {folder}")
