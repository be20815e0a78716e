"""Jobs on a Kubernetes cluster, through the functions of `kubectl dreambooth`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import click

from dreambooth.backend import Object
from dreambooth.errors import ClientError, JobExistsError, JobNotFoundError, UnreachableError, missing_package
from dreambooth_api import layout
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.uris import BUILTIN, is_url
from dreambooth_operator.kubectl_plugin.connect import Cluster, run_selected
from dreambooth_operator.kubectl_plugin.control import delete_job, set_suspend
from dreambooth_operator.kubectl_plugin.fetch import fetch
from dreambooth_operator.kubectl_plugin.logs import find_log, output_lines, started
from dreambooth_operator.kubectl_plugin.objects import captioned_by_key, explain_too_large, photos_name, photos_object
from dreambooth_operator.kubectl_plugin.photos import TooLargeError, pack
from dreambooth_operator.kubectl_plugin.polling import is_transient
from dreambooth_operator.kubectl_plugin.send import send
from dreambooth_operator.kubectl_plugin.show import list_events
from dreambooth_operator.machinery.client import ApiError
from dreambooth_operator.machinery.kubeconfig import KubeconfigError, read_kubeconfig
from dreambooth_operator.machinery.resources import Json, Key, part, parts
from dreambooth_operator.resources import JOBS

T = TypeVar("T")


class KubernetesBackend:
    """Jobs in one namespace, as `Backend`.

    Args:
        selected: namespace, context and kubeconfig, if given.
    """

    def __init__(self, selected: Mapping[str, str]) -> None:
        self._selected = _pinned(selected)
        self._fetched: dict[str, Path] = {}

    def create(self, job: DreamBoothJob) -> None:
        objects = job_objects(job)
        try:
            self._call(lambda cluster: send(cluster, objects))
        except ClientError as error:
            if (cause := _api_error(error)) and cause.is_already_exists and self._exists(job.metadata.name):
                raise JobExistsError(f"{error}; use get({job.metadata.name!r}), or another name") from error
            raise

    def _exists(self, name: str) -> bool:
        try:
            self.read(name)
        except JobNotFoundError:  # only a ConfigMap with photos has the name
            return False
        return True

    def read(self, name: str) -> Object:
        return self._call(lambda cluster: cluster.api.get(JOBS, Key(cluster.namespace, name)))

    def names(self) -> list[str]:
        found = self._call(lambda cluster: cluster.api.request("GET", JOBS.path(cluster.namespace)))
        return sorted(part(job, "metadata").get("name", "") for job in parts(found, "items"))

    def events(self, name: str) -> list[Object]:
        return list(self._call(lambda cluster: list_events(cluster, name)))

    def logs(self, name: str, *, follow: bool, tail: int) -> Iterator[str]:
        found = self._call(lambda cluster: find_log(cluster, name, tail, follow=follow))
        return iter(found.splitlines()) if isinstance(found, str) else _stream(found, follow=follow)

    def images(self, name: str, out: Path | None) -> list[Path]:
        folder = out or Path(name)
        paths = self._call(
            lambda cluster: fetch(cluster.api, Key(cluster.namespace, name), folder, list(cluster.kubectl))
        )
        self._fetched[name] = folder / layout.COMPARISON
        return paths

    def model(self, name: str) -> str:
        status = part(self.read(name), "status")
        uri = part(status, "output").get("uri")
        if not uri:
            phase = status.get("phase", "Pending")
            raise ClientError(f"job {name} has not published a model; its phase is {phase}")
        return str(uri)

    def grid(self, name: str) -> Path | None:
        return self._fetched.get(name)

    def suspend(self, name: str) -> None:
        self._call(lambda cluster: set_suspend(cluster, name, to=True))

    def resume(self, name: str) -> None:
        self._call(lambda cluster: set_suspend(cluster, name, to=False))

    def delete(self, name: str) -> None:
        self._call(lambda cluster: delete_job(cluster, name))

    def _call(self, body: Callable[[Cluster], Coroutine[Any, Any, T]]) -> T:
        """Make requests, in another thread: that of a notebook has an event loop already."""
        begun: list[Callable[[], object]] = []

        async def cancellable(cluster: Cluster) -> T:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None
            begun.append(lambda: loop.call_soon_threadsafe(task.cancel))
            return await body(cluster)

        with _converted_errors(), ThreadPoolExecutor(1) as thread:
            future = thread.submit(run_selected, self._selected, cancellable)
            try:
                return future.result()
            except KeyboardInterrupt:
                # Python waits for the thread, which cleans up.
                with contextlib.suppress(RuntimeError):  # it has ended meanwhile
                    for cancel in begun:
                        cancel()
                raise


def _pinned(selected: Mapping[str, str]) -> Mapping[str, str]:
    """A selection with the context and the namespace that apply now.

    Otherwise, `kubectl config use-context` in a terminal would direct a client to a job of that name somewhere else.
    """
    try:
        found = read_kubeconfig(selected.get("kubeconfig"), selected.get("context"))
    except KubeconfigError:  # requests report it, or use the account of this pod
        return selected
    return {"namespace": found.namespace, **selected, "context": found.context}


@contextlib.contextmanager
def _converted_errors() -> Generator[None]:
    """Convert errors of the plugin, which are for its command line, to those of the client."""
    try:
        yield
    except click.ClickException as error:
        cause, kind = _api_error(error), ClientError
        if cause is not None and cause.is_not_found and f'{JOBS.plural}.{JOBS.group} "' in cause.message:
            kind = JobNotFoundError
        elif error.__cause__ is not None and is_transient(error.__cause__):
            kind = UnreachableError
        raise kind(error.message) from error


def _stream(command: list[str], *, follow: bool) -> Iterator[str]:
    """The lines that a command prints. While it follows, its end is that of the pod, unless it never began."""
    begun = False
    with _converted_errors(), started(command) as process:
        try:
            for line in output_lines(process):
                begun = True
                yield line.rstrip("\n")
            if process.wait() and not (follow and begun):
                raise ClientError(f"kubectl exited with code {process.returncode}; its message is above")
        finally:
            process.terminate()


def _api_error(error: BaseException) -> ApiError | None:
    """The error response among the causes of an error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ApiError):
        cause = cause.__cause__
    return cause


def job_objects(job: DreamBoothJob) -> list[Json]:
    """The job as an object, after a ConfigMap with its photos if they are in a local folder.

    Raises:
        UserError: photos that cannot be used.
        ClientError: the photos do not fit into a ConfigMap, or a package is missing.
    """
    key = Key("", job.metadata.name)
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    obj: Json = {"apiVersion": JOBS.api_version, "kind": JOBS.kind, "metadata": {"name": key.name}, "spec": spec}
    subject = part(spec, "subject")
    uri = part(subject, "images").get("uri", "")
    if not uri or is_url(uri) or uri.startswith(BUILTIN):
        return [obj]
    resolution = part(spec, "training").get("resolution")
    try:
        photos = pack(Path(uri), resolution, folder_captions="instancePrompt" not in subject)
    except TooLargeError as error:
        raise ClientError(explain_too_large(error, key.name)) from error
    except ModuleNotFoundError as error:
        raise missing_package("a folder of photos", "plugin", error) from error
    subject["images"] = {"configMap": {"name": photos_name(key.name)}}
    return [photos_object(key, photos.files), captioned_by_key(obj, photos.keys)]
