"""The table of a benchmark: means over subjects with intervals, beside the results of the paper."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dreambooth_api.fields import Strict
from dreambooth_api.metrics import METRICS
from dreambooth_trainer.benchmark.copies import COPY
from dreambooth_trainer.benchmark.results import RunResult
from dreambooth_trainer.benchmark.statistics import Estimate, difference, estimate
from dreambooth_trainer.metrics.scores import PAPER, comparable_with_paper

BASE, REAL = "Base model", "Real images"
_KILOBYTE = 1e3


@dataclass(frozen=True)
class Column:
    """A column: key in the JSON file, heading, and number of decimals."""

    key: str
    heading: str
    decimals: int = 3


_ARROWS = {True: " ↑", False: " ↓", None: ""}
COLUMNS: Final = (
    *(Column(m.name, m.label + _ARROWS[m.higher_is_better]) for m in METRICS if m.higher_is_better is not None),
    Column("nearest", "Nearest training image ↓"),
    Column("copies", f"Copies (≥ {COPY}) ↓"),
    Column("trainingSeconds", "Training, s", 0),
    Column("publishedKilobytes", "Published, kB", 0),
)
PER_SUBJECT: Final = ("dino", "clipI", "clipT", "pres")
# The claims of the paper's table 1 and of its section on prior preservation: first method, second, metric.
CLAIMS: Final = (("Full", "TextualInversion", "dino"), ("Full", "TextualInversion", "clipT"))


class Row(Strict):
    """A row: the real images, the base model or a method, with an estimate by the key of the column."""

    name: str
    values: Mapping[str, Estimate]


class Claim(Strict):
    """A comparison that the paper makes: the first method scores higher than the second."""

    first: str
    second: str
    metric: str
    difference: Estimate

    @property
    def reproduced(self) -> bool:
        """Whether the mean difference has the direction of the paper."""
        return self.difference.mean > 0


class Summary(Strict):
    """Everything that the table shows, and each run.

    Attributes:
        jobs: number of jobs of the benchmark, of which `runs` have finished.
    """

    base_model: str
    dataset: str
    jobs: int
    comparable_with_paper: bool
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    runs: tuple[RunResult, ...]


def summarize(results: Sequence[RunResult], dataset: str, jobs: int) -> Summary:
    """Summarize the finished jobs of a benchmark, at least one."""
    methods = list(dict.fromkeys(result.method for result in results))
    by_method = {method: [result for result in results if result.method == method] for method in methods}
    rows = [
        Row(name=REAL, values=_estimates(results, lambda result: result.real_images)),
        Row(name=BASE, values=_estimates(results, lambda result: result.base)),
        *(Row(name=method, values=_estimates(own, _values)) for method, own in by_method.items()),
    ]
    values = {row.name: row.values for row in rows}
    claims = [
        Claim(first=first, second=second, metric=metric, difference=compared)
        for first, second, metric in CLAIMS
        if (compared := _difference(values, first, second, metric)) is not None
    ]
    return Summary(
        base_model=results[0].base_model,
        dataset=dataset,
        jobs=jobs,
        comparable_with_paper=all(comparable_with_paper(r.dino_encoder, r.clip_encoder) for r in results),
        rows=tuple(rows),
        claims=tuple(claims),
        runs=tuple(results),
    )


def _difference(rows: Mapping[str, Mapping[str, Estimate]], first: str, second: str, metric: str) -> Estimate | None:
    """The difference of two methods in a metric; None if no subject has been run with both."""
    one, other = (rows.get(name, {}).get(metric) for name in (first, second))
    return None if one is None or other is None else difference(one, other)


def _values(result: RunResult) -> Mapping[str, float]:
    return {
        **result.trained,
        "trainingSeconds": result.phase_seconds["Train"],
        "publishedKilobytes": result.published_bytes / _KILOBYTE,
    }


def _estimates(
    results: Sequence[RunResult], values_of: Callable[[RunResult], Mapping[str, float]]
) -> dict[str, Estimate]:
    """An estimate of each value that all runs have."""
    by_key: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for key, value in values_of(result).items():
            by_key[key][result.subject].append(value)
    return {key: estimate(by_subject) for key, by_subject in by_key.items()}


def as_markdown(summary: Summary) -> str:
    """The tables as Markdown, with what does not have the direction of the paper first."""
    labels = {metric.name: metric.label for metric in METRICS}
    subjects = {result.subject for result in summary.runs}
    seeds = {result.seed for result in summary.runs}
    lines = [f"- {claim}" for claim in as_claims(summary)]
    lines += [""] * bool(lines)
    lines += [
        f"Finished jobs: {len(summary.runs)} of {summary.jobs}; subjects: {len(subjects)}; seeds: {len(seeds)}. Means "
        "over subjects, with 95% bootstrap intervals over subjects in parentheses.",
        "",
        *_main_table(summary),
        "",
        *_paper_table(summary),
        "",
        *_subject_table(summary, labels),
    ]
    return "\n".join(lines) + "\n"


def as_claims(summary: Summary) -> list[str]:
    """A sentence for each claim, those that are not reproduced first."""
    labels = {metric.name: metric.label for metric in METRICS}
    return [
        f"{labels[claim.metric]} of {claim.first} above that of {claim.second}, as in the paper: "
        f"{'reproduced' if claim.reproduced else 'NOT reproduced'}, difference {claim.difference.mean:+.3f}"
        f"{_interval(claim.difference, 3)}."
        for claim in sorted(summary.claims, key=lambda claim: claim.reproduced)
    ]


def _main_table(summary: Summary) -> list[str]:
    columns = [column for column in COLUMNS if any(column.key in row.values for row in summary.rows)]
    rows = [
        [row.name, *(as_cell(row.values.get(column.key), column.decimals) for column in columns)]
        for row in summary.rows
    ]
    return _table(["", *(column.heading for column in columns)], rows)


def _paper_table(summary: Summary) -> list[str]:
    rows = [[row.name, f"{row.dino:.3f}", f"{row.clip_i:.3f}", f"{row.clip_t or '-'}"] for row in PAPER]
    return [paper_note(summary), "", *_table(["", "DINO", "CLIP-I", "CLIP-T"], rows)]


def paper_note(summary: Summary) -> str:
    """What the numbers of the paper can be used for."""
    if summary.comparable_with_paper:
        return "The paper's table 1, for comparison:"
    return (
        "The paper's table 1. Its encoders are others, so its numbers are on another scale: compare the order of the "
        "methods, not the numbers."
    )


def _subject_table(summary: Summary, labels: Mapping[str, str]) -> list[str]:
    keys = [key for key in PER_SUBJECT if any(key in row.values for row in summary.rows)]
    rows = [
        [subject, row.name, *(_value(row.values.get(key), subject) for key in keys)]
        for subject in dict.fromkeys(result.subject for result in summary.runs)
        for row in summary.rows
        if any(subject in value.subjects for value in row.values.values())
    ]
    return ["Each subject, mean over its seeds:", "", *_table(["Subject", "", *(labels[key] for key in keys)], rows)]


def _value(estimated: Estimate | None, subject: str) -> str:
    value = None if estimated is None else estimated.subjects.get(subject)
    return "-" if value is None else f"{value:.3f}"


def as_cell(estimated: Estimate | None, decimals: int) -> str:
    """A mean with its interval, or a hyphen."""
    return "-" if estimated is None else f"{estimated.mean:.{decimals}f}{_interval(estimated, decimals)}"


def _interval(estimated: Estimate, decimals: int) -> str:
    if estimated.low is None or estimated.high is None:
        return ""
    return f" ({estimated.low:.{decimals}f} to {estimated.high:.{decimals}f})"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]
