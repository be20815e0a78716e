"""A job as HTML, for notebooks. All text is escaped: names, messages and reasons can be written by others."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from dreambooth.backend import Object
from dreambooth_api.status import JobStatus, Phase, parse_status, printable

MAX_IMAGE_BYTES = 4 * 2**20
_COLORS = {Phase.SUCCEEDED: "#1a7f37", Phase.FAILED: "#cf222e", Phase.REJECTED: "#cf222e", Phase.RUNNING: "#0969da"}
_MARKS = {"True": "✓", "False": "·", "Unknown": "?"}


def job_html(job: Object, grid: Path | None) -> str:
    """Phase, progress, conditions and scores of a job, and an image with its results.

    Args:
        grid: a PNG file.
    """
    status = parse_status(job.get("status") or {})
    metadata: Object = job.get("metadata") or {}
    color = _COLORS.get(status.phase, "#57606a")
    name, phase = _text(metadata.get("name", "")), _text(status.phase)
    head = f'<b>{name}</b> <span style="color:{color}">{phase}</span> {_text(status.message)}'
    rows = [f"<div>{head}</div>", _progress(status), _conditions(status), _scores(status)]
    if status.output and status.output.uri:
        rows.append(f"<div>Output: <code>{_text(status.output.uri)}</code></div>")
    rows.append(_image(grid))
    return f'<div style="font-family:sans-serif">{"".join(rows)}</div>'


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _progress(status: JobStatus) -> str:
    training = status.training
    if training is None or not training.steps:
        return ""
    step = training.step or 0
    facts = [f"{step}/{training.steps} steps"]
    facts += [f"loss {training.loss}"] if training.loss is not None else []
    facts += [f"{training.eta} left"] if training.eta else []
    return f'<div><progress value="{step}" max="{training.steps}"></progress> {_text(", ".join(facts))}</div>'


def _conditions(status: JobStatus) -> str:
    marks = (f"{_MARKS[condition.status]} {_text(condition.type)}" for condition in status.conditions)
    return f"<div>{' &nbsp; '.join(marks)}</div>" if status.conditions else ""


def _scores(status: JobStatus) -> str:
    """A table with a row for each subject."""
    rows = [("", status.scores)] if status.scores else []
    rows += [(scores.identifier, scores) for scores in status.subject_scores or []]
    if not rows:
        return ""
    fields = list(type(status.scores or rows[0][1]).model_fields)
    fields = [field for field in fields if field != "identifier" and any(getattr(s, field, None) for _, s in rows)]
    head = "".join(f"<th>{_text(field)}</th>" for field in ("", *fields))
    body = "".join(
        f"<tr><td>{_text(subject)}</td>"
        + "".join(f"<td>{_text(getattr(scores, field) or '')}</td>" for field in fields)
        + "</tr>"
        for subject, scores in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _image(path: Path | None) -> str:
    try:
        if path is None or path.stat().st_size > MAX_IMAGE_BYTES:
            return ""
        content = path.read_bytes()
    except OSError:
        return ""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return ""
    return (
        f'<img style="max-width:100%" alt="results" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
    )
