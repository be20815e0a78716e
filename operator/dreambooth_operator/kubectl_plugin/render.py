"""Rendering of a job and its events for the terminal. Pure."""

from __future__ import annotations

from datetime import datetime

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dreambooth_api.status import printable
from dreambooth_operator.machinery.resources import Json, part, parts

_MARKS = {"True": ("✓", "green"), "False": ("·", "dim"), "Unknown": ("?", "yellow")}
_STYLES = {"Succeeded": "bold green", "Failed": "bold red", "Rejected": "bold red", "Running": "bold cyan"}


def render(job: Json, now: datetime) -> RenderableType:
    """Render phase, message, progress, conditions, scores and output."""
    status, metadata = part(job, "status"), part(job, "metadata")
    phase = status.get("phase", "Pending")
    head = Text.assemble(
        (f"{metadata.get('namespace')}/{metadata.get('name')}  ", "bold"),
        (printable(phase), _STYLES.get(phase, "bold")),
        f"  {_age(metadata.get('creationTimestamp'), now)}  attempt {status.get('attempts', 0)}",
    )
    rows: list[RenderableType] = [head]
    if message := status.get("message"):
        rows.append(_text(message))
    training = part(status, "training")
    if training.get("steps"):
        rows += _training(training)
    rows.append(_conditions(parts(status, "conditions")))
    if counts := part(status, "classImages"):
        rows.append(_text("class    " + ", ".join(f"{count} {name}" for name, count in counts.items())))
    if scores := part(status, "scores"):
        rows.append(_scores("", scores))
    rows += [_scores(f"{scores.get('identifier')}: ", scores) for scores in parts(status, "subjectScores")]
    if output := part(status, "output"):
        rows.append(_text(f"output   {output.get('uri', '')} {output.get('digest', '')}".rstrip()))
    return Group(*rows)


def _training(training: Json) -> list[RenderableType]:
    """A progress bar with the time that is left, and a line of details."""
    bar = Table.grid(padding=(0, 2))
    left = f"{training['eta']} left" if "eta" in training else ""
    progress = ProgressBar(total=training["steps"], completed=training.get("step", 0), width=30)
    bar.add_row("training", progress, _text(training.get("progress", "")), _text(left))
    fields = {
        "samples": "{} samples",
        "worldSize": "world size {}",
        "savedStep": "step {} saved",
        "selectedStep": "step {} selected",
        "loss": "loss {}",
        "stepsPerSecond": "{} steps/s",
    }
    details = [text.format(training[name]) for name, text in fields.items() if name in training]
    return [bar, _text("         " + "  ".join(details))] if details else [bar]


def _scores(subject: str, scores: Json) -> Text:
    values = "  ".join(f"{name} {score}" for name, score in scores.items() if name != "identifier")
    return _text(f"scores   {subject}{values}")


def is_finished(job: Json) -> bool:
    """Whether the job has succeeded or failed."""
    return part(job, "status").get("phase") in ("Succeeded", "Failed")


def event_rows(events: list[Json], now: datetime) -> Table:
    """Render events as a table, oldest first."""
    table = Table.grid(padding=(0, 2))
    for event in sorted(events, key=lambda e: e.get("lastTimestamp") or ""):
        style = "yellow" if event.get("type") == "Warning" else ""
        times = f"x{event['count']}" if event.get("count", 1) > 1 else ""
        age = _age(event.get("lastTimestamp"), now)
        table.add_row(age, _text(event.get("reason", ""), style=style), times, _text(event.get("message", "")))
    return table


def _conditions(conditions: list[Json]) -> Table:
    table = Table.grid(padding=(0, 2))
    for condition in conditions:
        mark, style = _MARKS[condition["status"]]
        if condition["type"] == "Failed":
            mark, style = "✗", "red"
        reason = "" if condition["reason"] in ("Done", condition["type"]) else condition["reason"]
        table.add_row(
            _text(mark, style=style), _text(condition["type"]), _text(reason), _text(condition.get("message", ""))
        )
    return table


def _text(content: str, style: str = "") -> Text:
    """Text in which neither markup nor control characters are interpreted: events can be created by others."""
    return Text(printable(content), style=style)


def _age(since: str | None, now: datetime) -> str:
    if not since:
        return ""
    seconds = int((now - datetime.fromisoformat(since)).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(0, seconds)}s"
