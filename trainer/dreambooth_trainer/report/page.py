"""The report as one HTML file that needs nothing else: no script, no network, no second file."""

from __future__ import annotations

import base64
import io
import os
import tempfile
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from dreambooth_trainer.report.contents import Report

PIXELATED_BELOW = 128
"""Pictures with shorter sides (sprites) are kept as they are, and the browser enlarges their pixels sharply."""
MOST_SIDE = 512
"""Longest side of a picture on the page, pixels."""


def write_report(report: Report, path: Path) -> None:
    """Write the page; whoever looks sees the old file or the whole new one.

    The page's own policy forbids scripts and every request, so that not even a hole in the escaping of prompts could
    send a picture anywhere.
    """
    text = render_report(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)  # mkstemp's 0600 would hide it from a web server
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def render_report(report: Report) -> str:
    """The page's text."""
    environment = template_environment(autoescape=True)
    environment.filters.update(picture=picture, duration=duration, percent=percent)
    total = sum(phase.seconds for phase in report.phases)
    return environment.get_template("template.html.j2").render(
        report=report,
        curves=Markup(report.curves_svg),  # noqa: S704 - made from numbers alone
        total_seconds=total,
        longest_seconds=max((phase.seconds for phase in report.phases), default=0.0) or 1.0,
    )


def template_environment(*, autoescape: bool) -> Environment:
    """Templates beside this file; a name that a template misspells is an error, not an empty string."""
    return Environment(
        loader=PackageLoader("dreambooth_trainer.report", package_path=""),
        autoescape=autoescape,  # noqa: S701 - off for the model card only, which is Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def picture(image: Image.Image, alt: str) -> Markup:
    """An `<img>` with the picture inside it."""
    small = max(image.size) < PIXELATED_BELOW
    shown = image.convert("RGB")
    shown.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
    # A sprite as JPEG would smear; a photograph as PNG would be ten times the size.
    buffer = io.BytesIO()
    shown.save(buffer, **({"format": "PNG", "optimize": True} if small else {"format": "JPEG", "quality": 85}))
    data = base64.b64encode(buffer.getvalue()).decode()
    kind, style = ("png", "sprite") if small else ("jpeg", "photo")
    template = '<img class="{}" src="data:image/{};base64,{}" alt="{}" width="{}" height="{}">'
    return Markup(template).format(style, kind, data, alt, shown.width, shown.height)  # noqa: S704 - format escapes


def duration(seconds: float) -> str:
    """0.4 s, 42 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def percent(value: float) -> str:
    """A share 0..1 as CSS length; outside values are clamped."""
    return f"{100 * min(1.0, max(0.0, value)):.1f}%"
