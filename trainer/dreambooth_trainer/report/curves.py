"""Loss curves as SVG. matplotlib's objects only: pyplot would keep figures in a global list."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

MOST_POINTS = 1000
"""Points a line: more cannot be seen, and the page carries them all."""
# Text, axes and the total take the page's text colour, light or dark: this stands for it until the SVG is written.
_TEXT = "#010203"
_INSTANCE, _PRIOR = "#e8590c", "#1c7ed6"

Floats = NDArray[np.float64]


class TrainingRecord(Protocol):
    """One optimizer step; `engine.loop.Record` is one."""

    @property
    def step(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def instance_loss(self) -> float: ...
    @property
    def prior_loss(self) -> float | None: ...
    @property
    def learning_rate(self) -> float: ...


def smooth(values: Floats, window: int) -> Floats:
    """Centred moving mean of `values` [N] over `window` steps, [N]; NaNs and what lies beyond the ends do not count."""
    window = min(window, len(values))
    there = np.isfinite(values)
    ones = np.ones(window)
    total = np.convolve(np.where(there, values, 0.0), ones, mode="same")
    count = np.convolve(there.astype(np.float64), ones, mode="same")
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def loss_curves(records: Sequence[TrainingRecord]) -> str:
    """An `<svg>` element with total, instance and prior loss over steps: every step faint, their running mean strong.

    The learning rate gets a panel of its own if it varies. A step that was trained twice, after a crash, counts once.
    Equal records give equal text. No records give an empty string.
    """
    by_step = {record.step: record for record in records}
    ordered = [by_step[step] for step in sorted(by_step)]
    if not ordered:
        return ""
    rates = np.array([r.learning_rate for r in ordered])
    varies = bool(np.ptp(rates) > 0)
    figure = Figure(figsize=(6.4, 4.0 if varies else 3.2), layout="constrained")
    panels = figure.subplots(2 if varies else 1, 1, sharex=True, squeeze=False, height_ratios=[4, 1] if varies else [1])
    steps = np.array([r.step for r in ordered], dtype=np.float64)
    _draw_losses(panels[0, 0], steps, ordered)
    if varies:
        panels[1, 0].plot(steps, rates, color=_TEXT, linewidth=1)
        panels[1, 0].set_title("learning rate", loc="left", fontsize="medium", color=_TEXT)
    panels[-1, 0].set_xlabel("step")
    for axes in panels[:, 0]:
        _plain(axes)
    return _svg(figure)


def _draw_losses(axes: Axes, steps: Floats, records: Sequence[TrainingRecord]) -> None:
    window = max(1, len(records) // 25)
    stride = -(-len(records) // MOST_POINTS)
    lines: list[tuple[str, str, list[float]]] = [("total", _TEXT, [r.loss for r in records])]
    if any(r.prior_loss is not None for r in records):
        lines.append(("instance: your images", _INSTANCE, [r.instance_loss for r in records]))
        prior_losses = [float("nan") if r.prior_loss is None else r.prior_loss for r in records]
        lines.append(("prior: the class", _PRIOR, prior_losses))
    for label, colour, values in lines:
        raw = np.array(values, dtype=np.float64)
        axes.plot(steps[::stride], raw[::stride], color=colour, alpha=0.18, linewidth=0.8)
        marker = "o" if len(steps) == 1 else ""
        axes.plot(
            steps[::stride], smooth(raw, window)[::stride], color=colour, linewidth=1.8, label=label, marker=marker
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("loss")
    axes.legend(frameon=False, labelcolor=_TEXT, loc="upper right", ncols=3, fontsize="medium")


def _plain(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_TEXT)
    axes.tick_params(colors=_TEXT)
    axes.xaxis.label.set_color(_TEXT)
    axes.yaxis.label.set_color(_TEXT)
    axes.grid(axis="y", color=_TEXT, alpha=0.12, linewidth=0.8)


def _svg(figure: Figure) -> str:
    figure.patch.set_alpha(0)
    written = io.StringIO()
    # Text stays text: small, selectable, in the page's font. A fixed salt and no date: equal input, equal bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dreambooth"}):
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None})
    svg = written.getvalue()
    return svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
