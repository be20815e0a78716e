"""What a wait is for: a condition, a phase, or the deletion of a job. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_api.status import Phase
from dreambooth_operator.machinery.resources import Json, part, parts


@dataclass(frozen=True)
class Wanted:
    """What to wait for.

    Attributes:
        kind: condition, phase or delete.
        name: the condition's type, or the phase.
        status: status that the condition must have.
    """

    kind: str
    name: str = ""
    status: str = "true"


def parse_wanted(text: str) -> Wanted:
    """Parse the value of --for. Case of names is ignored, as in kubectl. Pure.

    Raises:
        ValueError: it is none of the forms.
    """
    kind, _, rest = text.partition("=")
    name, _, status = rest.partition("=")
    if text == "delete":
        return Wanted("delete")
    if kind == "condition" and name:
        return Wanted(kind, name.lower(), (status or "true").lower())
    phases = {phase.lower() for phase in Phase}
    if kind == "phase" and rest.lower() in phases:
        return Wanted(kind, rest.lower())
    raise ValueError(
        f"{text!r} is none of condition=TYPE, condition=TYPE=STATUS, phase=PHASE, delete; "
        f"for example condition=Succeeded. Phases: {', '.join(Phase)}"
    )


def is_met(job: Json, wanted: Wanted) -> bool:
    """Whether a job has the condition or the phase. Pure."""
    status = part(job, "status")
    if wanted.kind == "phase":
        return str(status.get("phase", "")).lower() == wanted.name
    return any(
        (str(c.get("type")).lower(), str(c.get("status")).lower()) == (wanted.name, wanted.status)
        for c in parts(status, "conditions")
    )
