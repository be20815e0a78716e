"""The client: creates jobs and finds them again."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dreambooth.backend import Backend
from dreambooth.errors import ClientError, missing_package
from dreambooth.job import Job
from dreambooth.spec import Spec, read_job
from dreambooth_api.fields import DNS_LABEL

BackendName = Literal["local", "kubernetes"]


class Client:
    """Runs jobs on this machine or on a cluster. Jobs continue when the client ends.

    Clients are stateless: several clients of the same folder or namespace return the same jobs.
    """

    def __init__(
        self,
        backend: BackendName = "local",
        *,
        folder: str | os.PathLike[str] = "out",
        store: str | None = None,
        namespace: str | None = None,
        context: str | None = None,
        kubeconfig: str | os.PathLike[str] | None = None,
    ) -> None:
        """Select where jobs run.

        Args:
            backend: local starts a process of `dreambooth run` for each job; kubernetes creates DreamBoothJobs.
            folder: local only. Each job has a subfolder with its name.
            store: local only. Folder or URL of shared class images, as in `dreambooth run --store`.
            namespace: kubernetes only. Defaults to that of the context.
            context: kubernetes only. Defaults to the current context of the kubeconfig, also if that changes later.
            kubeconfig: kubernetes only. Defaults to the files in KUBECONFIG, else ~/.kube/config.

        Raises:
            ClientError: the backend is not known, its packages are not installed, or the namespace is invalid.
        """
        # kubectl expands no tilde, and runs in the folder that is current then.
        path = None if kubeconfig is None else str(Path(kubeconfig).expanduser().absolute())
        if namespace and not _is_name(namespace):
            raise _invalid(namespace)
        selected = {"namespace": namespace, "context": context, "kubeconfig": path}
        self._backend: Backend
        try:
            if backend == "local":
                from dreambooth.local import LocalBackend

                self._backend = LocalBackend(Path(folder), store)
            elif backend == "kubernetes":
                from dreambooth.cluster import KubernetesBackend

                self._backend = KubernetesBackend({name: value for name, value in selected.items() if value})
            else:
                raise ClientError(f"backend {backend!r} is not known; use 'local' or 'kubernetes'")
        except ModuleNotFoundError as error:
            raise missing_package(
                f"backend {backend!r}", "trainer" if backend == "local" else "plugin", error
            ) from error

    def run(
        self,
        spec: Spec | None = None,
        *,
        images: str | os.PathLike[str] | None = None,
        class_: str | None = None,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Job:
        """Start a job, and return without waiting for it.

        Args:
            spec: a job, its spec, either as a mapping with the keys of a job file, or the path of a job file.
            images: instead of `spec`: folder or URI of photos, with the backend local also an archive. The kubernetes
                backend uploads a local folder.
            class_: with `images`: class noun of the subject, for example dog.
            name: of the job. Defaults to metadata.name, to the name of the folder of images, or to dreambooth.
            settings: fields of spec by their dotted paths, for example {"training.steps": 400}. None restores the
                default.

        Raises:
            UserError: the job is invalid, with all issues at once.
            JobExistsError: a job with this name exists.
            ClientError: the job cannot be started.
        """
        job = read_job(spec, images, class_, name, settings)
        self._backend.create(job)
        return Job(self._backend, job.metadata.name)

    def get(self, name: str) -> Job:
        """The job of this name.

        Raises:
            JobNotFoundError: the job does not exist.
            ClientError: the name is invalid, or the job cannot be read.
        """
        # `dreambooth run --out` accepts other names of folders.
        if not _is_name(name) and name not in self._backend.names():
            raise _invalid(name)
        self._backend.read(name)
        return Job(self._backend, name)

    def list(self) -> list[Job]:
        """All jobs of the folder or namespace, by name."""
        return [Job(self._backend, name) for name in self._backend.names()]


def _is_name(name: str) -> bool:
    """Whether a name is safe in paths and selectors."""
    return re.fullmatch(DNS_LABEL, name) is not None


def _invalid(name: str) -> ClientError:
    rule = "is not a valid name: at most 63 lowercase letters, digits and hyphens"
    return ClientError(f"{name!r} {rule}; for example my-dog")
