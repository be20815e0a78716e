"""The connection of a command, as its options select it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from dreambooth_api.status import printable
from dreambooth_operator.kubectl_plugin.explain import explain_api_error, explain_connection_error
from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError
from dreambooth_operator.machinery.kubeconfig import KubeconfigError

T = TypeVar("T")
_SELECTION = f"{__name__}.selection"


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


def selection(context: click.Context) -> dict[str, str]:
    """The values of the options namespace, context and kubeconfig. A group shares them with its commands."""
    return context.meta.setdefault(_SELECTION, {})


def run(body: Callable[[Cluster], Coroutine[Any, Any, T]]) -> T:
    """Run `body` with the connection that the options of the current command select, as `run_selected`."""
    return run_selected(selection(click.get_current_context()), body)


def run_selected(selected: Mapping[str, str], body: Callable[[Cluster], Coroutine[Any, Any, T]]) -> T:
    """Run `body` with a connection.

    Args:
        selected: values of the options namespace, context and kubeconfig that are given.

    Raises:
        click.ClickException: one sentence with the remedy. Its cause is the error. Exit code 1.
    """
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
    except FileNotFoundError as error:
        raise missing_program(error) from error


def missing_program(error: FileNotFoundError) -> Exception:
    """The sentence for a program that is not installed; the error itself if it is about another file."""
    if error.filename == "kubectl":
        return click.ClickException("kubectl was not found; install it, and add its folder to PATH")
    return error
