"""`dreambooth completion`: prints the script that completes commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from dreambooth_api.errors import UserError, ValidationIssue


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands, options and files: source <(dreambooth completion bash)."""
    from dreambooth_trainer.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise UserError(ValidationIssue("SHELL", shell, "is not supported by click", "upgrade the package click"))
    # click derives the variable from the name of the program. The script calls the program with it at each completion.
    click.echo(kind(cli, {}, "dreambooth", "_DREAMBOOTH_COMPLETE").source())
