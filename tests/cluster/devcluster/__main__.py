"""`python -m devcluster up | build | reap`: a control plane by hand."""

import argparse
import signal
import time

from devcluster import ControlPlane, binary, kuberay_crds, reap
from devcluster.build import PROGRAMS


def main() -> None:
    parser = argparse.ArgumentParser(prog="devcluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="run a control plane until Ctrl-C")
    up.add_argument("--apply", action="append", default=[], help="a file or folder to apply")
    up.add_argument("--kuberay", action="store_true", help="with KubeRay's CRDs and operator")
    build = verbs.add_parser("build", help="build programs into the cache")
    build.add_argument("programs", nargs="*", choices=[*PROGRAMS, []], help="all, if none named")
    verbs.add_parser("reap", help="end and remove what crashed runs left behind")
    arguments = parser.parse_args()
    match arguments.verb:
        case "up":
            _up(arguments.apply, with_kuberay=arguments.kuberay)
        case "build":
            for name in arguments.programs or PROGRAMS:
                print(name, binary(name), flush=True)
        case _:
            for folder in reap():
                print("removed", folder)


def _up(files: list[str], *, with_kuberay: bool) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ControlPlane() as plane:
        if with_kuberay:
            plane.install_crds(kuberay_crds())
            plane.start_kuberay()
        for path in files:
            plane.kubectl("apply", "--server-side", "-f", path)
        plane.start_controllers()
        print(f"export KUBECONFIG={plane.kubeconfig}", flush=True)
        print("# Ctrl-C ends it", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("ending", flush=True)


if __name__ == "__main__":
    main()
