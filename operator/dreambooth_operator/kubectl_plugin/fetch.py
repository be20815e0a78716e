"""Copying of a job's images and report from its volume, by `kubectl exec` into a pod that mounts the volume."""

from __future__ import annotations

import asyncio
import io
import subprocess
import tarfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from dreambooth_api import environment, layout
from dreambooth_api.status import printable
from dreambooth_operator.controller.children.pods import container_security_context, pod_security_context
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.resources import PODS, Json, Key, part, parts
from dreambooth_operator.resources import JOB_LABEL, JOBS

_START_SECONDS = 120
_LIFETIME_SECONDS = 300


def fetch_pod(job: Json) -> Json:
    """A pod that mounts the job's volume read-only, with the security context of the job's pods. Pure."""
    metadata, started = job["metadata"], job["status"]["startedWith"]
    owner = {"apiVersion": JOBS.api_version, "kind": JOBS.kind, "name": metadata["name"], "uid": metadata["uid"]}
    resources = {"cpu": "50m", "memory": "64Mi"}
    container = {
        "name": "fetch",
        "image": started["image"],
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", str(_LIFETIME_SECONDS)],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": container_security_context(),
        "volumeMounts": [{"name": "output", "mountPath": environment.OUTPUT_PATH, "readOnly": True}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{metadata['name'][:50]}-fetch-",
            "namespace": metadata["namespace"],
            "labels": {JOB_LABEL: metadata["name"]},
            "ownerReferences": [owner],
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": _LIFETIME_SECONDS,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": pod_security_context(),
            "containers": [container],
            "volumes": [{"name": "output", "persistentVolumeClaim": {"claimName": started["claimName"]}}],
        },
    }


def folder_in_pod(job: Json, name: str) -> str:
    """The path of a folder of the job in that pod. Pure."""
    return f"{environment.OUTPUT_PATH}/{job['status']['startedWith']['folder']}/{name}"


def pack_command(job: Json) -> list[str]:
    """The command in that pod that packs the report and the images. Pure.

    The report in the folder of the job shows the photos, that of the model does not.
    """
    return ["tar", "-cf", "-", "-C", folder_in_pod(job, ""), layout.REPORT, "-C", layout.MODEL, *layout.IMAGES]


async def fetch(api: Api, key: Key, out: Path, kubectl: list[str]) -> list[Path]:
    """Copy the images and the report of a published job to `out`, and return the written files.

    Args:
        kubectl: the kubectl command, with the options that select the same cluster.

    Raises:
        click.ClickException: the job has not published, the pod did not start, or the files could not be written.
        ApiError: the API server returned an error.
    """
    job = await api.get(JOBS, key)
    status = part(job, "status")
    phase = status.get("phase", "Pending")
    if not part(status, "output") and phase != "Succeeded":  # the last report of a succeeded job may be missing
        raise click.ClickException(f"job {key.name} has not published a model yet; its phase is {phase}")
    async with running(api, fetch_pod(job)) as pod:
        command = [*kubectl, "exec", "-n", key.namespace, pod, "--", *pack_command(job)]
        packed = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
    if packed.returncode:
        raise click.ClickException(packed.stderr.decode(errors="replace").strip())
    unpack(packed.stdout, out)
    return [out / name for name in layout.VIEWED]


def unpack(packed: bytes, out: Path) -> None:
    """Write the files of a tar archive to the folder `out`.

    Raises:
        click.ClickException: the archive is damaged, or the files cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as archive:
            archive.extractall(out, filter="data")  # the filter rejects paths outside of the folder
    except tarfile.TarError as error:
        rule = f"the files from the cluster are incomplete or damaged ({error}); run the command again"
        raise click.ClickException(printable(rule)) from error
    except OSError as error:
        rule = f"{error.filename or out} cannot be written: {error.strerror or error}; select another folder with --out"
        raise click.ClickException(printable(rule)) from error


@asynccontextmanager
async def running(api: Api, pod: Json) -> AsyncGenerator[str]:
    """Create a pod, yield its name once it runs, and delete it at the end."""
    namespace = pod["metadata"]["namespace"]
    created = await api.create(PODS, pod)
    name = created["metadata"]["name"]
    try:
        deadline = time.monotonic() + _START_SECONDS
        while part(created, "status").get("phase") != "Running":
            if time.monotonic() > deadline:
                raise click.ClickException(
                    f"pod {name} did not start within {_START_SECONDS} s: {_reason_not_running(created)}"
                )
            await asyncio.sleep(0.3)
            created = await api.get(PODS, Key(namespace, name))
        yield name
    finally:
        await api.delete(PODS, Key(namespace, name))


def _reason_not_running(pod: Json) -> str:
    messages = [c.get("message", "") for c in parts(part(pod, "status"), "conditions") if c["status"] == "False"]
    return "; ".join(filter(None, messages)) or "to see why, run kubectl describe pod"
