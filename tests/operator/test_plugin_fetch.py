"""The files of kubectl dreambooth images."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dreambooth_api import environment, layout
from dreambooth_operator.kubectl_plugin.cli import cli
from dreambooth_operator.kubectl_plugin.fetch import pack_command, unpack


def packed(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("report.html")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_files_are_written(tmp_path: Path) -> None:
    unpack(packed(b"report"), tmp_path / "new" / "dog")
    assert (tmp_path / "new" / "dog" / "report.html").read_bytes() == b"report"


def test_the_report_with_the_photos_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "volume" / "dogs" / "my-dog"
    (folder / "model").mkdir(parents=True)
    for name in ("report.html", "model/report.html", *(f"model/{name}" for name in layout.IMAGES)):
        (folder / name).write_text(name)
    monkeypatch.setattr(environment, "OUTPUT_PATH", str(tmp_path / "volume"))
    command = pack_command({"status": {"startedWith": {"folder": "dogs/my-dog"}}})
    unpack(subprocess.check_output(command), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(layout.VIEWED)
    assert (tmp_path / "out" / "report.html").read_text() == "report.html"
    assert (tmp_path / "out" / "class.png").read_text() == "model/class.png"


@pytest.mark.parametrize("size", [0, 100, 3000], ids=["empty", "in a header", "in a file"])
def test_an_archive_that_ends_early_is_one_sentence(tmp_path: Path, size: int) -> None:
    with pytest.raises(
        click.ClickException, match=r"^the files from the cluster are incomplete or damaged \(.*run the"
    ):
        unpack(packed(bytes(20_000))[:size], tmp_path)


def test_a_file_in_place_of_the_folder_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "dog"
    file.touch()
    with pytest.raises(
        click.ClickException, match=r"dog cannot be written: File exists; select another folder with --o"
    ):
        unpack(packed(b"report"), file)
    shown = CliRunner(env={"KUBECONFIG": "/nonexistent"}).invoke(cli, ["images", "dog", "--out", str(file)])
    assert (shown.exit_code, "is a file" in shown.output) == (2, True)
