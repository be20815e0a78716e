"""Signatures of files that jobs of several namespaces share.

Jobs that have the same key are a trust domain. They share a folder that is named after the key, and believe only files
that are signed with it. Name and content are signed, so that an image is not taken for another one.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from dreambooth_api.environment import STORE_KEY

_CLUSTER = "cluster"


def trust_domain() -> str | None:
    """The name of the trust domain of this process; None without a key. The key cannot be derived from it."""
    key = os.environ.get(STORE_KEY)
    return _digest(key, b"trust domain")[:32] if key else None


def domain_folder(store: str, domain: str) -> str:
    """The URL of the folder of a trust domain in a store."""
    return f"{store}/{_CLUSTER}/{domain}"


def signature(url: str, name: str, content: bytes) -> str | None:
    """The signature of a file in a shared folder; None if the folder is not that of the trust domain.

    Args:
        url: of the folder.
        content: what the file stands for, for example the pixels of an image.
    """
    key, domain = os.environ.get(STORE_KEY), trust_domain()
    _, found, inside = url.rpartition(f"/{_CLUSTER}/{domain}/")
    if not key or not found:
        return None
    return _digest(key, f"file\0{inside}\0{name}\0".encode() + content)


def is_signed(url: str, name: str, content: bytes, found: object) -> bool:
    """Whether the signature of a file is right, or none is required."""
    expected = signature(url, name, content)
    return expected is None or hmac.compare_digest(expected, str(found))


def _digest(key: str, message: bytes) -> str:
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()
