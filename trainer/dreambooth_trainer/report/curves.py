"""Loss curves as SVG. Does not use pyplot, which keeps figures in a global list."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

MAX_POINTS = 1000
"""Maximum number of points per line. More would not be visible, and would make the page larger."""
# Placeholder for the text color of the page, light or dark. `_svg` replaces it by currentColor.
_TEXT = "#010203"
_INSTANCE, _PRIOR = "#e8590c", "#1c7ed6"

Floats = NDArray[np.float64]


class LossRecord(Protocol):
    """One optimizer step, as `training.messages.StepRecord`."""

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
    """Centered moving average of `values` [N] over `window` steps, [N]. Values that are not finite are ignored."""
    window = min(window, len(values))
    finite = np.isfinite(values)
    ones = np.ones(window)
    total = np.convolve(np.where(finite, values, 0.0), ones, mode="same")
    count = np.convolve(finite.astype(np.float64), ones, mode="same")
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def loss_curves(records: Sequence[LossRecord], title: str = "") -> str:
    """Plot total, instance and prior loss over steps, with their moving averages, as an `<svg>` element.

    A second panel shows the learning rate if it varies. Of a step that was repeated after a crash, the last record is
    used. The output is deterministic. Without records it is an empty string.
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
    _plot_losses(panels[0, 0], steps, ordered)
    panels[0, 0].set_title(title, loc="left", fontsize="medium", color=_TEXT)
    if varies:
        panels[1, 0].plot(steps, rates, color=_TEXT, linewidth=1)
        panels[1, 0].set_title("Learning rate", loc="left", fontsize="medium", color=_TEXT)
    panels[-1, 0].set_xlabel("Step")
    for axes in panels[:, 0]:
        _style_axes(axes)
    return _svg(figure)


def score_curves(scores: Mapping[int, Mapping[str, float]], selected: int | None = None) -> str:
    """Plot scores over steps as an `<svg>` element, a line for each metric. Empty with fewer than two steps.

    Args:
        scores: by step and label of the metric.
        selected: a step to mark.
    """
    steps = sorted(scores)
    if len(steps) < 2:
        return ""
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.subplots()
    for label, color in zip(scores[steps[0]], (_INSTANCE, _PRIOR, _TEXT), strict=False):
        values = [scores[step].get(label, float("nan")) for step in steps]
        axes.plot(steps, values, color=color, linewidth=1.8, marker="o", markersize=3, label=label)
    if selected is not None:
        axes.axvline(selected, color=_TEXT, linewidth=1, linestyle=":", label=f"step {selected}")
    axes.set_xlabel("Step")
    axes.set_ylabel("Score")
    axes.legend(frameon=False, labelcolor=_TEXT, loc="best", ncols=4, fontsize="medium")
    _style_axes(axes)
    return _svg(figure)


def _plot_losses(axes: Axes, steps: Floats, records: Sequence[LossRecord]) -> None:
    window = max(1, len(records) // 25)
    stride = -(-len(records) // MAX_POINTS)
    lines: list[tuple[str, str, list[float]]] = [("Total", _TEXT, [r.loss for r in records])]
    if any(r.prior_loss is not None for r in records):
        lines.append(("Instance images", _INSTANCE, [r.instance_loss for r in records]))
        prior_losses = [float("nan") if r.prior_loss is None else r.prior_loss for r in records]
        lines.append(("Prior", _PRIOR, prior_losses))
    for label, color, values in lines:
        raw = np.array(values, dtype=np.float64)
        axes.plot(steps[::stride], raw[::stride], color=color, alpha=0.18, linewidth=0.8)
        marker = "o" if len(steps) == 1 else ""
        smoothed = smooth(raw, window)
        axes.plot(steps[::stride], smoothed[::stride], color=color, linewidth=1.8, label=label, marker=marker)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("Loss")
    axes.legend(frameon=False, labelcolor=_TEXT, loc="upper right", ncols=3, fontsize="medium")


def _style_axes(axes: Axes) -> None:
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
    # svg.fonttype none keeps text as text, in the font of the page. Fixed salt, no date: the output is deterministic.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dreambooth"}):
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None})
    svg = written.getvalue()
    return svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
