"""Command line of the plugin. It is installed as `kubectl-dreambooth`, so that kubectl runs it as a plugin."""

from __future__ import annotations

import click

from dreambooth_operator.kubectl_plugin.control import delete, resume, suspend
from dreambooth_operator.kubectl_plugin.create import create
from dreambooth_operator.kubectl_plugin.dashboard import dashboard
from dreambooth_operator.kubectl_plugin.listing import list_jobs
from dreambooth_operator.kubectl_plugin.options import connection_options
from dreambooth_operator.kubectl_plugin.show import events, images, logs, status
from dreambooth_operator.kubectl_plugin.version import print_versions
from dreambooth_operator.kubectl_plugin.wait import wait

COMMANDS = (create, dashboard, delete, events, images, list_jobs, logs, resume, status, suspend, wait)
ALIASES = {"get": "list"}


class _Group(click.Group):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, ALIASES.get(cmd_name, cmd_name))


@click.group(cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, help="Print the versions of the plugin and of the operator, and exit.")
@connection_options
@click.pass_context
def cli(context: click.Context, version: bool) -> None:
    """Create, inspect and control DreamBoothJobs."""
    if version:
        print_versions()
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


for _command in COMMANDS:
    cli.add_command(_command)
