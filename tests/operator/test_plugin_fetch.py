"""The files of kubectl dreambooth images."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from dreambooth_api import environment, layout
from dreambooth_operator.kubectl_plugin import follow as following
from dreambooth_operator.kubectl_plugin import show
from dreambooth_operator.kubectl_plugin.cli import cli
from dreambooth_operator.kubectl_plugin.connect import Cluster
from dreambooth_operator.kubectl_plugin.fetch import pack_command, unpack
from dreambooth_operator.kubectl_plugin.follow import follow, image_times, thumbnail
from dreambooth_operator.machinery.client import ApiError
from dreambooth_operator.machinery.resources import Key


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


def test_only_images_of_validations_are_listed_in_the_order_of_steps() -> None:
    names = [b"step-000100/10.png", b"step-000100/9.png", b"step-000000/0.png", b"step-1000000/0.png"]
    bad = [b"../x.png", b"step-000001/.0.png.1.draft", b"step-000001/0.png;rm", b"--checkpoint=1", b"step-1/\x1b.png"]
    listed = b"\n".join(b"1790000000.99 /dreambooth/output/dog/validation/" + name for name in [*names, *bad])
    listed += b"\n1 /dreambooth/output/dog/step-000002/0.png\n/dreambooth/output/dog/validation/step-000003/0.png"
    assert list(image_times(listed)) == [
        "step-000000/0.png", "step-000100/9.png", "step-000100/10.png", "step-1000000/0.png",
    ]  # fmt: skip
    assert set(image_times(listed).values()) == {1790000000}


class FakeCluster:
    """A job that trains, writes images into a folder, and finishes. kubectl runs its commands here."""

    def __init__(self, volume: Path, phases: list[str]) -> None:
        self.folder, self.phases = volume / "my-dog", phases
        self.started = {"folder": "my-dog", "image": "trainer:1", "claimName": "work"}
        self.deleted, self.errors, self.heads = list[str](), list[Exception](), ["head"]

    async def get(self, kind: Any, key: Key) -> dict[str, Any]:
        if kind.kind == "Pod":
            return {"status": {"phase": "Running"}}
        phase = self.phases.pop(0)
        return {
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": "1"},
            "status": {"phase": phase, "startedWith": self.started, "output": {"uri": "old"}, "message": "why"},
        }

    async def request(self, method: str, path: str, query: dict[str, str]) -> dict[str, Any]:
        if self.errors:
            raise self.errors.pop()
        # A new image each time, as the training writes them.
        step = self.folder / "validation" / f"step-{100 * len(self.phases):06d}"
        step.mkdir(parents=True)
        (step / "0.png").write_bytes(b"image")
        return {"items": [{"metadata": {"name": name}, "status": {"phase": "Running"}} for name in self.heads]}

    async def create(self, kind: Any, pod: dict[str, Any]) -> dict[str, Any]:
        return {**pod, "metadata": {**pod["metadata"], "name": "fetch"}, "status": {"phase": "Running"}}

    async def delete(self, kind: Any, key: Key) -> bool:
        self.deleted.append(key.name)
        return True


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that runs what stands after -- on this machine."""
    monkeypatch.setattr(environment, "OUTPUT_PATH", str(tmp_path / "volume"))
    monkeypatch.setattr(following, "FOLLOW_SECONDS", 0)
    script = tmp_path / "kubectl"
    script.write_text('#!/bin/bash\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n')
    script.chmod(0o755)
    return [str(script)]


async def test_new_images_are_copied_once_until_the_job_succeeds(tmp_path: Path, kubectl: list[str]) -> None:
    shown: list[Path] = []
    cluster: Any = FakeCluster(tmp_path / "volume", ["Running", "Running", "Succeeded"])
    (cluster.folder / "model").mkdir(parents=True)
    for name in ("report.html", *(f"model/{name}" for name in layout.IMAGES)):
        (cluster.folder / name).write_text(name)
    await follow(cluster, Key("team", "my-dog"), tmp_path / "out", kubectl, shown.append)
    names = [str(path.relative_to(tmp_path / "out")) for path in shown]
    assert names == ["validation/step-000200/0.png", "validation/step-000100/0.png", *layout.VIEWED]
    assert all(path.exists() for path in shown)
    assert cluster.deleted == ["fetch"]


async def test_images_are_copied_once_where_times_are_not_kept(
    tmp_path: Path, kubectl: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_time", lambda _: None)
    shown: list[Path] = []
    cluster: Any = FakeCluster(tmp_path / "volume", ["Running", "Running", "Failed"])
    with pytest.raises(click.ClickException, match="did not succeed"):
        await follow(cluster, Key("team", "my-dog"), tmp_path / "out", kubectl, shown.append)
    assert [path.parent.name for path in shown] == ["step-000200", "step-000100"]


async def test_nothing_is_copied_from_a_job_that_has_not_started(tmp_path: Path, kubectl: list[str]) -> None:
    cluster: Any = FakeCluster(tmp_path / "volume", ["Pending", "Failed"])
    cluster.started = {}
    with pytest.raises(click.ClickException, match="did not succeed"):
        await follow(cluster, Key("team", "my-dog"), tmp_path / "out", kubectl, lambda path: pytest.fail(str(path)))
    assert cluster.deleted == [], "there is no volume to mount"


async def test_the_state_of_a_waiting_job_is_shown_once(tmp_path: Path, kubectl: list[str]) -> None:
    cluster: Any = FakeCluster(tmp_path / "volume", ["Rejected", "Rejected", "Starting", "Running", "Failed"])
    shown: list[str] = []
    with pytest.raises(click.ClickException, match="did not succeed"):
        await follow(cluster, Key("team", "my-dog"), tmp_path / "out", kubectl, lambda _: None, shown.append)
    assert shown == ["job my-dog is Rejected: why", "job my-dog is Starting: why"]


async def test_many_images_are_copied_from_the_latest_head_with_several_commands(
    tmp_path: Path, kubectl: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "MAX_FILES", 2)
    script, shown = Path(kubectl[0]), list[Path]()
    script.write_text(script.read_text().replace("while", f'echo "$*" >> {tmp_path}/commands\nwhile', 1))
    cluster: Any = FakeCluster(tmp_path / "volume", ["Running", "Failed"])
    step = cluster.folder / "validation" / "step-000000"
    step.mkdir(parents=True)
    for number in range(4):
        (step / f"{number}.png").write_bytes(b"image")
    cluster.heads = ["old", "head"]
    with pytest.raises(click.ClickException, match="did not succeed"):
        await follow(cluster, Key("team", "my-dog"), tmp_path / "out", kubectl, shown.append)
    assert len(shown) == 5
    commands = (tmp_path / "commands").read_text().splitlines()
    assert sum(" tar " in command for command in commands) == 3
    assert all(
        command.startswith(("exec -n team head -c ray-head --", "exec -n team fetch --")) for command in commands
    )


async def test_images_of_an_earlier_training_are_replaced(tmp_path: Path, kubectl: list[str]) -> None:
    old = tmp_path / "out" / "validation" / "step-000100" / "0.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"other")
    os.utime(old, (1, 1))
    copies: list[list[str]] = []
    for phases in (["Running", "Failed"], ["Failed"]):  # the second command copies nothing again
        cluster: Any = FakeCluster(tmp_path / "volume", phases)
        shown: list[Path] = []
        with pytest.raises(click.ClickException, match="did not succeed"):
            await follow(cluster, Key("team", "my-dog"), tmp_path / "out", kubectl, shown.append)
        copies.append([path.parent.name for path in shown])
    assert copies == [["step-000100"], []]
    assert old.read_bytes() == b"image"


async def test_a_server_that_cannot_answer_does_not_end_the_copying(tmp_path: Path, kubectl: list[str]) -> None:
    shown: list[Path] = []
    cluster: Any = FakeCluster(tmp_path / "volume", ["Running", "Running", "Failed"])
    cluster.folder.mkdir(parents=True)
    cluster.errors = [ApiError(503, "ServiceUnavailable", "etcd is down")]
    with pytest.raises(click.ClickException, match="job my-dog did not succeed"):
        await follow(cluster, Key("team", "my-dog"), tmp_path / "out", kubectl, shown.append)
    assert [path.parent.name for path in shown] == ["step-000100"]
    cluster = FakeCluster(tmp_path / "volume", ["Running"])
    cluster.errors = [ApiError(403, "Forbidden", "no")]
    with pytest.raises(ApiError, match="no"):
        await follow(cluster, Key("team", "my-dog"), tmp_path / "out", kubectl, shown.append)


async def test_images_that_cannot_be_copied_at_the_end_are_an_error(tmp_path: Path, kubectl: list[str]) -> None:
    script = Path(kubectl[0])
    lost = "[ $1 = find ] && { echo error: connection lost >&2; exit 1; }"
    script.write_text(script.read_text().replace("exec", f"{lost}; exec"))
    cluster: Any = FakeCluster(tmp_path / "volume", ["Succeeded"])
    with pytest.raises(click.ClickException, match="error: connection lost"):
        await follow(cluster, Key("team", "my-dog"), tmp_path / "out", kubectl, lambda path: pytest.fail(str(path)))
    assert cluster.deleted == ["fetch"]


async def test_the_model_of_an_earlier_job_is_not_copied(tmp_path: Path, kubectl: list[str]) -> None:
    shown: list[Path] = []
    cluster: Any = FakeCluster(tmp_path / "volume", ["Running", "Failed"])
    with pytest.raises(click.ClickException, match="job my-dog did not succeed; its phase is Failed: why"):
        await follow(cluster, Key("team", "my-dog"), tmp_path / "out", kubectl, shown.append)
    assert [path.name for path in shown] == ["0.png"]


def test_images_are_followed_by_the_option_and_drawn_if_they_are_of_validations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def copy(
        _: object,
        key: Key,
        out: Path,
        kubectl: object,
        shown: Callable[[Path], None],
        on_wait: Callable[[str], None],
    ) -> None:
        on_wait("job my-dog is Rejected: why")
        assert (key, out, kubectl) == (Key("team", "my-dog"), tmp_path, ("kubectl",))
        shown(out / "validation" / "step-000100" / "0.png")
        shown(out / "comparison.png")

    cluster: Any = FakeCluster(tmp_path, [])
    monkeypatch.setattr(show, "run", lambda body: asyncio.run(body(Cluster(cluster, "team", ("kubectl",)))))
    monkeypatch.setattr(show, "copy_as_they_come", copy)
    monkeypatch.setattr(show, "thumbnail", lambda path: f"drawn {path.name}")
    shown = CliRunner().invoke(cli, ["images", "my-dog", "--follow", "--out", str(tmp_path)])
    expected = [f"{tmp_path}/validation/step-000100/0.png", "drawn 0.png", f"{tmp_path}/comparison.png"]
    assert (shown.stdout.splitlines(), shown.stderr) == (expected, "job my-dog is Rejected: why\n")


def test_thumbnails_are_drawn_by_terminals_that_can(tmp_path: Path) -> None:
    png, other = tmp_path / "0.png", tmp_path / "1.png"
    png.write_bytes(b"\x89PNG\r\n\x1a\n" + os.urandom(4000))
    other.write_bytes(b"\x1b[2J")
    assert thumbnail(png, {"TERM_PROGRAM": "iTerm.app"}, terminal=True).startswith("\x1b]1337;File=inline=1")
    drawn = thumbnail(png, {"TERM": "xterm-kitty"}, terminal=True)
    assert drawn.count("\x1b_G") == 2
    assert drawn.endswith("\x1b\\")
    assert thumbnail(png, {"TERM": "xterm"}, terminal=True) == ""
    assert thumbnail(png, {"TERM_PROGRAM": "iTerm.app"}, terminal=False) == ""
    assert thumbnail(other, {"TERM_PROGRAM": "iTerm.app"}, terminal=True) == "", "not an image"
