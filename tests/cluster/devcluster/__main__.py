"""Start and manage development clusters."""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from devcluster.build import PROGRAMS, binary
from devcluster.node import NodeCluster, missing_packages
from devcluster.plane import ControlPlane, kuberay_crds
from devcluster.process import reap
from devcluster.system import install_dreambooth, sprites_runtime


def main() -> None:
    parser = argparse.ArgumentParser(prog="devcluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="run a control plane with KubeRay until Ctrl-C")
    up.add_argument("--apply", action="append", default=[], help="file or folder to apply")
    up.add_argument("--node", action="store_true", help="add a node that runs pods, and install the operator")
    build = verbs.add_parser("build", help="build programs into the cache")
    build.add_argument("programs", nargs="*", choices=[*PROGRAMS, []], help="defaults to all that most tests need")
    verbs.add_parser("packages", help="install the Debian packages that a node needs; without root, list them")
    verbs.add_parser("reap", help="stop processes and remove folders of crashed runs")
    arguments = parser.parse_args()
    match arguments.verb:
        case "up":
            _up(arguments.apply, with_node=arguments.node)
        case "build":
            for name in arguments.programs or [name for name, program in PROGRAMS.items() if not program.seldom]:
                print(name, binary(name), flush=True)
        case "packages":
            _install_packages()
        case _:
            for folder in reap():
                print("removed", folder)


def _install_packages() -> None:
    wanted = missing_packages()
    if not wanted:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        print(f"The e2e tests need root and the Debian packages {' '.join(wanted)}", flush=True)
        return
    print(f"Installing Debian packages for the e2e tests: {' '.join(wanted)}", flush=True)
    print("`make test PACKAGES=no` installs none of them and leaves out these tests.", flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted]
    if subprocess.run(install, env=quiet, check=False).returncode:
        subprocess.run(["apt-get", "update", "-qq"], env=quiet, check=True)
        subprocess.run(install, env=quiet, check=True)


@contextlib.contextmanager
def _plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        plane.install_crds(kuberay_crds())
        plane.start_kuberay()
        yield plane


@contextlib.contextmanager
def _node() -> Iterator[ControlPlane]:
    with NodeCluster() as cluster:
        install_dreambooth(cluster)
        cluster.apply(sprites_runtime())
        folder = cluster.add_volume("default", "models")
        print(f"# PersistentVolumeClaim models in namespace default: {folder}")
        yield cluster


def _up(files: list[str], *, with_node: bool) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _node() if with_node else _plane() as plane:
        for path in files:
            plane.apply_path(Path(path))
        if not with_node:
            plane.start_controllers()
        print(f"export KUBECONFIG={plane.kubeconfig}", flush=True)
        print("# stop with Ctrl-C", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("stopping", flush=True)


if __name__ == "__main__":
    main()
