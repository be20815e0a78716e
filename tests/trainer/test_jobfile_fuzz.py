"""Any job file and any override is accepted, or rejected with a `UserError`."""

import copy
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobtext import JOB, LoadText, spec

from dreambooth_api.errors import UserError
from dreambooth_trainer.jobfile import dump_job

FULL: dict[str, Any] = yaml.safe_load(
    spec("""\
training: {steps: 5, learningRate: 0.001, deepspeed: {stage: auto, config: {a: [1]}}, textEncoder: {train: true}}
priorPreservation: {numClassImages: 9, sampler: {steps: 3}}
evaluation: {prompts: ['a {} x', '{} y'], thresholds: {dino: 0.5}}
output: {uri: out, formats: [diffusers]}
cluster: {workers: 2, resources: {cpu: '4'}, nodeSelector: {a: b}, tolerations: [{key: x}]}
runPolicy: {queueName: q}
""")
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(below for key, item in items for below in paths(item, (*path, key)))]


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["{}", "auto", "1e9", "a/../b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


@given(path=st.sampled_from(paths(FULL)), new=ANYTHING, key=st.none() | st.text(max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_a_job_is_accepted_or_rejected(
    load_text: LoadText, path: tuple[Any, ...], new: Any, key: str | None
) -> None:
    document = copy.deepcopy({"root": FULL})
    *parents, last = ("root", *path)
    parent: Any = document
    for part in parents:
        parent = parent[part]
    if key is not None and isinstance(parent[last], dict):
        parent[last][key] = new
    else:
        parent[last] = new
    text = yaml.safe_dump(document["root"], allow_unicode=True)
    try:
        job = load_text(text)
    except UserError as error:
        assert error.issues
        assert all(issue.path and issue.rule and issue.remedy for issue in error.issues)
    else:
        assert load_text(dump_job(job)) == job


@given(st.text() | st.binary())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_invalid_file_is_rejected(load_text: LoadText, text: str | bytes) -> None:
    with pytest.raises(UserError):
        load_text(text)


@given(st.text(max_size=30))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_override_is_accepted_or_rejected(load_text: LoadText, text: str) -> None:
    for override in (text, f"training.{text}", f"subject.class={text}", f"training.deepspeed.config={text}"):
        try:
            load_text(JOB, override)
        except UserError as error:
            assert error.issues
