"""A control plane with one real node: containerd, kubelet, kube-proxy and CoreDNS as processes in a sandbox."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from devcluster.build import binary
from devcluster.image import BUSYBOX, mounted, mounts, operator_image, pause_image, trainer_image
from devcluster.plane import ControlPlane
from devcluster.process import Process, ProcessError, wait_until
from devcluster.sandbox import BRIDGE, INSIDE, OUTSIDE, PODS, Sandbox

NODE = "node-1"
TRAINER_IMAGE = "localhost/dreambooth-trainer:test"
OPERATOR_IMAGE = "localhost/dreambooth-operator:test"
_PAUSE_IMAGE = "localhost/pause:test"
_PROGRAMS = {"containerd": "containerd", "runc": "runc", "iptables": "iptables", "ip": "iproute2"}
_FILES = {Path("/usr/lib/cni/bridge"): "containernetworking-plugins", BUSYBOX: "busybox-static"}


def missing_packages() -> list[str]:
    """Debian packages that a node needs and that are not installed."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # which Debian gives to root only
    missing = {package for program, package in _PROGRAMS.items() if not shutil.which(program, path=path)}
    return sorted(missing | {package for file, package in _FILES.items() if not file.exists()})


def missing() -> str:
    """What this machine lacks to run a node, in one sentence; empty if nothing."""
    packages = missing_packages()
    if os.geteuid() != 0:
        also = f", and the Debian packages {' '.join(packages)}" if packages else ""
        return f"a node needs root, for containerd and kubelet{also}"
    hidden = [path for path in mounted() if path.is_relative_to("/tmp")]
    if hidden:
        return f"a node needs {hidden[0]} outside of /tmp, because /tmp is a volume in its pods"
    return f"a node needs the Debian packages {' '.join(packages)}; `make packages` installs them" if packages else ""


class NodeCluster(ControlPlane):
    """A control plane and a node that runs pods, ready when entered (about 10 s).

    The images TRAINER_IMAGE and OPERATOR_IMAGE contain this machine's Python environment with the packages under test.
    Raises ProcessError if this machine cannot run a node.
    """

    host = OUTSIDE

    def __init__(self) -> None:
        if reason := missing():
            raise ProcessError(reason)
        super().__init__()
        self.sandbox = Sandbox(self.folder)
        self.containerd = f"{self.folder}/containerd.sock"

    def __enter__(self) -> "NodeCluster":
        try:
            self.sandbox.start()
            super().__enter__()
            self.start_controllers(["*"])
            self.run("kube-scheduler", f"--kubeconfig={self.kubeconfig}", "--leader-elect=false")
            self._start_node()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop all processes. The kernel removes the node together with its namespaces."""
        self.sandbox.stop()
        super().stop()

    def add_image(self, name: str, write: Callable[[str, Path], object]) -> None:
        """Import an image that `write(name, path)` writes as a docker-archive."""
        target = self.folder / "image.tar"
        write(name, target)
        self.sandbox.run("ctr", "-a", self.containerd, "-n", "k8s.io", "images", "import", str(target))
        target.unlink()

    def add_volume(self, namespace: str, claim: str) -> Path:
        """Create a claim that all pods of a namespace can write to. Returns its folder on this machine."""
        folder = self.folder / "volumes" / namespace / claim
        folder.mkdir(parents=True)
        os.chown(folder, 1000, 1000)
        folder.chmod(0o2770)
        common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        size = {"storage": "10Gi"}
        volume = {"capacity": size, "hostPath": {"path": str(folder)}, "persistentVolumeReclaimPolicy": "Retain"}
        name = f"{namespace}-{claim}"
        self.apply(
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": common | volume},
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": claim, "namespace": namespace},
                "spec": {**common, "volumeName": name, "resources": {"requests": size}},
            },
        )
        return folder

    def _apiserver_flags(self) -> list[str]:
        certificate, key = self.authority.issue("kubelet-client", "/O=system:masters/CN=kubelet-client")
        return [
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-client-certificate={certificate}",
            f"--kubelet-client-key={key}",
            # Webhooks are called at pod addresses, because outside of the node no kube-proxy routes service addresses.
            "--enable-aggregator-routing",
        ]

    def _start_node(self) -> None:
        containerd = self._inside("containerd", "containerd", "--config", str(self._containerd_config()))
        wait_until("containerd", self._containerd_answers, process=containerd)
        self.add_image(_PAUSE_IMAGE, pause_image)
        self.add_image(TRAINER_IMAGE, trainer_image)
        self.add_image(OPERATOR_IMAGE, operator_image)
        user = self.kubeconfig_for("kubelet", f"/O=system:nodes/CN=system:node:{NODE}")
        kubelet = self._inside(
            "kubelet",
            str(binary("kubelet")),
            f"--config={self._kubelet_config()}",
            f"--kubeconfig={user}",
            f"--hostname-override={NODE}",
            f"--node-ip={INSIDE}",
            f"--root-dir={self.folder}/kubelet-root",
        )
        user = self.kubeconfig_for("proxy", "/CN=system:kube-proxy")
        self._inside(
            "kube-proxy",
            str(binary("kube-proxy")),
            f"--kubeconfig={user}",
            f"--hostname-override={NODE}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={PODS}",
            # Kernel settings of the host must not be changed.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        )
        self._inside("coredns", str(binary("coredns")), "-conf", str(self._corefile()))
        wait_until("node Ready", self._node_is_ready, seconds=90, process=kubelet)

    def _inside(self, name: str, *command: str) -> Process:
        self._others[name] = self.sandbox.process(name, command).start()
        return self._others[name]

    def _containerd_answers(self) -> bool:
        try:
            self.sandbox.run("ctr", "-a", self.containerd, "version")
        except ProcessError:
            return False
        return True

    def _node_is_ready(self) -> bool:
        conditions = [c for node in self.get("nodes")["items"] for c in node["status"].get("conditions", [])]
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def _containerd_config(self) -> Path:
        network = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isDefaultGateway": True,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": PODS, "rangeStart": "198.18.1.2"}]],
                        "dataDir": f"{self.folder}/addresses",
                    },
                }
            ],
        }
        self._write("cni/10-bridge.conflist", json.dumps(network))
        spec: dict[str, Any] = json.loads(self.sandbox.run("ctr", "oci", "spec"))
        spec["mounts"] += mounts()
        base = self._write("runtime-spec.json", json.dumps(spec))
        return self._write("containerd.toml", _CONTAINERD.format(folder=self.folder, pause=_PAUSE_IMAGE, base=base))

    def _kubelet_config(self) -> Path:
        certificate, key = self.authority.issue("kubelet", f"/CN={NODE}", hosts=f"IP:{INSIDE},DNS:{NODE}")
        config = yaml.safe_load(_KUBELET) | {
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(self.authority.ca)}},
            "clusterDNS": [BRIDGE],
            "containerRuntimeEndpoint": f"unix://{self.containerd}",
            "podLogsDir": f"{self.folder}/pod-logs",
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
        }
        return self._write("kubelet.yaml", yaml.safe_dump(config))

    def _corefile(self) -> Path:
        zones = "cluster.local in-addr.arpa"
        lines = f".:53 {{\n bind {BRIDGE}\n errors\n kubernetes {zones} {{\n  kubeconfig {self.kubeconfig}\n }}\n}}\n"
        return self._write("Corefile", lines)

    def _write(self, name: str, content: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        return path


# Without restrict_oom_score_adj, pod sandboxes need CAP_SYS_RESOURCE.
_CONTAINERD = """
version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{base}"
"""

# Settings for a shared machine with cgroup v1.
_KUBELET = """
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
clusterDomain: cluster.local
enforceNodeAllocatable: []
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
localStorageCapacityIsolation: false
oomScoreAdj: 0
syncFrequency: 5s
"""
