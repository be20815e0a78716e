"""Command that creates a job from a folder of photos."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import yaml
from click.shell_completion import CompletionItem

from dreambooth_api.errors import UserError
from dreambooth_api.status import Phase, printable
from dreambooth_api.uris import BUILTIN, OBJECT_STORES, is_url
from dreambooth_operator.kubectl_plugin.candidates import complete_runtimes
from dreambooth_operator.kubectl_plugin.connect import run, selection
from dreambooth_operator.kubectl_plugin.listing import without_managed_fields
from dreambooth_operator.kubectl_plugin.objects import (
    LOCAL_RUNTIME,
    captioned_by_key,
    explain_too_large,
    job_object,
    photos_name,
    photos_object,
)
from dreambooth_operator.kubectl_plugin.options import connection_options, new_job_argument
from dreambooth_operator.kubectl_plugin.photos import Packed, TooLargeError, pack
from dreambooth_operator.kubectl_plugin.send import send
from dreambooth_operator.kubectl_plugin.show import watch_job
from dreambooth_operator.machinery.resources import Json, Key, part
from dreambooth_operator.resources import QUALIFIED_KIND


def _complete_folders(*_: object) -> list[CompletionItem]:
    return [CompletionItem("", type="dir")]


@click.command()
@new_job_argument
@click.option(
    "--images",
    required=True,
    metavar="FOLDER",
    shell_complete=_complete_folders,
    help=f"Folder of photos, or the URI of one: {OBJECT_STORES}.",
)
@click.option("--class", "class_", required=True, metavar="NOUN", help="Class noun of the subject, for example dog.")
@click.option(
    "--runtime",
    metavar="NAME",
    shell_complete=complete_runtimes,
    help=f"DreamBoothRuntime, or {LOCAL_RUNTIME}/NAME for a LocalDreamBoothRuntime. Defaults to the DreamBoothRuntime "
    "named default.",
)
@click.option("--set", "sets", metavar="KEY=VALUE", multiple=True, help="Field of spec: --set training.steps=200.")
@click.option(
    "--follow",
    is_flag=True,
    help="Show the job's status until it finishes or is rejected. Exit code 1 unless it succeeds.",
)
@click.option(
    "--dry-run",
    type=click.Choice(["none", "client"]),
    default="none",
    show_default=True,
    help="With client, nothing is sent to the cluster.",
)
@click.option("--output", "-o", type=click.Choice(["yaml", "json"]), help="Print the objects.")
@connection_options
def create(
    name: str,
    images: str,
    class_: str,
    runtime: str | None,
    sets: tuple[str, ...],
    follow: bool,
    dry_run: str,
    output: str | None,
) -> None:
    """Create a job from a folder of photos.

    The photos are turned upright, shrunk, and stored without their metadata in the ConfigMap NAME-photos, which is
    deleted with the job. It holds 1 MiB; if they do not fit, the command explains how to use a volume or a bucket.
    """
    remote = is_url(images) or images.startswith(BUILTIN)
    source: Json = {"uri": images} if remote else {"configMap": {"name": photos_name(name)}}
    key = Key(selection(click.get_current_context()).get("namespace", ""), name)
    try:
        job = job_object(key, source, class_, runtime, sets)
        resolution, prompt = part(job["spec"], "training").get("resolution"), part(job["spec"], "subject")
        photos = None if remote else pack(Path(images), resolution, folder_captions="instancePrompt" not in prompt)
    except UserError as error:
        raise click.ClickException(printable(str(error))) from error
    except TooLargeError as error:
        raise click.ClickException(explain_too_large(error, name)) from error
    except ImportError as error:
        needs = "kubectl dreambooth create needs Pillow; run pip install 'dreambooth-operator[plugin]'"
        raise click.ClickException(f"{needs}, or name a folder in a bucket ({OBJECT_STORES}) with --images") from error
    objects = [photos_object(key, photos.files), captioned_by_key(job, photos.keys)] if photos else [job]
    if dry_run == "none":
        objects = [without_managed_fields(obj) for obj in run(lambda cluster: send(cluster, objects))]
    _report(name, photos, objects, output, " (dry run)" if dry_run == "client" else "")
    if follow and dry_run == "none":
        job = run(lambda cluster: watch_job(cluster, objects[-1], until_rejected=True))
        if part(job, "status").get("phase") != Phase.SUCCEEDED:
            sys.exit(1)


def _report(name: str, photos: Packed | None, objects: Sequence[Json], output: str | None, suffix: str) -> None:
    """Print what was created. The objects go to standard output, for kubectl; all else to standard error then."""
    if photos:
        count = f"{photos.count} photo{'s' * (photos.count != 1)}"
        size = f"{count}, {photos.total:,} bytes, shorter side at most {photos.side} pixels"
        click.echo(f"configmap/{photos_name(name)} created{suffix}: {size}", err=bool(output))
    if output == "yaml":
        click.echo(printable(yaml.safe_dump_all(objects, sort_keys=False)), nl=False)
    elif output == "json":
        listed = {"apiVersion": "v1", "kind": "List", "items": objects}
        click.echo(printable(json.dumps(listed, indent=4)))
    else:
        click.echo(f"{QUALIFIED_KIND}/{name} created{suffix}")
