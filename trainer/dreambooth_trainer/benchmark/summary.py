"""The tables of a benchmark: means over subjects or pairs with intervals, beside published results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from dreambooth_api.fields import Strict
from dreambooth_trainer.benchmark.kind import COSTS, Benchmark, Column
from dreambooth_trainer.benchmark.results import RunResult
from dreambooth_trainer.benchmark.statistics import Estimate, estimate
from dreambooth_trainer.metrics.scores import comparable_with_paper

BASE = "Base model"
OF_CLASS_NOUN = ("clipT", "pres", "classDiversity")
"""Scores whose prompts have the class noun only."""
_KILOBYTE = 1e3


class Row(Strict):
    """A row: the photos, the base model or a method, with an estimate by the key of the column."""

    name: str
    values: Mapping[str, Estimate]


class Claim(Strict):
    """A comparison of a publication: the first method has a higher mean than the second.

    Attributes:
        metric: key of the column.
    """

    first: str
    second: str
    metric: str
    difference: Estimate

    @property
    def reproduced(self) -> bool:
        """Whether the whole interval of the difference has the direction of the publication."""
        return self.difference.low is not None and self.difference.low > 0

    @property
    def verdict(self) -> str:
        """Whether the claim is reproduced, is not, or is not decided by the jobs."""
        if self.reproduced:
            return "reproduced"
        if self.difference.high is None:
            return "not decided by one subject"
        return "NOT reproduced" if self.difference.high < 0 else "not decided (the interval includes 0)"


class Summary(Strict):
    """Everything that the table shows, and each run.

    Attributes:
        jobs: number of jobs of the benchmark, of which `runs` have finished.
        differences: scores of each other method minus those of the first, over the subjects and seeds that both have.
    """

    base_model: str
    dataset: str
    jobs: int
    comparable_with_paper: bool
    rows: tuple[Row, ...]
    differences: tuple[Row, ...]
    claims: tuple[Claim, ...]
    runs: tuple[RunResult, ...]


def summarize(benchmark: Benchmark, results: Sequence[RunResult], dataset: str, jobs: int) -> Summary:
    """Summarize the finished jobs of a benchmark, at least one."""
    variants = list(dict.fromkeys(result.variant for result in results))
    by_variant = {name: [result for result in results if result.variant == name] for name in variants}
    # The base model has other scores with other class nouns, and a copy is one of the images of the job.
    usual = [result for result in results if result.class_noun in (None, "Right")] or results
    most_images = max(result.images or 0 for result in usual)
    usual = [result for result in usual if (result.images or 0) == most_images]
    rows = [
        Row(name=benchmark.photos, values=_estimates(usual, lambda result: result.real_images)),
        Row(name=BASE, values=_estimates(usual, lambda result: result.base)),
        *(Row(name=name, values=_estimates(own, _values)) for name, own in by_variant.items()),
    ]
    differences = [
        Row(name=f"{name} - {variants[0]}", values=_differences(benchmark, by_variant[name], by_variant[variants[0]]))
        for name in variants[1:]
    ]
    claims = [
        Claim(first=first, second=second, metric=metric, difference=compared)
        for first, second, metric in benchmark.claims
        if (compared := _differences(benchmark, by_variant.get(first, []), by_variant.get(second, [])).get(metric))
    ]
    return Summary(
        base_model=results[0].base_model,
        dataset=dataset,
        jobs=jobs,
        comparable_with_paper=all(comparable_with_paper(r.dino_encoder, r.clip_encoder) for r in results),
        rows=tuple(rows),
        differences=tuple(differences),
        claims=tuple(claims),
        runs=tuple(results),
    )


def _differences(benchmark: Benchmark, first: Sequence[RunResult], second: Sequence[RunResult]) -> dict[str, Estimate]:
    """Scores of the first minus those of the second, of the subjects and seeds that both have.

    Scores with other class nouns in the prompts cannot be compared.
    """
    left, right = ({(result.subject, result.seed): result for result in results} for results in (first, second))
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for both in sorted(left.keys() & right.keys()):
        one, other = left[both], right[both]
        excluded = OF_CLASS_NOUN if one.class_noun != other.class_noun else ()
        for key in (column.key for column in benchmark.columns if column not in COSTS):
            if key not in excluded and key in one.trained and key in other.trained:
                found[key][one.subject].append(one.trained[key] - other.trained[key])
    return {key: estimate(by_subject) for key, by_subject in found.items()}


def _values(result: RunResult) -> Mapping[str, float]:
    return {
        **result.trained,
        "trainingSeconds": result.phase_seconds["Train"],
        "publishedKilobytes": result.published_bytes / _KILOBYTE,
    }


def _estimates(
    results: Sequence[RunResult], values_of: Callable[[RunResult], Mapping[str, float]]
) -> dict[str, Estimate]:
    """An estimate of each value, over the runs that have it."""
    by_key: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for key, value in values_of(result).items():
            by_key[key][result.subject].append(value)
    return {key: estimate(by_subject) for key, by_subject in by_key.items()}


def columns_of(benchmark: Benchmark, rows: Sequence[Row]) -> list[Column]:
    """The columns in which a row has a value."""
    return [column for column in benchmark.columns if any(column.key in row.values for row in rows)]


def as_markdown(benchmark: Benchmark, summary: Summary) -> str:
    """The tables as Markdown, with what does not have the direction of the paper first."""
    noun = benchmark.noun
    names = {result.subject for result in summary.runs}
    seeds = {result.seed for result in summary.runs}
    lines = [f"- {claim}" for claim in as_claims(benchmark, summary)]
    lines += [""] * bool(lines)
    lines += [
        f"Finished jobs: {len(summary.runs)} of {summary.jobs}; {noun}s: {len(names)}; seeds: {len(seeds)}. Means "
        f"over {noun}s, with 95% bootstrap intervals over {noun}s in parentheses.",
        "",
        *_estimate_table(benchmark, summary.rows),
        "",
        *_difference_table(benchmark, summary),
        published_note(benchmark, summary),
        "",
        *_table(benchmark.published.headings, benchmark.published.rows),
        "",
        *_case_table(benchmark, summary),
    ]
    return "\n".join(lines) + "\n"


def as_claims(benchmark: Benchmark, summary: Summary) -> list[str]:
    """A sentence for each claim, those that are not reproduced first."""
    return [
        f"{benchmark.headings[claim.metric]} of {claim.first} above that of {claim.second}, as in the paper: "
        f"{claim.verdict}, difference {as_cell(claim.difference, 3, sign='+')}."
        for claim in sorted(summary.claims, key=lambda claim: claim.reproduced)
    ]


def _difference_table(benchmark: Benchmark, summary: Summary) -> list[str]:
    if not summary.differences:
        return []
    heading = f"Differences over the {benchmark.noun}s and seeds that both have:"
    return [heading, "", *_estimate_table(benchmark, summary.differences, sign="+"), ""]


def _estimate_table(benchmark: Benchmark, rows: Sequence[Row], sign: str = "") -> list[str]:
    columns = columns_of(benchmark, rows)
    cells = [
        [row.name, *(as_cell(row.values.get(column.key), column.decimals, sign) for column in columns)] for row in rows
    ]
    return _table(["", *(column.heading for column in columns)], cells)


def published_note(benchmark: Benchmark, summary: Summary) -> str:
    """What the published results can be used for."""
    published = benchmark.published
    return published.note if summary.comparable_with_paper else published.note_for_other_encoders


def _case_table(benchmark: Benchmark, summary: Summary) -> list[str]:
    keys = [key for key in benchmark.per_case if any(key in row.values for row in summary.rows)]
    rows = [
        [name, row.name, *(_value(row.values.get(key), name) for key in keys)]
        for name in dict.fromkeys(result.subject for result in summary.runs)
        for row in summary.rows
        if any(name in value.subjects for value in row.values.values())
    ]
    headings = [benchmark.noun.capitalize(), "", *(benchmark.headings[key] for key in keys)]
    return [f"Each {benchmark.noun}, mean over its seeds:", "", *_table(headings, rows)]


def _value(estimated: Estimate | None, subject: str) -> str:
    value = None if estimated is None else estimated.subjects.get(subject)
    return "-" if value is None else f"{value:.3f}"


def as_cell(estimated: Estimate | None, decimals: int, sign: str = "") -> str:
    """A mean with its interval, or a hyphen.

    Args:
        sign: "+" to write the sign of a positive mean.
    """
    if estimated is None:
        return "-"
    mean = f"{estimated.mean:{sign}.{decimals}f}"
    if estimated.low is None or estimated.high is None:
        return mean
    return f"{mean} ({estimated.low:.{decimals}f} to {estimated.high:.{decimals}f})"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]
