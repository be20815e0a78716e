"""A real Kubernetes cluster on this machine, for tests and development.

`ControlPlane` starts etcd and kube-apiserver (about 3 s), and optionally kube-controller-manager and KubeRay, each as
a process in a temporary folder. `NodeCluster` adds a node that runs pods; it needs root and a few Debian packages.
Binaries are taken from `KUBEBUILDER_ASSETS` or `PATH`, or are built once from Go modules (`build.py`) into a cache
outside the checkout.

To start a cluster, run `python -m devcluster up` with `tests/cluster` on `PYTHONPATH`.
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
