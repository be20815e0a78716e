"""Container images without a registry or a builder: tar files that containerd imports.

The images are empty except for a few folders. The container runtime mounts the files of the 6 GB environment read-only
into each container (`mounts`), as if they were part of the image. So the pods are exactly those that the operator
creates, and can satisfy the restricted Pod Security Standard, which does not allow hostPath.
"""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BUSYBOX = Path("/bin/busybox")
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
_FOLDERS = {"etc": 0o755, "home/ray": 0o755, "proc": 0o755, "sys": 0o755, "dev": 0o755, "run": 0o755, "tmp": 0o1777}
_USERS = "root:x:0:0::/:/bin/sh\nray:x:1000:1000::/home/ray:/bin/sh\noperator:x:65532:65532::/:/bin/sh\n"


def mounted() -> list[Path]:
    """Folders that containers see at the same path: programs, Python, its environment and the packages under test."""
    folders = [Path("/etc/ssl"), Path(sys.base_prefix), Path(sys.prefix)]
    folders += [ROOT / "api", ROOT / "operator", ROOT / "trainer", ROOT / "pyproject.toml"]
    return [Path("/usr"), *(folder for folder in folders if not folder.is_relative_to("/usr"))]


def mounts() -> list[dict[str, object]]:
    """These folders as mounts of an OCI runtime."""
    options = ["rbind", "ro", "nosuid", "nodev"]
    return [
        {"destination": str(folder), "source": str(folder), "type": "bind", "options": options} for folder in mounted()
    ]


def trainer_image(name: str, target: Path) -> Path:
    """The equivalent of docker/trainer.Dockerfile."""
    return _python_image(name, target, {"User": "1000:1000"})


def operator_image(name: str, target: Path) -> Path:
    """The equivalent of docker/operator.Dockerfile."""
    return _python_image(name, target, {"Entrypoint": ["python", "-m", "dreambooth_operator"], "User": "65532:65532"})


def _python_image(name: str, target: Path, config: Mapping[str, object]) -> Path:
    files = {"etc/passwd": _USERS.encode(), "etc/ld.so.cache": Path("/etc/ld.so.cache").read_bytes()}
    path = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"
    return write_image(name, target, files, {"Env": [f"PATH={path}", "PYTHONUNBUFFERED=1"], **config})


def program_image(name: str, target: Path, program: Path) -> Path:
    """An image with one static program, /manager, for an unprivileged user."""
    return write_image(name, target, {"manager": program.read_bytes()}, {"User": "65532:65532"})


def pause_image(name: str, target: Path) -> Path:
    """The pause image. It contains a static program, because the runtime mounts nothing into pause containers."""
    return write_image(
        name, target, {"busybox": BUSYBOX.read_bytes()}, {"Entrypoint": ["/busybox", "sleep", "infinity"]}
    )


def write_image(name: str, target: Path, files: Mapping[str, bytes], config: Mapping[str, object]) -> Path:
    """Write a docker-archive with one layer that contains `files`, by path."""
    layer = _layer(files)
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(target, "w") as archive:
        _add(archive, "config.json", json.dumps(image).encode())
        _add(archive, "manifest.json", json.dumps(manifest).encode())
        _add(archive, "layer.tar", layer)
    return target


def _layer(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for path, mode in _FOLDERS.items():
            _add(layer, path, kind=tarfile.DIRTYPE, mode=mode, owner=1000 if path.startswith("home") else 0)
        for path, link in _LINKS.items():
            _add(layer, path, kind=tarfile.SYMTYPE, link=link)
        for path, content in files.items():
            _add(layer, path, content, mode=0o755)
    return buffer.getvalue()


def _add(
    archive: tarfile.TarFile,
    path: str,
    content: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    link: str = "",
    owner: int = 0,
) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.type, entry.mode, entry.linkname, entry.uid, entry.gid = (
        len(content), kind, mode, link, owner, owner,
    )  # fmt: skip
    archive.addfile(entry, io.BytesIO(content))
