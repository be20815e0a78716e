"""A control plane: etcd, kube-apiserver and controllers, as processes that tests can kill."""

import contextlib
import functools
import json
import shutil
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from devcluster.build import binary, module_dir
from devcluster.pki import Authority
from devcluster.process import Process, ProcessError, new_folder, reap, wait_until

# Controllers that the operator depends on; all others are disabled.
CONTROLLERS = (
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
    "validatingadmissionpolicy-status-controller",
)
# Not a private range, because those may be in use in the network of this machine.
SERVICE_NETWORK = "198.19"
KUBERAY = "github.com/ray-project/kuberay/ray-operator"


def kuberay_crds() -> Path:
    """The folder with the CRDs of the KubeRay version that `start_kuberay` runs."""
    return module_dir("kuberay", KUBERAY) / "config" / "crd" / "bases"


def helm(plane: "ControlPlane | None", *arguments: str) -> str:
    """Run Helm and return its standard output. Raises ProcessError with its error output if it fails."""
    where = [f"--kubeconfig={plane.kubeconfig}"] if plane else []
    done = subprocess.run([str(binary("helm")), *where, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProcessError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


class ControlPlane:
    """A control plane in a temporary folder, on free ports of 127.0.0.1.

    Use it as a context manager: leaving it ends every process and removes the folder.
    Nothing schedules or runs pods: a test that needs a pod's status writes it. `Node` does.
    """

    host = "127.0.0.1"
    """Address of the API server."""

    def __init__(self) -> None:
        reap()
        self.folder = new_folder()
        self.authority = Authority(self.folder / "pki")
        etcd_port, peer_port, self.port = free_ports(3)
        self.url = f"https://{self.host}:{self.port}"
        self.etcd_url = f"http://127.0.0.1:{etcd_port}"
        self.etcd = Process(self.folder, "etcd", self._etcd_command(etcd_port, peer_port))
        self.apiserver = Process(self.folder, "kube-apiserver", self._apiserver_command(self.etcd_url))
        self.kubeconfig = self.kubeconfig_for("admin", "/O=system:masters/CN=admin")
        self._others: dict[str, Process] = {}

    def __enter__(self) -> Self:
        try:
            self.etcd.start()
            self.start_apiserver()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start_apiserver(self) -> None:
        """Start the API server, also after `apiserver.kill()`. Returns when it is ready."""
        self.apiserver.start()
        wait_until("kube-apiserver", self._ready, seconds=90, process=self.apiserver)

    def stop(self) -> None:
        """Stop all processes. The API server is stopped before etcd, because without etcd it ignores SIGTERM."""
        for process in reversed(self._others.values()):
            process.kill()
        self.apiserver.kill()
        self.etcd.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_controllers(self, names: Sequence[str] = CONTROLLERS) -> Process:
        """Garbage collection, namespaces, service accounts, root CA, types in admission policies, or others by name.

        Call it after the CRDs are there: the collector looks for new kinds every 30 s only.
        """
        # All controllers use one identity, so the built-in role of each controller is not enough.
        user = self.kubeconfig_for("kcm", "/O=system:masters/CN=kcm")
        process = self.run(
            "kube-controller-manager",
            f"--kubeconfig={user}",
            f"--service-account-private-key-file={self.folder}/pki/sa.key",
            f"--root-ca-file={self.authority.ca}",
            f"--controllers={','.join(names)}",
            "--use-service-account-credentials=false",
            "--leader-elect=false",
            "--secure-port=0",
        )
        # The first visible effect of a controller. Waiting for it detects a controller manager that exits at once.
        wait_until("controllers", self._root_ca_published, process=process)
        return process

    def install_crds(self, *folders: Path) -> None:
        """Apply CRDs from folders and wait until they are established."""
        for folder in folders:
            self.apply_path(folder)
        wait_until("CRDs established", self._crds_established, process=self.apiserver)
        shutil.rmtree(self.folder / "kubectl", ignore_errors=True)  # the discovery cache of kubectl

    def start_kuberay(self) -> Process:
        """Run the KubeRay operator for all namespaces. Its CRDs (`kuberay_crds`) must be installed."""
        metrics, probe = free_ports(2)
        return self.run(
            "kuberay",
            f"-kubeconfig={self.kubeconfig}",
            "-use-kubernetes-proxy",
            "-enable-leader-election=false",
            f"-metrics-addr=127.0.0.1:{metrics}",
            f"-health-probe-bind-address=127.0.0.1:{probe}",
            "-enable-metrics=false",
        )

    def run(self, name: str, *arguments: str) -> Process:
        """Start an additional program of `build.PROGRAMS`. A running one of that name is replaced."""
        if name in self._others:
            self._others[name].kill()
        command = [str(binary(name)), *arguments]
        self._others[name] = Process(self.folder, name, command).start()
        return self._others[name]

    def process(self, name: str) -> Process:
        """The additional process of this name, for example `kuberay`. Raises KeyError if it was not started."""
        return self._others[name]

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator and return its standard output.

        Raises ProcessError with kubectl's own words if it fails.
        """
        done = subprocess.run(
            [
                str(binary("kubectl")),
                f"--kubeconfig={self.kubeconfig}",
                f"--cache-dir={self.folder}/kubectl",
                *arguments,
            ],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ProcessError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Server-side apply of objects given as dictionaries."""
        self.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def apply_path(self, path: Path) -> None:
        """Server-side apply of a file, a folder, or a folder with a kustomization."""
        flag = "-k" if (path / "kustomization.yaml").exists() else "-f"
        self.kubectl("apply", "--server-side", "--force-conflicts", flag, str(path))

    def get(self, *arguments: str) -> Any:
        """`kubectl get ... -o json`, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def read(self, path: str) -> Any:
        """What a GET as administrator answers, parsed. For what asks often: a kubectl costs a fifth of a second of CPU.

        Raises OSError where the server does not answer or refuses.
        """
        with urllib.request.urlopen(f"{self.url}{path}", context=self._trust, timeout=30) as answer:
            return json.load(answer)

    def kubeconfig_for(self, name: str, subject: str) -> Path:
        """A kubeconfig for a client certificate with `subject` (as `/O=group/CN=user`)."""
        certificate, key = self.authority.issue(name, subject)
        credentials = {"client-certificate": str(certificate), "client-key": str(key)}
        return self._write_kubeconfig(name, credentials)

    def kubeconfig_for_account(self, namespace: str, account: str) -> Path:
        """A kubeconfig with a token of a service account that is valid for one hour."""
        token = self.kubectl("create", "token", account, "-n", namespace, "--duration=1h").strip()
        return self._write_kubeconfig(f"{namespace}-{account}", {"token": token})

    def _root_ca_published(self) -> bool:
        return bool(self.get("configmaps", "-n", "default", "--field-selector=metadata.name=kube-root-ca.crt")["items"])

    def _crds_established(self) -> bool:
        states = [crd.get("status", {}).get("conditions") or [] for crd in self.get("crd")["items"]]
        return all(any(c["type"] == "Established" and c["status"] == "True" for c in state) for state in states)

    def _write_kubeconfig(self, name: str, credentials: dict[str, str]) -> Path:
        cluster = {"server": self.url, "certificate-authority": str(self.authority.ca)}
        path = self.folder / f"{name}.kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "dev", "cluster": cluster}],
            "users": [{"name": name, "user": credentials}],
            "contexts": [{"name": "dev", "context": {"cluster": "dev", "user": name}}],
            "current-context": "dev",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    @functools.cached_property
    def _trust(self) -> ssl.SSLContext:
        trust = ssl.create_default_context(cafile=str(self.authority.ca))
        trust.load_cert_chain(*self.authority.issue("admin", ""))
        return trust

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", context=self._trust, timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _etcd_command(self, port: int, peer_port: int) -> list[str]:
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        return [
            str(binary("etcd")),
            f"--data-dir={self.folder / 'etcd-data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ]

    def _apiserver_command(self, etcd: str) -> list[str]:
        certificate, key = self.authority.issue(
            "apiserver",
            "/CN=kube-apiserver",
            hosts=f"IP:{self.host},IP:{SERVICE_NETWORK}.0.1,DNS:localhost,DNS:kubernetes.default.svc",
        )
        public, private = self.authority.key_pair("sa")
        return [
            str(binary("kube-apiserver")),
            f"--etcd-servers={etcd}",
            f"--bind-address={self.host}",
            f"--advertise-address={self.host}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.authority.ca}",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={private}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={SERVICE_NETWORK}.0.0/16",
            *self._apiserver_flags(),
        ]

    def _apiserver_flags(self) -> list[str]:
        """Flags that depend on whether the cluster has nodes."""
        return ["--endpoint-reconciler-type=none", "--authorization-mode=RBAC"]


def free_ports(count: int) -> list[int]:
    """Different ports that are currently free."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def answers(host: str, port: int) -> bool:
    """Whether a process listens on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
