"""The files of kubectl dreambooth images."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dreambooth_operator.kubectl_plugin.cli import cli
from dreambooth_operator.kubectl_plugin.fetch import unpack


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
