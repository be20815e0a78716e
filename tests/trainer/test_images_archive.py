"""ZIP archives of images are read like folders; unusual ones are rejected before they use memory or a disk."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import fsspec
import pytest
from imagefiles import encoded, noise

from dreambooth_api.errors import UserError
from dreambooth_trainer.images import archive, read_folder, selection


def zipped(path: Path, *, compression: int = zipfile.ZIP_DEFLATED, **files: bytes) -> Path:
    """An archive. A name is a path with `__` for its slashes."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in files.items():
            file.writestr(name.replace("__", "/").replace("_png", ".png").replace("_txt", ".txt"), content)
    return path


def error(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_folder(str(path))
    return str(caught.value)


def test_an_archive_is_read_like_its_only_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.ZIP", "w") as file:
        for name, content in {
            "photos/dog/1.png": b"one", "photos/dog/0.png": b"zero", "photos/dog/0.txt": b"a sks dog",
            "photos/dog/more/2.png": b"two", "photos/.DS_Store": b"", "__MACOSX/photos/dog/._1.png": b"x",
        }.items():  # fmt: skip
            file.writestr(name, content)
    found = read_folder(str(tmp_path / "photos.ZIP"))
    assert [(image.name, image.data) for image in found.images] == [("0.png", b"zero"), ("1.png", b"one")]
    assert found.captions == {"0.png": "a sks dog"}
    assert found.warnings == [f"more in {tmp_path}/photos.ZIP: subfolders are ignored"]


def test_names_may_begin_with_the_current_folder(tmp_path: Path) -> None:
    """Some tools write such names, and an entry for the folder itself."""
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for name, content in {
            "./": b"", "./dog/": b"", "./dog/0.png": b"zero", "././dog/1.png": b"one", "./dog/0.txt": b"a sks dog",
        }.items():  # fmt: skip
            file.writestr(name, content)
    found = read_folder(str(tmp_path / "photos.zip"))
    assert [(image.name, image.data) for image in found.images] == [("0.png", b"zero"), ("1.png", b"one")]
    assert found.captions == {"0.png": "a sks dog"}
    assert not found.warnings


def test_an_archive_in_an_object_store_can_have_folders_of_kohya() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for folder in ("10_sks dog", "20_sks dog asleep"):
            file.writestr(f"train/{folder}/0.png", encoded(noise()))
    fsspec.filesystem("memory").pipe_file("/bucket/train.zip", buffer.getvalue())
    found = read_folder("memory://bucket/train.zip")
    assert [(image.name, image.weight) for image in found.images] == [
        ("10_sks dog/0.png", 1), ("20_sks dog asleep/0.png", 2),
    ]  # fmt: skip
    assert set(found.captions.values()) == {"sks dog", "sks dog asleep"}


def test_names_outside_of_the_archive_write_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "x.zip", "w") as file:
        for name in ("../../evil.png", "/etc/evil.png", "0.png"):
            file.writestr(name, b"x")
    assert [image.name for image in read_folder(str(folder / "x.zip")).images] == ["0.png"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "x.zip"]


def test_sizes_are_those_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zipped(tmp_path / "bomb.zip", a_png=bytes(65 * 2**20))
    assert bomb.stat().st_size < 2**17
    assert error(bomb) == "a.png: has 65 MiB, the maximum is 64 MiB; reduce its size"
    several = zipped(tmp_path / "several.zip", a_png=bytes(2**20), b_png=bytes(2**20))
    monkeypatch.setattr(selection, "MAX_TOTAL_BYTES", 2**20 + 1)
    assert "contains 0.0 GiB, the maximum is 0 GiB" in error(several)
    monkeypatch.setattr(selection, "MAX_FILES", 1)
    assert "contains 2 files, the maximum is 1" in error(several)
    monkeypatch.setattr(selection, "MAX_TOTAL_BYTES", 100)
    assert "has 0.0 GiB, the maximum is 0 GiB; use an archive with the 3-5 best images" in error(several)


def test_an_entry_cannot_be_larger_than_it_declares(tmp_path: Path) -> None:
    path = zipped(tmp_path / "liar.zip", a_png=bytes(2**20))
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = content.find(signature) + offset
        content[start : start + 4] = struct.pack("<I", 10)
    path.write_bytes(content)
    assert error(path).startswith("a.png: cannot be read from the ZIP archive")


def test_a_large_directory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = zipped(tmp_path / "many.zip", **{f"{n}_png": b"" for n in range(200)})
    monkeypatch.setattr(archive, "MAX_DIRECTORY_BYTES", 2**12)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert "is a ZIP64 archive, or its directory has more than 0 MiB" in error(many)


def test_what_is_not_a_readable_archive_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_bytes(b"text")
    assert "is not a ZIP archive; use a ZIP archive, or a folder" in error(tmp_path / "text.zip")
    path = zipped(tmp_path / "a.zip", a_png=b"x", b_png=b"y")
    whole = path.read_bytes()
    locked = bytearray(whole)
    locked[locked.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(locked)
    assert "is a ZIP archive with a password" in error(path)
    path.write_bytes(whole[: whole.find(b"PK\x01\x02")] + whole[-22:])
    assert "is a damaged ZIP archive" in error(path)
    assert "contains no images, only a.txt" in error(zipped(tmp_path / "b.zip", a_txt=b"x"))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_decompress_blocks_of_any_size_are_rejected(tmp_path: Path, compression: int) -> None:
    path = zipped(tmp_path / "x.zip", compression=compression, a_png=b"x")
    assert "is not compressed with Deflate; create it again with the default compression" in error(path)


def test_captions_count_towards_the_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "MAX_TOTAL_BYTES", 2**20)
    assert "maximum is" in error(zipped(tmp_path / "x.zip", a_png=b"x", a_txt=b" " * 2**21))
