"""Renders the report as one self-contained HTML file: no scripts, no network access, no other files."""

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
"""Images with shorter sides, in pixels, are sprites: lossless, and enlarged by the browser without interpolation."""
MAX_SIDE = 512
"""Maximum side of an image on the page, pixels. Larger images are scaled down."""


def write_report(report: Report, path: Path, *, photos: bool = True) -> None:
    """Write the page atomically.

    Args:
        photos: show the images of the subjects. Without them, the page can be published.

    Its Content-Security-Policy forbids scripts and requests. Even if the escaping of prompts failed, the page could not
    send images anywhere.
    """
    text = render_report(report, photos=photos)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)  # a web server cannot read mkstemp's 0600
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def render_report(report: Report, *, photos: bool = True) -> str:
    """Render the page as HTML, with or without the images of the subjects."""
    environment = template_environment(autoescape=True)
    environment.filters.update(img=img_tag, duration=duration, percent=percent)
    total = sum(phase.seconds for phase in report.phases)
    return environment.get_template("template.html.j2").render(
        report=report,
        photos=photos,
        curves=Markup(report.curves_svg),  # noqa: S704 - contains no user input
        scores_svg=Markup(report.course.scores_svg if report.course else ""),  # noqa: S704 - contains no user input
        total_seconds=total,
        longest_seconds=max((phase.seconds for phase in report.phases), default=0.0) or 1.0,
    )


def template_environment(*, autoescape: bool) -> Environment:
    """The Jinja environment of the templates in this package. An undefined name in a template is an error."""
    return Environment(
        loader=PackageLoader("dreambooth_trainer.report", package_path=""),
        autoescape=autoescape,  # noqa: S701 - disabled for the model card only, which is Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def img_tag(image: Image.Image, alt: str) -> Markup:
    """An `<img>` element with the image as a data URL."""
    small = max(image.size) < PIXELATED_BELOW
    shown = image.convert("RGB")
    shown.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    # PNG for sprites, which JPEG would blur; JPEG for photos, which would be ten times larger as PNG.
    buffer = io.BytesIO()
    shown.save(buffer, **({"format": "PNG", "optimize": True} if small else {"format": "JPEG", "quality": 85}))
    data = base64.b64encode(buffer.getvalue()).decode()
    kind, style = ("png", "sprite") if small else ("jpeg", "photo")
    template = '<img class="{}" src="data:image/{};base64,{}" alt="{}" width="{}" height="{}">'
    return Markup(template).format(style, kind, data, alt, shown.width, shown.height)  # noqa: S704 - format escapes


def duration(seconds: float) -> str:
    """Format a duration: 0.4 s, 42 s, 3 min 05 s, 2 h 07 min."""
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
    """Format a fraction in [0, 1] as a CSS length. Other values are clamped."""
    return f"{100 * min(1.0, max(0.0, value)):.1f}%"
