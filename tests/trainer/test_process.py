"""Environments of containers and batch systems: no home, no passwd entry, a read-only home, a long TMPDIR, no UTF-8."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from imagefiles import encoded, gradient
from jobtext import JOB

from dreambooth_api.errors import TransientError
from dreambooth_trainer.cli import process
from dreambooth_trainer.cli.options import store_url
from dreambooth_trainer.cluster import session

LONG = "/tmp/" + "scratch-of-a-batch-system/" * 4
CAPTIONED = "é.png"
SOURCES = [str(Path(sys.modules[name].__file__ or "").parents[1]) for name in ("dreambooth_api", "dreambooth_trainer")]


@pytest.fixture
def no_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user ID without an entry in the system's user database, and no variables about the user."""
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "DREAMBOOTH_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])


@pytest.mark.usefixtures("no_user")
def test_a_user_without_an_entry_gets_a_home_and_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"dreambooth-{os.getuid()}"
    assert process.missing_user_variables() == {"HOME": str(folder), "USER": f"uid-{os.getuid()}"}
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "me")
    assert process.missing_user_variables() == {}


def test_a_folder_that_others_can_use_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"dreambooth-{os.getuid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    assert process.private_folder() != folder
    folder.rmdir()
    (tmp_path / "other").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "other")
    assert process.private_folder() != folder


@pytest.mark.usefixtures("no_user")
@pytest.mark.parametrize(
    ("given", "variables", "expected", "noted"),
    [
        (None, {"HOME": "{tmp}"}, "{tmp}/.cache/dreambooth/store", False),
        (None, {"HOME": "/proc/self", "XDG_CACHE_HOME": "{tmp}/c"}, "{tmp}/c/dreambooth/store", False),
        (None, {"HOME": "/proc/self"}, "{tmp}/dreambooth-{uid}/store", True),
        (None, {"HOME": "/dev/null"}, "{tmp}/dreambooth-{uid}/store", True),
        (None, {"DREAMBOOTH_STORE": "{tmp}/s"}, "{tmp}/s", False),
        ("s3://bucket/store", {}, "s3://bucket/store", False),
        ("{tmp}/mine", {}, "{tmp}/mine", False),
    ],
)
def test_class_images_are_stored_where_they_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    given: str | None,
    variables: dict[str, str],
    expected: str,
    noted: bool,
) -> None:
    def filled(text: str) -> str:
        return text.format(tmp=tmp_path, uid=os.getuid())

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, filled(value))
    found, note = store_url(given and filled(given))
    assert found == filled(expected)
    assert ("is not writable; set DREAMBOOTH_STORE" in note) is noted


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"TMPDIR": "/var/tmp"}, None),
        ({"TMPDIR": LONG}, "/tmp/ray"),
        ({"RAY_TMPDIR": LONG, "TMPDIR": "/var/tmp"}, "/tmp/ray"),
        ({"RAY_TMPDIR": "/var/tmp", "TMPDIR": LONG}, None),
    ],
)
def test_sockets_of_ray_have_short_paths(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str | None
) -> None:
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert session.session_folder() == expected


def test_no_folder_for_the_sockets_of_ray_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", LONG)
    monkeypatch.setattr(session, "SHORT_TEMPORARY_FOLDER", "/proc/self")
    with pytest.raises(TransientError, match=r"longer than \d+ bytes, .*; set RAY_TMPDIR to a folder with a shorter"):
        session.session_folder()


@pytest.mark.parametrize(
    ("variables", "created"),
    [({"HOME": "/proc/self"}, True), ({"HOME": "/proc/self", "RAY_AUTH_MODE": "disabled"}, False), ({}, False)],
)
def test_ray_gets_a_token_that_it_cannot_keep_in_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], created: bool
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    assert list(session.token_variables()) == ["RAY_AUTH_TOKEN"] * created


def validate(folder: Path, variables: dict[str, str]) -> tuple[int, str]:
    """Exit code and output of `dreambooth validate` with these environment variables only."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(SOURCES), "HOME": str(folder), **variables}
    command = [sys.executable, "-m", "dreambooth_trainer", "validate", "job.yaml"]
    done = subprocess.run(command, capture_output=True, cwd=folder, env=environment, timeout=120)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """A folder with a job and its images, whose names are not ASCII, one of them not even UTF-8."""
    (tmp_path / "photos").mkdir()
    names: list[Any] = [unicodedata.normalize("NFD", "é.png"), "犬 🐶.png", os.fsdecode(b"caf\xe9.png")]
    for number, name in enumerate(names):
        (tmp_path / "photos" / name).write_bytes(encoded(gradient(64, 64 + 128 * (number > 0))))
    job = f'{JOB}    captions: {{"{CAPTIONED}": "a sks dog, très joli"}}\n    identifier: sks\n'
    (tmp_path / "job.yaml").write_text(job, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LC_ALL": "C.UTF-8"},
        {"LC_ALL": "C"},
        {"LANG": "xx_XX.ISO-8859-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
    ids=str,
)
def test_names_and_captions_in_any_language_work_in_any_locale(captioned: Path, variables: dict[str, str]) -> None:
    code, text = validate(captioned, variables)
    assert (code, "is valid" in text) == (0, True), text
    assert "cropping to the center" in text, "the warnings name these files"


def test_the_process_starts_again_once_to_use_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setattr("locale.getencoding", lambda: "ISO-8859-1")
    monkeypatch.setattr("sys.flags", type("Flags", (), {"utf8_mode": 0}))
    monkeypatch.setattr("os.execv", lambda _, command: started.append(command))
    process.use_utf8()
    process.use_utf8()
    assert started == [[sys.executable, *sys.orig_argv[1:]]]
    assert os.environ["PYTHONIOENCODING"] == "ISO-8859-1:backslashreplace"
