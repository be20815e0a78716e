"""The bound of archives of images on web servers. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dreambooth_api.job import JobSpec
from dreambooth_api.runtime import RuntimeSpec
from dreambooth_operator.controller.bounds_outputs import is_below

# Encoded dots and slashes: servers disagree about their meaning.
_ENCODED = re.compile("%(2e|2f|5c)", re.IGNORECASE)


def exceeded_sources(spec: JobSpec, runtime: RuntimeSpec, by: str) -> Iterator[str]:
    """A message for each archive on a web server that the runtime does not allow.

    Args:
        by: the runtime, for the message.
    """
    allowed = runtime.bounds.image_sources
    pairs = zip(spec.subject_fields, spec.all_subjects, strict=True)
    sources = {f"{path}.images": subject.images for path, subject in pairs}
    if spec.prior_preservation.images:
        sources["spec.priorPreservation.images"] = spec.prior_preservation.images
    for path, source in sources.items():
        url = (source.uri or "").partition("?")[0]
        if not url.startswith("https://"):
            continue
        if _ENCODED.search(url) or not any(is_below(url, entry) for entry in allowed):
            remedy = (
                f"use an archive below one of: {', '.join(allowed)}" if allowed else "use an object store or a volume"
            )
            yield f"{path}.uri: {url!r} is not allowed by {by}; {remedy}"
