"""The bound of a job's output: allowed prefixes of URIs and volumes, compared by path segments. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from dreambooth_api.fields import VolumeClaim
from dreambooth_api.job import JobSpec
from dreambooth_api.runtime import NAMESPACE_PLACEHOLDER, RuntimeSpec
from dreambooth_api.uris import volume_uri
from dreambooth_operator.machinery.resources import Key


def default_claim(runtime: RuntimeSpec, job: Key) -> VolumeClaim | None:
    """The folder that a job works in if it does not set output.pvc; None if the runtime has no volume."""
    claim = runtime.storage.claim_name
    return VolumeClaim(claim_name=claim, path=job.name) if claim else None


def default_uri(runtime: RuntimeSpec, job: Key) -> str | None:
    """Where the model of a job is uploaded if it sets no output; None if the runtime has no object store."""
    return f"{runtime.storage.uri.rstrip('/')}/{job.namespace}/{job.name}" if runtime.storage.uri else None


def exceeded_outputs(spec: JobSpec, runtime: RuntimeSpec, job: Key, by: str) -> Iterator[str]:
    """A message for each output that the runtime does not allow.

    Args:
        by: the runtime, for the message.
    """
    output, allowed = spec.output, runtime.bounds.outputs
    found: list[tuple[str, str]] = []
    if output.uri is not None and output.uri != default_uri(runtime, job):
        found.append(("uri", output.uri))
    if output.pvc is not None:
        chosen = VolumeClaim(claim_name=output.pvc.claim_name, path=output.pvc.path or job.name)
        if chosen != default_claim(runtime, job):
            field = "path" if chosen.claim_name == runtime.storage.claim_name else "claimName"
            found.append((f"pvc.{field}", volume_uri(chosen.claim_name, chosen.path)))
    for field, uri in found:
        if not any(is_below(uri, entry.replace(NAMESPACE_PLACEHOLDER, job.namespace)) for entry in allowed):
            own = ", ".join(entry.replace(NAMESPACE_PLACEHOLDER, job.namespace) for entry in allowed)
            remedy = f"remove it, or use a folder below one of: {own}" if own else "remove it"
            yield f"spec.output.{field}: {uri!r} is not allowed by {by}; {remedy}"


def is_below(uri: str, folder: str) -> bool:
    """Whether a URI is a folder or below it. `s3://models/team` does not contain `s3://models/team-b`.

    A URI with empty segments or with dots as segments is below no folder: clients disagree about its meaning.
    """
    scheme, segments = _split(uri)
    allowed_scheme, allowed = _split(folder)
    if scheme != allowed_scheme or any(segment in ("", ".", "..") for segment in segments):
        return False
    return segments[: len(allowed)] == allowed


def _split(uri: str) -> tuple[str, list[str]]:
    scheme, _, rest = uri.partition("://")
    return scheme, rest.rstrip("/").split("/") if rest.rstrip("/") else []
