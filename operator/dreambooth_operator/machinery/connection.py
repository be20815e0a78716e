"""Where the API server is, and the credentials for it: of a pod's service account, or of a kubeconfig.

`kubernetes.aio`, which takes 20 MiB, is imported only for a kubeconfig.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dreambooth_operator.machinery.kubeconfig import DEFAULT, KubeconfigError, read_kubeconfig

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_SECONDS = 60  # the kubelet rotates the token long before it expires


@dataclass(frozen=True)
class Connection:
    """How to reach one API server.

    Attributes:
        host: URL without a path.
        authorization: returns the value of the header Authorization; empty without a token.
        server_name: name in the server's certificate, if it is not the host.
        proxy: URL of a proxy.
        namespace: namespace of the kubeconfig's context, or of the pod.
    """

    host: str
    tls: ssl.SSLContext
    authorization: Callable[[], Awaitable[str]]
    server_name: str | None = None
    proxy: str | None = None
    namespace: str = "default"


async def find_connection(kubeconfig: str | None = None, context: str | None = None) -> Connection:
    """The connection of `kubeconfig`, else of $KUBECONFIG or ~/.kube/config, else of the pod's service account.

    Raises:
        KubeconfigError: the kubeconfig does not exist, or cannot be used.
    """
    default = DEFAULT.expanduser()
    if not (kubeconfig or context or os.environ.get("KUBECONFIG") or default.exists()) and _ACCOUNT.exists():
        return in_cluster(_ACCOUNT)
    return await _of_kubeconfig(kubeconfig, context)


def in_cluster(account: Path) -> Connection:
    """The connection of a pod. `account` is the folder with its token and the server's CA certificate."""
    token, read = "", -_TOKEN_SECONDS

    async def authorization() -> str:
        nonlocal token, read
        if time.monotonic() - read >= _TOKEN_SECONDS:
            token, read = f"Bearer {(account / 'token').read_text().strip()}", time.monotonic()
        return token

    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    tls = ssl.create_default_context(cafile=account / "ca.crt")
    namespace = account / "namespace"
    return Connection(
        f"https://{f'[{host}]' if ':' in host else host}:{port}",
        tls,
        authorization,
        namespace=namespace.read_text().strip() if namespace.exists() else "default",
    )


async def _of_kubeconfig(path: str | None, context: str | None) -> Connection:
    from kubernetes.aio import client as kube
    from kubernetes.aio import config as kube_config
    from kubernetes.aio.client import rest

    found = read_kubeconfig(path, context)
    configuration: Any = kube.Configuration()
    load: Any = kube_config
    try:
        await load.load_kube_config(config_file=found.paths, context=found.context, client_configuration=configuration)
        tls: ssl.SSLContext = cast("Any", rest).RESTClientObject(configuration).ssl_context
    except (kube_config.ConfigException, OSError, ValueError, KeyError, TypeError) as error:
        # What the library raises for a context without a cluster, or for certificates that are missing or damaged.
        missing = isinstance(error, (KeyError, TypeError))
        reason = "its cluster or its user is missing or incomplete" if missing else str(error)
        raise KubeconfigError(
            f"the context {found.context!r} of the kubeconfig {found.paths} cannot be used: {reason}; correct the file"
        ) from error

    async def authorization() -> str:
        settings = await configuration.auth_settings()  # refreshes the token before it expires
        return cast("str | None", settings.get("BearerToken", {}).get("value")) or ""

    return Connection(
        configuration.host,
        tls,
        authorization,
        configuration.tls_server_name,
        configuration.proxy,
        found.namespace,
    )
