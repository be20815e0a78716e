"""Errors of the client. Invalid jobs raise `UserError`."""

from __future__ import annotations


class ClientError(Exception):
    """A request that cannot be carried out, with the remedy."""


def missing_package(user: str, extra: str, error: ModuleNotFoundError) -> ClientError:
    """The error for something that needs a package of an extra."""
    return ClientError(f"{user} needs the package {error.name}; run pip install 'dreambooth-operator[{extra}]'")


class JobNotFoundError(ClientError):
    """The job does not exist."""


class JobExistsError(ClientError):
    """A job with this name already exists."""


class UnreachableError(ClientError):
    """The cluster does not respond, or cannot answer now. The same request may succeed later."""


class JobFailedError(ClientError):
    """A job failed, was rejected, or finished without reaching the phase or condition that was waited for.

    Attributes:
        name: of the job.
        reason: in CamelCase, for example OutOfMemory.
    """

    def __init__(self, name: str, reason: str, message: str) -> None:
        super().__init__(f"job {name} {message}")
        self.name = name
        self.reason = reason
