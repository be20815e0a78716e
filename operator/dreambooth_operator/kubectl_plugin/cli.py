"""Command line of the plugin. It is installed as `kubectl-dreambooth`, so that kubectl runs it as a plugin."""

from __future__ import annotations

import click

from dreambooth_operator.kubectl_plugin.connect import connection_options
from dreambooth_operator.kubectl_plugin.control import resume, suspend
from dreambooth_operator.kubectl_plugin.show import events, images, logs, status

COMMANDS = (events, images, logs, resume, status, suspend)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dreambooth-operator", prog_name="kubectl-dreambooth")
@connection_options
def cli() -> None:
    """Inspect and control DreamBoothJobs."""


for _command in COMMANDS:
    cli.add_command(_command)
