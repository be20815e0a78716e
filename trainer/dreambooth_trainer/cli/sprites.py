"""`dreambooth sprites`: the embedded base model and the drawn subjects it is tried on."""

from __future__ import annotations

from pathlib import Path

import click

from dreambooth_api.errors import UserError, ValidationIssue


@click.group()
def sprites() -> None:
    """The embedded base model: train it anew, check it, write its subjects as images."""


@sprites.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the weights.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of data, weights and order.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for what can be resumed. Default: <out>.work.")
def train(out: Path, seed: int, work: Path | None) -> None:
    """Train the base model and its evaluator from nothing; interrupted, the same command goes on."""
    from dreambooth_trainer.sprites.recipe import train_sprites

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            ValidationIssue("--out", str(out), "is there already, and would be replaced", "write another folder")
        )
    train_sprites(out, seed=seed, work=work)


@sprites.command()
@click.option("--model", type=click.Path(path_type=Path), help="Folder of the weights. Default: the shipped ones.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Write a contact sheet, PNG.")
def check(model: Path | None, sheet: Path | None) -> None:
    """Measure the base model with its independent evaluator."""
    from dreambooth_trainer.sprites import WEIGHTS
    from dreambooth_trainer.sprites.check import check_sprites

    check_sprites(model or WEIGHTS, sheet)


@sprites.command()
@click.argument("folder", type=click.Path(path_type=Path))
def examples(folder: Path) -> None:
    """Write the drawn subjects as PNG files, a folder each: what builtin:sprites/<name> stands for."""
    from dreambooth_trainer.sprites.examples import EXAMPLES, write_examples

    if there := [name for name in EXAMPLES if (folder / name).exists()]:
        rule = f"holds {there[0]} already, which would be replaced"
        raise UserError(ValidationIssue("FOLDER", str(folder), rule, "write another folder"))
    write_examples(folder)
    click.echo(f"{len(list(folder.iterdir()))} subjects in {folder}")
