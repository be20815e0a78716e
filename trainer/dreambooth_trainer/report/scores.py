"""The scores of a model as rows that explain themselves."""

from __future__ import annotations

from dreambooth_trainer.metrics.encoders import Encoders
from dreambooth_trainer.metrics.scores import PAPER, Scores
from dreambooth_trainer.report.contents import ReferenceRow, ScoreRow

# Field of Scores, name, meaning, whether higher is better.
_ROWS: tuple[tuple[str, str, str, bool | None], ...] = (
    ("dino", "DINO", "Is it this very subject? Likeness to your images, details included.", True),
    ("clip_i", "CLIP-I", "Likeness to your images in broad strokes.", True),
    ("clip_t", "CLIP-T", "Does the picture show what the prompt asks for?", True),
    ("pres", "PRES", "Likeness of the class to your subject. High means that the class was lost to it.", False),
    ("div_class", "DIV, class", "Variety among pictures of the class. Low means that the class has narrowed.", True),
    ("div", "DIV, subject", "Variety among pictures of one prompt. One subject varies less than its class does.", None),
)


def score_rows(before: Scores | None, after: Scores) -> tuple[ScoreRow, ...]:
    """A row for each score that was measured; `before` is the base model's."""
    rows: list[ScoreRow] = []
    for field, name, meaning, higher_is_better in _ROWS:
        was: float | None = None if before is None else getattr(before, field)
        now: float | None = getattr(after, field)
        if now is not None:
            rows.append(ScoreRow(name, meaning, was, now, higher_is_better))
    return tuple(rows)


def reference_rows(encoders: Encoders) -> tuple[ReferenceRow, ...]:
    """The paper's table, if the scores come from the paper's encoders; else nothing, as the scales differ."""
    if not encoders.comparable_with_paper:
        return ()
    return tuple(ReferenceRow(row.name, row.dino, row.clip_i, row.clip_t) for row in PAPER)
