"""Settings of this process and of the processes that it starts, where a container or a batch system leaves them out.

Libraries fail without a home folder or a user name (`Path.home`, `getpass.getuser`), and with a locale that is not
UTF-8 (`open` without an encoding).
"""

from __future__ import annotations

import contextlib
import getpass
import io
import locale
import os
import sys
import tempfile
from pathlib import Path


def set_up_process() -> None:
    """Set the text encoding, a home folder and a user name. May start the process again, as its first action."""
    use_utf8()
    use_printable_output()
    os.environ.update(missing_user_variables())


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode if the locale has another encoding. Keeps that of the output."""
    encoding = locale.getencoding()
    if sys.flags.utf8_mode or os.environ.get("PYTHONUTF8") == "1" or encoding.lower().replace("-", "") == "utf8":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", f"{encoding}:backslashreplace")
    with contextlib.suppress(OSError):  # no permission to execute Python by its path
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - the same command


def use_printable_output() -> None:
    """Print `\\xe9` for a character that the terminal cannot show, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def missing_user_variables() -> dict[str, str]:
    """Values for HOME and USER, if they are not set and the system's user database has no entry for this user."""
    variables: dict[str, str] = {}
    try:
        Path.home()
    except RuntimeError:
        variables["HOME"] = str(private_folder())
    try:
        getpass.getuser()
    except (KeyError, OSError):
        variables["USER"] = f"uid-{os.getuid()}"
    return variables


def private_folder() -> Path:
    """A folder for temporary files that only this user can use; the same one for all processes of the user."""
    folder = Path(tempfile.gettempdir()) / f"dreambooth-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        # Another user may have created it, to read or replace what is written there.
        return Path(tempfile.mkdtemp(prefix="dreambooth-"))
    return folder


def is_writable(folder: Path) -> bool:
    """Whether a folder can be written to, or created."""
    existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
