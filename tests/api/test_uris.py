"""URIs that a job may name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dreambooth_api.output import Output
from dreambooth_api.runtime import Storage
from dreambooth_api.subject import ImageSource

CHAINS = ("s3://b/a::file:///etc", "s3://b::c", "gs://b/simplecache::file:///x", "file:///x::s3://b/y", "s3://::b")


@pytest.mark.parametrize("uri", CHAINS)
def test_chained_file_systems_are_rejected(uri: str) -> None:
    for model in (ImageSource, Output, Storage):
        with pytest.raises(ValidationError, match="pattern"):
            model(uri=uri)


def test_single_colons_are_accepted_in_uris() -> None:
    for uri in ("s3://b/a:b/c", "gs://arn:aws:b/x", "s3://b", "s3://b/", "file:///a:b"):
        assert ImageSource(uri=uri).uri == uri
