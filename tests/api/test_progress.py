"""The progress message, between halves of different versions."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dreambooth_api.progress import ProgressMessage, parse_fields, parse_message
from dreambooth_api.status import ClassImagesStatus, Failure, OutputStatus, TrainerPhase

ALIASES = {field.alias: name for name, field in ProgressMessage.model_fields.items()}
WHOLE = {
    "phase": "Train",
    "step": 3,
    "steps": 10,
    "savedStep": 2,
    "selectedStep": 1,
    "samples": 12,
    "worldSize": 4,
    "loss": 0.25,
    "stepsPerSecond": 2.0,
    "etaSeconds": 3.5,
    "classImages": {"wanted": 8, "reused": 3, "generated": 5},
    "scores": {"dino": 0.7, "clipI": 0.8},
    "output": {"uri": "s3://bucket/dog", "digest": "sha256:0"},
    "failure": {"reason": "OutOfMemory", "message": "32 GiB are too little", "retryable": False},
}


def read(fields: object) -> ProgressMessage:
    return parse_message(json.dumps(fields))[0]


def test_a_message_reads_as_it_was_written() -> None:
    message = ProgressMessage(
        phase=TrainerPhase.TRAIN,
        step=3,
        steps=10,
        saved_step=2,
        selected_step=1,
        samples=12,
        world_size=4,
        loss=0.25,
        steps_per_second=2.0,
        eta_seconds=3.5,
        class_images=ClassImagesStatus(wanted=8, reused=3, generated=5),
        scores={"dino": 0.7, "clipI": 0.8},
        output=OutputStatus(uri="s3://bucket/dog", digest="sha256:0"),
        failure=Failure(reason="OutOfMemory", message="32 GiB are too little", retryable=False),
    )
    assert json.loads(message.to_json()) == WHOLE
    assert parse_message(message.to_json()) == (message, [])


@pytest.mark.parametrize(
    ("newer", "ignored"),
    [
        ({"phase": "Distill"}, ["phase"]),
        ({"scores": {**WHOLE["scores"], "lpips": {"vgg": 0.1}}}, ["scores.lpips"]),  # type: ignore[dict-item]
        ({"throughput": {"images": 3}}, []),
        ({"classImages": {**WHOLE["classImages"], "failed": 1}}, []),  # type: ignore[dict-item]
        ({"failure": {**WHOLE["failure"], "phase": "Distill"}}, []),  # type: ignore[dict-item]
    ],
    ids=["phase", "score", "field", "nested field", "field of a failure"],
)
def test_what_a_newer_trainer_adds_costs_nothing_else(newer: dict[str, object], ignored: list[str]) -> None:
    message, found = parse_message(json.dumps(WHOLE | newer))
    without = {name: value for name, value in WHOLE.items() if name not in ignored}
    assert message == read(without)
    assert found == ignored
    assert message.failure == Failure(reason="OutOfMemory", message="32 GiB are too little", retryable=False)


def test_an_unknown_score_of_the_known_kind_is_kept_beside_the_others() -> None:
    scores = {f"score{number}": 0.5 for number in range(100)}
    assert read({"scores": {**scores, "dino": 0.7}}).scores == {**scores, "dino": 0.7}


WRONG = [[], {}, "x", {"a": 1}, -1, 10**30]


@pytest.mark.parametrize("name", [*WHOLE, "classImages.wanted", "scores.dino", "output.digest", "failure.retryable"])
@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_a_value_of_a_wrong_type_costs_only_itself(name: str, wrong: object) -> None:
    outer, _, inner = name.partition(".")
    value = {**WHOLE[outer], inner: wrong} if inner else wrong  # type: ignore[dict-item]
    message, ignored = parse_message(json.dumps({**WHOLE, outer: value}))
    assert {part.partition(".")[0] for part in ignored} <= {outer}
    whole = read(WHOLE)
    for other in ProgressMessage.model_fields:
        if other != ALIASES.get(outer, outer):
            assert getattr(message, other) == getattr(whole, other), other
    if inner and outer == "failure":
        assert message.failure
        assert message.failure.reason == "OutOfMemory"
    if inner and outer == "output":
        assert message.output
        assert message.output.uri == "s3://bucket/dog"


@pytest.mark.parametrize("reason", [None, 5, [], {}])
def test_a_failure_without_a_usable_reason_keeps_its_message(reason: object) -> None:
    assert read({"failure": {"reason": reason, "message": "m"}}).failure == Failure(reason="Unknown", message="m")


def test_fields_go_by_their_names_in_python_as_well() -> None:
    message, ignored = parse_fields({"steps_per_second": -1.0, "eta_seconds": 2.0, "output": {"uri": "x" * 2001}})
    assert message == ProgressMessage(eta_seconds=2.0, output=OutputStatus())
    assert ignored == ["steps_per_second", "output.uri"]


@pytest.mark.parametrize(
    "body", ["", "[]", "3", "null", "{", '{"step": 1', b"\xff", '{"phase": "\\ud800"}', "[" * 9999]
)
def test_a_body_that_is_no_json_object_is_refused(body: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_message(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@example({"scores": {"dino": float("inf"), "clipT": float("nan"), "pres": None}})
@given(st.dictionaries(st.sampled_from([*WHOLE, *ProgressMessage.model_fields]) | st.text(), JSON))
def test_any_object_is_a_message_that_can_be_sent_again(fields: dict[str, object]) -> None:
    message = read(fields)
    assert parse_message(message.to_json())[0] == message
