"""Image files are read from folders, object stores, mounted volumes and the built-in subjects."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from dreambooth_api.errors import TransientError, UserError
from dreambooth_api.subject import ImageSource
from dreambooth_trainer.images import RawImage, prepare_images, read_folder, read_images, selection, sources


def test_a_folder_is_read_in_order_without_subfolders_hidden_files_and_sidecars(tmp_path: Path) -> None:
    sidecars = ("Thumbs.db", "desktop.ini", "a.caption", "a.npz", "meta.json", "LICENSE.txt", "README.md")
    for name in ("b.png", "a.JPG", ".hidden", ".DS_Store", "c", *sidecars):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "more").mkdir()
    found = read_folder(str(tmp_path))
    assert found.images == [RawImage(name, name.encode()) for name in ("a.JPG", "b.png", "c")]
    assert found.warnings == [
        f"more in {tmp_path}: subfolders are ignored",
        f"LICENSE.txt, README.md in {tmp_path}: ignored, because they are not images",
    ]
    assert read_folder(f"file://{tmp_path}").images == found.images


def test_an_object_store_is_read_like_a_folder() -> None:
    files = fsspec.filesystem("memory")
    files.pipe({"/photos/1.png": b"one", "/photos/2.png": b"two", "/photos/sub/3.png": b"three"})
    assert [image.name for image in read_folder("memory://photos").images] == ["1.png", "2.png"]


def test_a_mounted_secret_is_read_through_its_symbolic_links(tmp_path: Path) -> None:
    # The kubelet mounts keys as symbolic links into a versioned folder, so that updates are atomic.
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "a.png").write_bytes(b"x")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "a.png").symlink_to("..data/a.png")
    source = ImageSource.model_validate({"secret": {"name": "photos"}})
    assert read_images(source, tmp_path).images == [RawImage("a.png", b"x")]
    with pytest.raises(UserError, match=r"^spec.subject.images.secret: is a Kubernetes object"):
        read_images(source)


def test_links_to_files_that_do_not_exist_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"x")
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).symlink_to(f"../.git/annex/objects/{name}")
    with pytest.raises(UserError) as caught:
        read_folder(str(tmp_path))
    assert str(caught.value) == (
        f"spec.subject.images.uri: '{tmp_path}': contains links to files that do not exist: 1.jpg, 2.jpg; fetch the "
        "files (with DVC: dvc pull; with git-annex or DataLad: datalad get), and replace the link by a copy of the "
        "file (with DVC: dvc config cache.type copy, then dvc checkout --relink; with git-annex or DataLad: git annex "
        "unlock)"
    )


@pytest.mark.parametrize("name", ["1.jpg", "0.txt"])
@pytest.mark.parametrize("target", ["/etc/shadow", "../sibling/photo.jpg", "inner/../../sibling/photo.jpg", "chain"])
def test_links_to_files_outside_of_the_folder_are_rejected(tmp_path: Path, target: str, name: str) -> None:
    folder = tmp_path / "photos"
    for path in (folder / "0.png", folder / "inner" / "x", tmp_path / "sibling" / "photo.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (folder / "chain").symlink_to("../sibling/photo.jpg")
    (folder / name).symlink_to(target)
    secret = "/etc/shadow" if target == "/etc/shadow" else f"{tmp_path}/sibling/photo.jpg"
    with pytest.raises(UserError, match=rf"{name}: is a link to {secret}, outside of the folder; replace the link by"):
        read_folder(str(folder))
    # A folder that the user names may itself be a link.
    (folder / name).unlink()
    (folder / "chain").unlink()
    (tmp_path / "alias").symlink_to("photos")
    assert [image.name for image in read_folder(str(tmp_path / "alias")).images] == ["0.png"]


def test_folders_on_a_volume_are_not_links_to_those_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "IMAGES_PATH", str(tmp_path))
    for name in ("0/mine", "0/theirs/photos"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.png").write_bytes(b"x")
    (tmp_path / "0" / "mine" / "link").symlink_to("../theirs")
    assert len(read_folder(str(tmp_path / "0" / "mine")).images) == 1
    for name in ("link", "link/photos"):
        with pytest.raises(UserError, match=r"spec.subject.images.uri: .*: is a link to .*/0/theirs"):
            read_folder(str(tmp_path / "0" / "mine" / name))


def test_linked_folders_and_pipes_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "more").symlink_to("/tmp")
    os.mkfifo(tmp_path / "pipe.png")
    found = read_folder(str(tmp_path))
    assert [image.name for image in found.images] == ["a.png"]
    assert found.warnings == [
        f"more in {tmp_path}: subfolders are ignored",
        f"pipe.png in {tmp_path}: ignored, because they are not images",
    ]


def test_a_folder_of_a_volume_is_read(tmp_path: Path) -> None:
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.png").write_bytes(b"x")
    source = ImageSource.model_validate({"pvc": {"claimName": "photos", "path": "dog"}})
    assert read_images(source, tmp_path).images == [RawImage("a.png", b"x")]


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing folder": (lambda path: None, "does not exist; correct the path, which is relative to the job file"),
    "a file": (lambda path: path.write_bytes(b""), "is a file; use the folder that contains it, or a ZIP archive"),
    "an empty folder": (lambda path: path.mkdir(), "contains no images; add 3-5 images of the subject"),
    "a folder with subfolders only": (
        lambda path: (path / "dog").mkdir(parents=True),
        "contains no images, only dog; use one of its subfolders: {path}/dog",
    ),
    "a folder with captions only": (
        lambda path: (path.mkdir(), (path / "a.txt").write_bytes(b"")),
        "contains no images, only a.txt; add 3-5 images of the subject",
    ),
}


@pytest.mark.parametrize("make, message", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_without_images_is_rejected(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "photos"
    make(path)
    with pytest.raises(UserError) as caught:
        read_folder(str(path))
    assert str(caught.value.issues[0]).endswith(message.format(path=path))
    assert caught.value.issues[0].path == "spec.subject.images.uri"


def test_sizes_are_checked_before_any_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        with (tmp_path / name).open("wb") as file:
            file.truncate(100 * 2**20)
    monkeypatch.setattr(sources, "_read", None)
    with pytest.raises(UserError) as caught:
        read_folder(str(tmp_path))
    assert [str(issue) for issue in caught.value.issues] == [
        f"{name}: has 100 MiB, the maximum is 64 MiB; reduce its size" for name in "abc"
    ]
    monkeypatch.setattr(selection, "MAX_FILE_BYTES", 2**30)
    monkeypatch.setattr(selection, "MAX_TOTAL_BYTES", 2**28)
    with pytest.raises(UserError, match=r"contains 0\.3 GiB"):
        read_folder(str(tmp_path))
    monkeypatch.setattr(selection, "MAX_FILES", 2)
    with pytest.raises(UserError, match="contains 3 files, the maximum is 2"):
        read_folder(str(tmp_path))


def test_built_in_subjects_are_rendered() -> None:
    found = read_folder("builtin:sprites/dog-pink-blue")
    assert [raw.name for raw in found.images] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert prepare_images(found.images, 32).warnings == []
    with pytest.raises(UserError, match=r"is not a built-in subject; did you mean builtin:sprites/dog-pink-blue\?$"):
        read_folder("builtin:sprites/dog-pink")
    with pytest.raises(UserError, match="is not a built-in subject; use one of dog-pink-blue, "):
        read_folder("builtin:sprites/xyz")


def test_other_url_schemes_are_rejected() -> None:
    with pytest.raises(UserError, match="ftp:// is not supported; use a local folder, s3://"):
        read_folder("ftp://example.org/photos")


class NoCredentialsError(Exception):
    """An error of a client library that is not an OSError."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (NoCredentialsError("Unable to locate credentials"), UserError, "access denied: Unable to locate credentials"),
        (RuntimeError("403, message='Forbidden'"), UserError, "access denied: 403"),
        (RuntimeError("Server disconnected"), TransientError, "s3://bucket/dog could not be read: Server disconnected"),
    ],
)
@pytest.mark.parametrize("method", ["ls", "open"])
def test_errors_of_any_client_library_are_converted(
    monkeypatch: pytest.MonkeyPatch, method: str, error: Exception, kind: type[Exception], message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/dog/0.png", b"x")
    store = SimpleNamespace(_strip_protocol=lambda uri: "/bucket/dog", isfile=memory.isfile, ls=memory.ls)
    setattr(store, method, fail)
    monkeypatch.setattr("fsspec.filesystem", lambda scheme: store)
    with pytest.raises(kind, match=message):
        read_folder("s3://bucket/dog")


def test_errors_in_our_own_code_are_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/dog/0.png", b"x")
    store = SimpleNamespace(_strip_protocol=lambda uri: "/bucket/dog", isfile=memory.isfile, ls=memory.ls)
    monkeypatch.setattr("fsspec.filesystem", lambda scheme: store)
    monkeypatch.setattr(sources, "select", None)
    with pytest.raises(TypeError):
        read_folder("s3://bucket/dog")
