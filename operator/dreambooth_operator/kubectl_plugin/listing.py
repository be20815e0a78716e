"""Command that lists jobs in the columns of the CRD, which the API server prints, or as objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
import yaml

from dreambooth_api.status import printable
from dreambooth_operator.kubectl_plugin.connect import Cluster, run
from dreambooth_operator.kubectl_plugin.options import connection_options, optional_job_argument
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.resources import Json, part, parts
from dreambooth_operator.resources import JOBS, QUALIFIED_KIND

_AS_TABLE = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
OUTPUTS = ("table", "wide", "json", "yaml", "name")


@click.command("list")
@optional_job_argument
@click.option("--output", "-o", type=click.Choice(OUTPUTS), default="table", show_default=True, help="Output format.")
@click.option("--all-namespaces", "-A", is_flag=True, help="List the jobs of all namespaces.")
@connection_options
def list_jobs(name: str | None, output: str, all_namespaces: bool) -> None:
    """List jobs, or show one. Alias: get."""
    if name and all_namespaces:
        raise click.UsageError("a job cannot be selected by name across all namespaces; write -n NAMESPACE")
    tabular = output in ("table", "wide")

    async def fetch(cluster: Cluster) -> tuple[Json, str]:
        namespace = "" if all_namespaces else cluster.namespace
        return await _request(cluster.api, namespace, name or "", tabular), namespace

    found, namespace = run(fetch)
    if not tabular:
        click.echo(printable(format_objects(found, output)), nl=False)
    elif rows := parts(found, "rows"):
        click.echo(format_table(found["columnDefinitions"], rows, wide=output == "wide", namespaces=all_namespaces))
    else:
        click.echo(f"No jobs found{namespace and f' in {namespace} namespace'}.", err=True)


async def _request(api: Api, namespace: str, name: str, tabular: bool) -> Json:
    return await api.request("GET", JOBS.path(namespace, name), headers=_AS_TABLE if tabular else {})


def format_objects(found: Json, output: str) -> str:
    """An object, or a list of objects, as JSON, as YAML or as names. Pure."""
    if output in ("json", "yaml"):
        items = {"items": [without_managed_fields(obj) for obj in found["items"]]} if "items" in found else {}
        shown = {**without_managed_fields(found), **items}
        return json.dumps(shown, indent=4) + "\n" if output == "json" else yaml.safe_dump(shown)
    objects = found.get("items", [found])
    return "".join(f"{QUALIFIED_KIND}/{part(obj, 'metadata').get('name')}\n" for obj in objects)


def without_managed_fields(obj: Json) -> Json:
    """An object as kubectl prints it: without `metadata.managedFields`. Pure."""
    if "managedFields" not in part(obj, "metadata"):
        return obj
    return {**obj, "metadata": {name: value for name, value in obj["metadata"].items() if name != "managedFields"}}


def format_table(columns: Sequence[Json], rows: Sequence[Json], *, wide: bool, namespaces: bool) -> str:
    """A Table of the API server, in columns. Without `wide`, columns with a priority are left out. Pure."""
    shown = [index for index, column in enumerate(columns) if wide or not column.get("priority")]
    lines = [[str(columns[index]["name"]).upper() for index in shown]]
    lines += [[_cell(row["cells"][index]) for index in shown] for row in rows]
    if namespaces:
        names = ["NAMESPACE", *(_cell(part(row, "object", "metadata").get("namespace")) for row in rows)]
        lines = [[name, *line] for name, line in zip(names, lines, strict=True)]
    widths = [max(map(len, column)) + 3 for column in zip(*lines, strict=True)]
    return "\n".join("".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(printable(str(value)).split())
