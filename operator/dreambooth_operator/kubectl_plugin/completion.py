"""Shell completion. kubectl runs the program `kubectl_complete-dreambooth` with the words of the command line.

It expects the output of Cobra: one candidate per line, with a tab before its description, and a directive at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from click.shell_completion import ShellComplete

from dreambooth_api.status import printable
from dreambooth_operator.kubectl_plugin.cli import cli

# github.com/spf13/cobra, completions.go: type ShellCompDirective.
_COMPLETE_FILES, _NO_FILES, _ONLY_FOLDERS = 0, 4, 16


def completions(words: Sequence[str]) -> list[str]:
    """Lines for the words after `kubectl dreambooth`, of which the last one is incomplete."""
    *complete, incomplete = words or [""]
    items = ShellComplete(cli, {}, "kubectl dreambooth", "").get_completions(complete, incomplete)
    kinds = {item.type for item in items}
    lines = [
        printable(f"{item.value}\t{' '.join(item.help.split())}" if item.help else str(item.value))
        for item in items
        if item.type == "plain"
    ]
    directive = _COMPLETE_FILES if "file" in kinds else _ONLY_FOLDERS if "dir" in kinds else _NO_FILES
    return [*lines, f":{directive}"]


def main() -> None:
    """Print the candidates."""
    for line in completions(sys.argv[1:]):
        click.echo(line)
