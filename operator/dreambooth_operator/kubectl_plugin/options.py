"""Arguments and options that several commands have.

The options of the connection may stand after `kubectl dreambooth` or after the command, as with other plugins; the ones
after the command have precedence. kubectl itself rejects options before the name of a plugin.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from dreambooth_api.fields import DNS_LABEL
from dreambooth_operator.kubectl_plugin.candidates import complete_contexts, complete_jobs, complete_namespaces
from dreambooth_operator.kubectl_plugin.connect import selection

Command = Callable[..., Any]


def _label(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Validate the name of a job or namespace. An invalid name could be read as another path or selector."""
    if not re.fullmatch(DNS_LABEL, value):
        rule = "is not a Kubernetes name: at most 63 lowercase letters, digits and hyphens"
        raise click.BadParameter(f"{value!r} {rule}; for example my-dog")
    return value


def _optional_label(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else _label(context, parameter, value)


def _labels(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_label(context, parameter, name) for name in value)


def _select(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and parameter.name:
        selection(context)[parameter.name] = (
            _label(context, parameter, value) if parameter.name == "namespace" else value
        )


new_job_argument = click.argument("name", callback=_label)
job_argument = click.argument("name", callback=_label, shell_complete=complete_jobs)
optional_job_argument = click.argument("name", required=False, callback=_optional_label, shell_complete=complete_jobs)
jobs_argument = click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", callback=_labels, shell_complete=complete_jobs
)


def connection_options(command: Command) -> Command:
    """`--namespace`, `--context` and `--kubeconfig`, of the group and of each command."""
    for decorate in (
        click.option(
            *("--namespace", "-n"),
            expose_value=False,
            callback=_select,
            shell_complete=complete_namespaces,
            help="Namespace. Defaults to that of the kubeconfig's context.",
        ),
        click.option(
            "--context",
            expose_value=False,
            callback=_select,
            shell_complete=complete_contexts,
            help="Name of the kubeconfig context.",
        ),
        click.option(
            "--kubeconfig",
            type=click.Path(),
            expose_value=False,
            callback=_select,
            help="Path of the kubeconfig file. Defaults to the files in KUBECONFIG, else ~/.kube/config.",
        ),
    ):
        command = decorate(command)
    return command
