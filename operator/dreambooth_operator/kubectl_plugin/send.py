"""Creation of a job and of the ConfigMap with its photos, and what becomes of the ConfigMap if that fails."""

from __future__ import annotations

from collections.abc import Sequence

import click

from dreambooth_api.status import printable
from dreambooth_operator.kubectl_plugin.connect import Cluster
from dreambooth_operator.kubectl_plugin.objects import owned_by, photos_name
from dreambooth_operator.kubectl_plugin.polling import is_transient
from dreambooth_operator.machinery.client import CONNECTION_ERRORS, ApiError
from dreambooth_operator.machinery.resources import CONFIG_MAPS, Json, key_of
from dreambooth_operator.resources import JOBS


async def send(cluster: Cluster, objects: Sequence[Json]) -> list[Json]:
    """Create the photos, then the job, then the reference by which the photos are deleted with the job.

    Returns:
        the objects as the API server stores them.

    Raises:
        click.ClickException: the ConfigMap exists already.
        ApiError or one of CONNECTION_ERRORS: the job was not created. The ConfigMap is deleted then, unless the error
            leaves open whether the job exists.
    """
    *photos, job = ({**o, "metadata": {**o["metadata"], "namespace": cluster.namespace}} for o in objects)
    try:
        photos = [await cluster.api.create(CONFIG_MAPS, obj) for obj in photos]
    except ApiError as error:
        if not error.is_already_exists:
            raise
        name = photos_name(job["metadata"]["name"])
        remedy = f"if no job uses it, run {_delete_command(cluster, name)}; otherwise use another name"
        raise click.ClickException(f"the ConfigMap {name} already exists; {remedy}") from error
    try:
        # Without validation, the API server drops fields that its CRD does not have.
        path, query = JOBS.path(cluster.namespace), {"fieldValidation": "Strict"}
        created = await cluster.api.request("POST", path, query=query, body=job)
    except BaseException as error:
        for obj in photos:
            await _clean_up(cluster, obj, job, error)
        raise
    try:
        return [*[await cluster.api.merge(CONFIG_MAPS, key_of(obj), owned_by(created)) for obj in photos], created]
    except (ApiError, *CONNECTION_ERRORS) as error:
        _warn(f"the ConfigMap is not deleted with the job ({_reason(error)}); delete it yourself")
    return [*photos, created]


async def _clean_up(cluster: Cluster, photos: Json, job: Json, error: BaseException) -> None:
    """Delete the ConfigMap of a job that was not created. If the job may exist, keep it. Never raises ApiError."""
    key, name = key_of(photos), job["metadata"]["name"]
    if is_transient(error) or not isinstance(error, Exception):  # without an answer, or interrupted
        see = f"to see whether the job {name} exists, run kubectl dreambooth status {name} -n {cluster.namespace}"
        _warn(f"the ConfigMap {key.name} was kept; {see}; if not, run {_delete_command(cluster, key.name)}")
        return
    try:
        await cluster.api.delete(CONFIG_MAPS, key, uid=photos["metadata"]["uid"])
    except (ApiError, *CONNECTION_ERRORS) as failure:
        _warn(f"the ConfigMap {key.name} remains ({_reason(failure)}); run {_delete_command(cluster, key.name)}")


def _delete_command(cluster: Cluster, config_map: str) -> str:
    return f"kubectl delete configmap {config_map} -n {cluster.namespace}"


def _reason(error: Exception) -> str:
    return (error.message if isinstance(error, ApiError) else str(error)) or type(error).__name__


def _warn(sentence: str) -> None:
    click.echo(printable(f"Warning: {sentence}"), err=True)
