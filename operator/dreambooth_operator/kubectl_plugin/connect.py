"""Options that select the cluster and the namespace, and the connection of a command.

The options may stand after `kubectl dreambooth` or after the command, as with kubectl's other plugins; the ones after
the command have precedence. kubectl itself rejects options before the name of a plugin.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from dreambooth_api.fields import DNS_LABEL
from dreambooth_api.status import printable
from dreambooth_operator.kubectl_plugin.explain import explain_api_error, explain_connection_error
from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError
from dreambooth_operator.machinery.kubeconfig import KubeconfigError

T = TypeVar("T")
Command = Callable[..., Any]
_META = f"{__name__}.target"


@dataclass(frozen=True)
class Cluster:
    """A connection, and how it was selected.

    Attributes:
        namespace: of the option, else of the context.
        kubectl: the kubectl command, with the options that select the same cluster.
    """

    api: Api
    namespace: str
    kubectl: tuple[str, ...]


def label(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Validate the name of a job or namespace. An invalid name could be read as another path or selector."""
    if not re.fullmatch(DNS_LABEL, value):
        rule = "is not a Kubernetes name: at most 63 lowercase letters, digits and hyphens"
        raise click.BadParameter(f"{value!r} {rule}; for example my-dog")
    return value


def optional_label(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Validate a name that may be left out."""
    return None if value is None else label(context, parameter, value)


def labels(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Validate several names."""
    return tuple(label(context, parameter, name) for name in value)


def _store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None:
        if parameter.name == "namespace":
            label(context, parameter, value)
        context.meta.setdefault(_META, {})[parameter.name] = value


def connection_options(command: Command) -> Command:
    """`--namespace`, `--context` and `--kubeconfig`, of the group and of each command."""
    for decorate in (
        click.option(
            *("--namespace", "-n"),
            expose_value=False, callback=_store,
            help="Namespace. Defaults to that of the kubeconfig's context.",
        ),
        click.option(
            "--context", expose_value=False, callback=_store, help="Name of the kubeconfig context."
        ),
        click.option(
            "--kubeconfig", type=click.Path(), expose_value=False, callback=_store,
            help="Path of the kubeconfig file. Defaults to the files in KUBECONFIG, else ~/.kube/config.",
        ),
    ):  # fmt: skip
        command = decorate(command)
    return command


def selected_namespace() -> str:
    """The namespace of the option; empty without it."""
    return click.get_current_context().meta.get(_META, {}).get("namespace", "")


def run(body: Callable[[Cluster], Coroutine[Any, Any, T]]) -> T:
    """Run `body` with the connection that the options select.

    Raises:
        click.ClickException: one sentence with the remedy. Exit code 1.
    """
    selected: dict[str, str] = click.get_current_context().meta.get(_META, {})
    context, kubeconfig = selected.get("context"), selected.get("kubeconfig")
    kubectl = ("kubectl", *(f"--{name}={selected[name]}" for name in ("kubeconfig", "context") if name in selected))
    host = ""

    async def connected() -> T:
        nonlocal host
        async with await Api.connect(kubeconfig, context) as api:
            host = api.host
            return await body(Cluster(api, selected.get("namespace") or api.namespace, kubectl))

    try:
        return asyncio.run(connected())
    except click.ClickException as error:
        raise click.ClickException(printable(error.message)) from error
    except KubeconfigError as error:
        raise click.ClickException(printable(str(error))) from error
    except ApiError as error:
        raise click.ClickException(printable(explain_api_error(error))) from error
    except CONNECTION_ERRORS as error:
        raise click.ClickException(printable(explain_connection_error(host, error))) from error
