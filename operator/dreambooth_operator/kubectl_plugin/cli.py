"""Command line of the plugin. It is installed as `kubectl-dreambooth`, so that kubectl runs it as a plugin."""

from __future__ import annotations

import click

from dreambooth_operator.kubectl_plugin.connect import connection_options
from dreambooth_operator.kubectl_plugin.control import delete, resume, suspend
from dreambooth_operator.kubectl_plugin.create import create
from dreambooth_operator.kubectl_plugin.listing import list_jobs
from dreambooth_operator.kubectl_plugin.show import events, images, logs, status
from dreambooth_operator.kubectl_plugin.wait import wait

COMMANDS = (create, delete, events, images, list_jobs, logs, resume, status, suspend, wait)
ALIASES = {"get": "list"}


class _Group(click.Group):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, ALIASES.get(cmd_name, cmd_name))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dreambooth-operator", prog_name="kubectl-dreambooth")
@connection_options
def cli() -> None:
    """Inspect and control DreamBoothJobs."""


for _command in COMMANDS:
    cli.add_command(_command)
