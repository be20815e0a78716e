"""The schemes of URIs that a job may name. Another object store is one more row in `EXTRAS`.

Patterns, descriptions and error messages are made from this table.
"""

from __future__ import annotations

from typing import Final

# Object stores by scheme, with the extra of our distribution that installs the client of each.
EXTRAS: Final = {"s3": "s3", "gs": "gcs"}
OBJECT_STORE: Final = f"({'|'.join(EXTRAS)})://"
# For sentences: "s3:// or gs://".
OBJECT_STORES: Final = " or ".join(f"{scheme}://" for scheme in EXTRAS)
BUILTIN: Final = "builtin:"
# The embedded base model, its encoders and, with /<name>, its subjects.
BUILTIN_SPRITES: Final = f"{BUILTIN}sprites"
BUILTIN_SUBJECT: Final = f"{BUILTIN_SPRITES}/<name>"

# No "::", with which fsspec chains file systems: s3://bucket::file:///etc would read local files.
_OBJECT_STORE_FOLDER = rf"{OBJECT_STORE}(:?[^/:\x00-\x20])+(/(:?[^:\x00-\x1f])*)?"
# A colon that starts no scheme that is read is a typo of one (s3:/bucket) more often than a part of a file name.
_FOLDER = rf"{_OBJECT_STORE_FOLDER}|file:///(:?[^:\x00-\x1f])+|[^:\x00-\x1f]+"
OBJECT_STORE_URI: Final = rf"^{_OBJECT_STORE_FOLDER}$"
# Lowercase hosts without user and password, which would be shown in messages.
_HOST: Final = r"https://[-.0-9a-z]+(:[0-9]{1,5})?"
ARCHIVE_URL: Final = rf"{_HOST}/[^\x00-\x20?#\\]*[.][zZ][iI][pP](\?[^\x00-\x20#]*)?"
# A web server, or a folder of one, that a runtime allows.
ARCHIVE_BOUND: Final = rf"^{_HOST}(/[^\x00-\x20?#\\%]*)?$"
SOURCE_URI: Final = rf"^({_FOLDER}|{ARCHIVE_URL}|{BUILTIN_SPRITES}/[-_a-z0-9]+)$"
# A model repository on the Hugging Face Hub. No branch, and no folder in it.
HUB: Final = "hf://"
_HUB_NAME = r"[A-Za-z0-9][-._A-Za-z0-9]{0,95}"
OUTPUT_URI: Final = rf"^({_FOLDER}|{HUB}{_HUB_NAME}/{_HUB_NAME})$"
# What is the same place on every machine, so that it is not relative to the folder of a job file.
ABSOLUTE_URI: Final = rf"^({OBJECT_STORE}|{HUB}|https://|file:///|{BUILTIN})"


VOLUME: Final = "pvc://"
# A folder that a runtime allows. Braces are reserved for placeholders, of which there is one.
OUTPUT_BOUND: Final = rf"^(?:{OBJECT_STORE}|{VOLUME}|{HUB})([^{{}}:\x00-\x20]|\{{namespace\}})*$"


def volume_uri(claim: str, path: str) -> str:
    """A folder on a PersistentVolumeClaim, as shown to users. No field of a job accepts it."""
    return f"{VOLUME}{claim}/{path}"


def hub_repository(uri: str) -> str | None:
    """The ID of the repository that a URI names on the Hugging Face Hub, owner/name; None for any other URI."""
    return uri.removeprefix(HUB).rstrip("/") if uri.startswith(HUB) else None


def is_url(uri: str) -> bool:
    """Whether a URI names a scheme. All others are paths on this machine."""
    return "://" in uri
