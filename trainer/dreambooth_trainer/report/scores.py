"""Rows of the report's score table."""

from __future__ import annotations

from dreambooth_api.metrics import METRICS
from dreambooth_trainer.metrics.scores import Scores
from dreambooth_trainer.report.contents import ScoreRow


def score_rows(before: Scores | None, after: Scores) -> tuple[ScoreRow, ...]:
    """A row for each metric of the trained model.

    Args:
        before: scores of the base model.
        after: scores of the trained model.
    """
    return tuple(
        ScoreRow(
            name=metric.label,
            meaning=metric.meaning,
            before=None if before is None else before.values.get(metric.name),
            after=after.values[metric.name],
            higher_is_better=metric.higher_is_better,
            real_images=after.real_images.get(metric.name),
        )
        for metric in METRICS
        if metric.name in after.values
    )
