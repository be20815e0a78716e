"""Connection to the Ray cluster of a run: the one at RAY_ADDRESS, or a local one."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from dreambooth_api import environment
from dreambooth_api.errors import TransientError, UserError, ValidationIssue

OBJECT_STORE_BYTES = 256 * 2**20
CONNECT_TIMEOUT_SECONDS = 10
MAX_SOCKET_PATH_BYTES = 107
SHORT_TEMPORARY_FOLDER = "/tmp"  # noqa: S108 - Ray's default
# The longest path of a socket below the temporary folder.
SESSION_PATH_BYTES = len("/ray/session_2026-11-25_20-22-00_890916_4194304/sockets/plasma_store")


def has_address() -> bool:
    """Whether RAY_ADDRESS is set, as in the Ray head pod of a job."""
    return bool(os.environ.get("RAY_ADDRESS"))


def check_address(address: str) -> None:
    """Check that something listens at an address of Ray. Ray itself retries for more than a minute.

    Raises:
        UserError: not an address of a Ray cluster.
        TransientError: the address cannot be reached.
    """
    if address in ("auto", "local"):
        return
    match = re.fullmatch(r"(?:ray://)?\[?([^\s/\[\]]+)\]?:(\d{1,5})", address)
    if match is None or int(match[2]) > 65_535:
        rule = "is not the address of a Ray cluster"
        raise UserError(ValidationIssue("RAY_ADDRESS", address, rule, "set host:port, for example 10.0.0.1:6379"))
    try:
        socket.create_connection((match[1], int(match[2])), CONNECT_TIMEOUT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise TransientError(
            f"no Ray cluster can be reached at RAY_ADDRESS {address} ({reason}); start it, or unset RAY_ADDRESS to "
            "run on this machine"
        ) from error


def session_folder() -> str | None:
    """Folder for the sessions of local Ray clusters; None for Ray's default, in RAY_TMPDIR or TMPDIR.

    Ray's sockets are in its session folders, and the path of a socket has at most 107 bytes.

    Raises:
        TransientError: /tmp cannot be written to either.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SHORT_TEMPORARY_FOLDER
    if len(os.fsencode(folder)) + SESSION_PATH_BYTES <= MAX_SOCKET_PATH_BYTES:
        return None
    if not os.access(SHORT_TEMPORARY_FOLDER, os.W_OK):
        longest = MAX_SOCKET_PATH_BYTES - SESSION_PATH_BYTES
        raise TransientError(
            f"the path of the temporary folder {folder} is longer than {longest} bytes, the maximum for Ray's sockets, "
            f"and {SHORT_TEMPORARY_FOLDER} is not writable; set RAY_TMPDIR to a folder with a shorter path"
        )
    return f"{SHORT_TEMPORARY_FOLDER}/ray"


def token_variables() -> dict[str, str]:
    """A token for the processes of a local Ray cluster, if Ray cannot keep one in the home folder."""
    if any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return {}
    folder = Path.home() / ".ray"
    if (folder / "auth_token").exists() or os.access(folder if folder.exists() else folder.parent, os.W_OK):
        return {}
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextlib.contextmanager
def _explain_missing_token() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        causes = (error, error.__cause__, error.__context__)
        if not any("InvalidAuthToken" in str(cause) for cause in causes):
            raise
        rule = "is a Ray cluster that requires a token, which is missing or wrong"
        remedy = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token or copy its ~/.ray/auth_token"
        raise UserError(ValidationIssue("RAY_ADDRESS", os.environ["RAY_ADDRESS"], rule, remedy)) from error


@contextlib.contextmanager
def ray_cluster() -> Iterator[None]:
    """Connect to RAY_ADDRESS if it is set, else run a local Ray cluster until the block ends."""
    # Ray Train polls its workers every two seconds by default, and a checkpoint waits for the next poll.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Hides the GPUs from processes that reserve none, so that nothing runs on a GPU by accident.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    import ray

    if ray.is_initialized():
        yield
        return
    with _keep_sigterm_handler():
        _init()
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _init() -> None:
    import ray

    common = {"log_to_driver": bool(os.environ.get(environment.DEBUG)), "logging_level": logging.ERROR}
    if has_address():
        check_address(os.environ["RAY_ADDRESS"])
        with _explain_missing_token():
            ray.init(**common)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # A process of each training that waits for nodes to be drained.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.update(token_variables())
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=session_folder(),
            **common,
        )


@contextlib.contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block. `ray.init` sets its own, which exits at once."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # Ray sets its handler, and Python allows it, on the main thread only.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
