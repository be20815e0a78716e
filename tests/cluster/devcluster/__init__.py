"""A real Kubernetes on this machine, for tests and for development.

`ControlPlane` starts etcd and kube-apiserver (about 3 s), and on request kube-controller-manager and KubeRay, each as
a plain process in a folder of its own. `NodeCluster` adds a node that runs pods; it needs root and a few Debian
packages. Binaries come from `KUBEBUILDER_ASSETS` or `PATH`, else they are built once from the Go module proxy
(`build.py`) into a cache outside the checkout.

By hand: `python -m devcluster up`, with `tests/cluster` on `PYTHONPATH`.
"""

from devcluster.build import BuildError, binary, module_dir
from devcluster.node import NodeCluster, missing
from devcluster.plane import ControlPlane, helm, kuberay_crds
from devcluster.process import ProcessError, reap

__all__ = [
    "BuildError",
    "ControlPlane",
    "NodeCluster",
    "ProcessError",
    "binary",
    "helm",
    "kuberay_crds",
    "missing",
    "module_dir",
    "reap",
]
