"""Reports of a trainer: merging into the status, and conversion of any text and number to valid values."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import World, make_job

from dreambooth_api.merge import is_milestone, merge
from dreambooth_api.progress import ProgressMessage, parse_message
from dreambooth_api.status import (
    REASON,
    Failure,
    JobStatus,
    ReportedStatus,
    TrainerPhase,
    fit_message,
    legal_reason,
    parse_status,
)

NOW = datetime(2026, 11, 24, 7, 0, 0, 123, tzinfo=UTC)


def merged_status(*reports: dict[str, object], attempts: tuple[int, ...] = (1, 1, 1)) -> ReportedStatus:
    """The status after a sequence of reports."""
    return [JobStatus(), *statuses(*reports, attempts=attempts)][-1]


def statuses(*reports: dict[str, object], attempts: tuple[int, ...] = (1, 1, 1)) -> list[JobStatus]:
    """The status after each report, as read from the API server."""
    status, after = JobStatus(), list[JobStatus]()
    for report, attempt in zip(reports, attempts, strict=False):
        merged = merge(status, ProgressMessage.model_validate(report), attempt, NOW)
        status = parse_status(merged.model_dump(mode="json", by_alias=True, exclude_none=True))
        after.append(status)
    return after


def test_fields_that_are_not_reported_are_kept() -> None:
    status = merged_status(
        {"phase": "Train", "step": 5, "steps": 10, "loss": 0.123456},
        {"step": 6, "classImages": {"wanted": 2, "reused": 1, "generated": 1}},
        {"phase": "Evaluate"},
    )
    assert status.training
    assert (status.training.progress, status.training.loss) == ("6/10", 0.1235)
    assert status.class_images
    assert status.class_images.wanted == 2
    assert status.report
    assert status.report.phase is TrainerPhase.EVALUATE


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0s"), (59, "59s"), (61, "1m"), (3600, "1h"), (7860, "2h11m"), (1e400, None)]
)
def test_remaining_time_is_formatted_like_the_ages_of_kubectl(seconds: float, shown: str | None) -> None:
    training = merged_status({"phase": "train", "step": 1, "steps": 10, "etaSeconds": seconds}).training
    assert training
    assert training.eta == shown


def test_samples_and_world_size_are_reported() -> None:
    reports = {"phase": "Train", "step": 5, "steps": 10, "samples": 20, "worldSize": 2}, {"step": 6, "samples": 24}
    training = merged_status(*reports).training
    assert training
    assert (training.samples, training.world_size) == (24, 2)


def test_the_saved_step_is_reported_and_kept_for_the_next_attempt() -> None:
    reports = {"phase": "Train", "step": 5, "steps": 10, "savedStep": 4}, {"phase": "Prepare"}
    training = merged_status(*reports, attempts=(1, 2)).training
    assert training
    assert training.saved_step == 4


def test_the_selected_step_is_reported_and_kept_for_the_next_attempt() -> None:
    reports = {"phase": "Train", "step": 8, "steps": 10, "selectedStep": 4}, {"phase": "Prepare"}
    training = merged_status(*reports, attempts=(1, 2)).training
    assert training
    assert (training.step, training.selected_step) == (8, 4)


def test_an_attempt_that_trains_again_does_not_keep_the_selected_step() -> None:
    before = {"phase": "Train", "step": 8, "steps": 10, "selectedStep": 4}
    after = {"phase": "Prepare"}, {"phase": "Train"}, {"step": 10}, {"step": 10, "selectedStep": 6}, {"step": 10}
    selected = [
        status.training and status.training.selected_step for status in statuses(before, *after, attempts=(1, *[2] * 5))
    ]
    assert selected == [4, 4, None, None, 6, 6]


def test_remaining_time_is_removed_when_training_ends() -> None:
    training = merged_status(
        {"phase": "Train", "step": 1, "steps": 2, "etaSeconds": 9}, {"phase": "Evaluate", "step": 2}
    ).training
    assert training
    assert training.eta is None


def test_failure_belongs_to_its_attempt() -> None:
    failure = {"reason": "Boom", "message": "m", "retryable": True}
    assert merged_status({"failure": failure}, {"step": 1}).report.failure == Failure(reason="Boom", message="m")  # type: ignore[union-attr]
    assert merged_status({"failure": failure}, {"step": 1}, attempts=(1, 2)).report.failure is None  # type: ignore[union-attr]


def test_scores_and_output_of_an_earlier_attempt_are_dropped() -> None:
    first = {
        "scores": {"dino": 0.7},
        "output": {"uri": "s3://b/1"},
        "classImages": {"wanted": 2},
        "step": 5,
        "steps": 10,
    }
    same = merged_status(first, {"phase": "Publish"})
    assert (same.scores, same.output) != (None, None)
    later = merged_status(first, {"phase": "Train"}, attempts=(1, 2))
    assert (later.scores, later.output) == (None, None)
    assert later.class_images, "class images are kept for the next attempt"
    assert later.training, "training resumes from the last checkpoint"


REASONS = {
    "RayTaskError(OutOfMemoryError)": "OutOfMemoryError",
    "RayTaskError(A(torch.OutOfMemoryError))": "TorchOutOfMemoryError",
    "BadImages": "BadImages",
    "out of memory": "OutOfMemory",
    "137": "Unknown",
    "": "Unknown",
    "é☃": "Unknown",
    "A:b,c_1": "A:b,c_1",
    "Foo(1)": "Foo1",
    "Failed\n": "Failed",
    "x" * 9999: "X" + "x" * 255,
}


@pytest.mark.parametrize("text", REASONS, ids=range(len(REASONS)))
def test_any_text_is_converted_to_a_valid_reason(text: str) -> None:
    assert legal_reason(text) == REASONS[text] if len(text) < 9999 else len(legal_reason(text)) == 256
    assert Failure(reason=text).reason == legal_reason(text)


@given(st.text() | st.from_regex(r"[A-Za-z.]*\([A-Za-z(). ]*\)?"))
def test_conversion_to_a_reason_is_valid_and_idempotent(text: str) -> None:
    reason = legal_reason(text)
    assert re.fullmatch(REASON, reason, re.ASCII)
    assert len(reason) <= 256
    assert legal_reason(reason) == reason


def test_control_characters_are_removed_from_messages() -> None:
    failure = Failure(reason="A", message="\x1b[31;1mred\x1b[0m\r\na\rb\tc\x00\x9b\ud800 \x1b]0;title\x07" + "x" * 9000)
    assert failure.message.startswith("red\na\nb\tc ]0;titlexxx")
    assert len(failure.message) == 4000
    assert Failure(reason="A", message=failure.message) == failure
    output = merged_status({"output": {"uri": "s3://b/\x1b[2Jx\n y", "digest": "a\nb"}}).output
    assert output
    assert (output.uri, output.digest) == ("s3://b/x y", "a b")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
NUMBERS = st.integers() | st.integers(0, 2000) | st.floats() | JSON
REPORTS = st.fixed_dictionaries(
    {},
    optional={
        "phase": st.sampled_from([*TrainerPhase, "train", "PUBLISH"]) | JSON,
        **dict.fromkeys(("step", "steps", "loss", "stepsPerSecond", "etaSeconds"), NUMBERS),
        "classImages": st.fixed_dictionaries({}, optional=dict.fromkeys(("wanted", "reused", "generated"), NUMBERS))
        | JSON,
        "scores": st.dictionaries(st.sampled_from(["dino", "clip_i", "clipT", "pres", "x"]), NUMBERS) | JSON,
        "output": st.fixed_dictionaries({}, optional={"uri": st.text() | JSON, "digest": st.text() | JSON}) | JSON,
        "failure": st.fixed_dictionaries(
            {"reason": st.text() | st.just("RayTaskError(OutOfMemoryError)")},
            optional={"message": st.text(), "retryable": st.booleans()},
        )
        | JSON,
    },
)
# How the attempt ends before the last report arrives.
ENDS: dict[str, Callable[[World], None]] = {
    "running": lambda world: None,
    "succeeded": World.succeed,
    "failed": World.fail,
    "lost": lambda world: world.ray_jobs.pop(world.ray_job) and None,
    "suspended": lambda world: world.set_policy(suspend=True),
}


@settings(max_examples=int(os.environ.get("DREAMBOOTH_REPORTS", "300")), deadline=None)
@given(st.lists(REPORTS, max_size=3), st.sampled_from(list(ENDS)), st.sampled_from([0, 3]))
def test_no_report_violates_the_schema_or_breaks_a_decision(reports: list[object], end: str, retries: int) -> None:
    world = World(make_job(backoffLimit=retries))
    world.reconcile()
    world.kuberay(world.ray_job, deployment="Running", job="RUNNING")
    world.reconcile()
    for number, report in enumerate(reports):
        if number == len(reports) - 1:
            ENDS[end](world)
            world.reconcile()
        parsed, _ = parse_message(json.dumps(report))
        assert world.job
        merged = merge(world.status, parsed, world.status.attempts, NOW)
        # The CRD is generated from these types, so values that they accept are valid.
        written = merged.model_dump_json(by_alias=True, exclude_none=True)
        assert ReportedStatus.model_validate_json(written, strict=True) == merged
        update = {name: getattr(merged, name) for name in ReportedStatus.model_fields}
        world._replace(status=world.status.model_copy(update=update))
        world.reconcile()
        for condition in world.status.conditions:
            assert re.fullmatch(REASON, condition.reason)
            assert condition.message == fit_message(condition.message)


def test_both_spellings_of_score_names_are_accepted() -> None:
    scores = merged_status(
        {"scores": {"dino": 0.71234, "clip_i": 0.8, "clipT": 0.3, "CLIP_T_extra": 1.0, "pres": None}}
    ).scores
    assert scores
    assert scores.model_dump(exclude_none=True) == {"dino": "0.712", "clip_i": "0.800", "clip_t": "0.300"}


def test_scores_of_subjects_fit_into_the_status() -> None:
    subjects = {f"id{number}\x1b" + "x" * 40: {"dino": 0.71234, "pres": None} for number in range(20)}
    found = merged_status({"scores": {"dino": 0.5}, "subjectScores": subjects}).subject_scores
    assert found
    assert len(found) == 8
    assert found[0].model_dump(exclude_none=True) == {"identifier": "id0" + "x" * 28, "dino": "0.712"}
    assert merged_status({"scores": {"dino": 0.5}}).subject_scores is None


TRAINING: dict[str, object] = {"phase": "Train", "step": 1, "steps": 10, "loss": 3.0, "scores": {"dino": 0.1}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, False),
        ({"phase": "train", "step": 2, "loss": float("nan"), "etaSeconds": 9, "samples": 8}, False),
        ({"step": 9, "steps": 10}, False),
        ({"scores": {"dino": 0.1, "pres": float("nan")}}, False),
        ({"classImages": None}, False),
        ({"phase": "Evaluate"}, True),
        ({"step": 10, "steps": 10}, True),
        ({"step": 5, "savedStep": 4}, True),
        ({"step": 5, "selectedStep": 4}, True),
        ({"classImages": {"wanted": 2}}, True),
        ({"scores": {"dino": 0.2}}, True),
        ({"subjectScores": {"sks": {"dino": 0.2}}}, True),
        ({"output": {"uri": "s3://b/x"}}, True),
        ({"failure": {"reason": "Boom"}}, True),
        ({"modelCommit": "a" * 40}, True),
    ],
)
def test_only_milestones_are_written_at_once(change: dict[str, object], expected: bool) -> None:
    before, after, again = statuses(TRAINING, TRAINING | change, TRAINING | change)
    assert is_milestone(before, after) == expected
    assert not is_milestone(after, again), "the same report is a milestone once"


def test_first_step_and_first_report_of_an_attempt_are_milestones() -> None:
    phase, step, next_attempt = statuses({"phase": "Train"}, {"step": 1}, {"step": 1}, attempts=(1, 1, 2))
    assert is_milestone(JobStatus(), phase)
    assert is_milestone(phase, step)
    assert is_milestone(step, next_attempt)
