"""Find or build the programs of a cluster.

Each program is a row of `PROGRAMS`. A Go module under `../go` pins its version, and the binary is cached in a folder
that is named by a hash of that module, so a changed `go.mod` causes a new build.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

GO = Path(__file__).resolve().parent.parent / "go"
KUBERNETES = "v1.36.3"
# Without it the version of the server is v0.0.0-master, and Kueue does not start.
_STAMP = " ".join(
    f"-X {package}.gitVersion={KUBERNETES} -X {package}.gitMajor=1 -X {package}.gitMinor=36"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
)

# The cluster version that `helm template` assumes.
_HELM_STAMP = " ".join(f"-X helm.sh/helm/v3/pkg/chartutil.k8sVersion{part}" for part in ("Major=1", "Minor=36"))


class BuildError(RuntimeError):
    """A program could not be built. The message contains the output of the compiler."""


@dataclass(frozen=True)
class Program:
    """How to build one program.

    Attributes:
        module: folder under `go/` that pins the versions.
        package: package to compile.
        stamp: linker flags.
        tags: build tags.
        assets: whether a program of this name on PATH or in KUBEBUILDER_ASSETS may be used instead.
        seldom: whether only few tests need the program.
    """

    module: str
    package: str
    stamp: str = ""
    tags: str = ""
    assets: bool = False
    seldom: bool = False


_PROMETHEUS = "github.com/prometheus/prometheus/cmd"

PROGRAMS = {
    "etcd": Program("etcd", "go.etcd.io/etcd/server/v3", assets=True),
    "kube-apiserver": Program("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", _STAMP, assets=True),
    "kube-controller-manager": Program(
        "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager", _STAMP, assets=True
    ),
    "kube-scheduler": Program("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler", _STAMP),
    "kube-proxy": Program("kubernetes", "k8s.io/kubernetes/cmd/kube-proxy", _STAMP),
    "kubelet": Program("kubernetes", "k8s.io/kubernetes/cmd/kubelet", _STAMP),
    "coredns": Program("coredns", "github.com/coredns/coredns"),
    "kueue": Program("kueue", "sigs.k8s.io/kueue/cmd/kueue", seldom=True),
    "versitygw": Program("versitygw", "github.com/versity/versitygw/cmd/versitygw", seldom=True),
    "kuberay": Program("kuberay", "github.com/ray-project/kuberay/ray-operator"),
    "helm": Program("helm", "helm.sh/helm/v3/cmd/helm", _HELM_STAMP, assets=True),
    "kubectl": Program("kubectl", "k8s.io/kubernetes/cmd/kubectl", _STAMP, assets=True),
    # Without the clients of cloud providers, which discover targets.
    "prometheus": Program("prometheus", f"{_PROMETHEUS}/prometheus", tags="remove_all_sd", seldom=True),
    "promtool": Program("prometheus", f"{_PROMETHEUS}/promtool", tags="remove_all_sd", seldom=True),
    "glua": Program("lua", "github.com/yuin/gopher-lua/cmd/glua"),
    "actionlint": Program("actionlint", "github.com/rhysd/actionlint/cmd/actionlint"),
}


def binary(name: str) -> Path:
    """The path of program `name`, which is built if it does not exist.

    Raises KeyError for a name that is not in PROGRAMS, and BuildError if the build fails.
    """
    program = PROGRAMS[name]
    if program.assets and (found := _installed(name)):
        return found
    target = _cache(program) / name
    if not target.exists():
        _build(program, target)
    return target


def module_dir(module: str, path: str) -> Path:
    """The source folder of Go module `path` at the version that `go/<module>` pins."""
    listed = _go(module, "list", "-m", "-f", "{{.Dir}}", path).strip()
    if not listed:
        _go(module, "mod", "download", path)
        listed = _go(module, "list", "-m", "-f", "{{.Dir}}", path).strip()
    return Path(listed)


def _installed(name: str) -> Path | None:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (found := Path(assets) / name).exists():
        return found
    on_path = shutil.which(name)
    return Path(on_path) if on_path else None


def _cache(program: Program) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    pin = hashlib.sha256(f"{program.stamp}{program.tags}".encode())
    for name in ("go.mod", "go.sum"):
        pin.update((GO / program.module / name).read_bytes())
    return Path(home) / "dreambooth" / "cluster" / f"{program.module}-{pin.hexdigest()[:12]}"


def _build(program: Program, target: Path) -> None:
    """Compile to a temporary name and rename, so that a target that exists is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():  # another process has built it meanwhile
            return
        unfinished = target.with_suffix(".new")
        flags = f"-s -w {program.stamp}".strip()
        _go(
            program.module,
            *("build", "-trimpath", "-tags", program.tags, "-ldflags", flags),
            *("-o", str(unfinished), program.package),
        )
        unfinished.rename(target)


def _go(module: str, *arguments: str) -> str:
    if not shutil.which("go"):
        raise BuildError(
            "go is not on PATH: install Go 1.26 or newer, or set KUBEBUILDER_ASSETS to a folder "
            "with kube-apiserver and etcd"
        )
    done = subprocess.run(
        ["go", *arguments],
        cwd=GO / module,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"go {' '.join(arguments)} in {GO / module}:\n{done.stderr[-4000:]}")
    return done.stdout
