"""Means and bootstrap intervals over subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from dreambooth_api.fields import Strict

RESAMPLES = 10_000
LEVEL = 0.95


class Estimate(Strict):
    """A mean over subjects.

    Attributes:
        low, high: bounds of its 95% bootstrap interval; None for a single subject.
        subjects: mean over the seeds of each subject, by name.
    """

    mean: float
    low: float | None
    high: float | None
    subjects: Mapping[str, float]


def estimate(by_subject: Mapping[str, Sequence[float]]) -> Estimate:
    """The mean over subjects of the mean over the seeds of each.

    Subjects are resampled, not runs: seeds of one subject are not independent observations of a method.
    """
    subjects = {name: fmean(values) for name, values in by_subject.items()}
    low, high = bootstrap_interval(list(subjects.values()))
    return Estimate(mean=fmean(subjects.values()), low=low, high=high, subjects=subjects)


def bootstrap_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13). It is reproducible."""
    if len(values) < 2:
        return None, None
    indices = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    means = np.asarray(values)[indices].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
