"""The job file that the operator writes is the one that the trainer reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation import RUNTIME, job_with

from dreambooth_api.fields import PHRASE, TOKEN
from dreambooth_api.job import JobSpec
from dreambooth_operator.controller.children.config_map import job_file, json_in_yaml
from dreambooth_operator.controller.observed import Job
from dreambooth_operator.controller.resolve import ResolvedJob, resolve
from dreambooth_trainer.jobfile.load import load_job, select_job
from dreambooth_trainer.jobfile.yamltext import read_documents

AMBIGUOUS = ("1e5", "5e6", "0o7", "0x10", "1_000", "1:30", "on", "no", "null", "~", "=", "2026-01-01", ".inf", "true")


def with_texts(class_: str, identifier: str = "sks") -> Job:
    subject: dict[str, Any] = {"images": {"uri": "s3://b/dog"}, "class": class_, "identifier": identifier}
    return job_with(
        {"subject": subject, "training": {"learningRate": 5e-6}, "evaluation": {"prompts": [f"{class_} {{}}"]}}
    )


def written(job: Job) -> tuple[str, JobSpec]:
    resolved = resolve(job, RUNTIME, [])
    assert isinstance(resolved, ResolvedJob)
    return job_file(job, resolved), resolved.spec


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_text_that_looks_like_a_number_stays_text(text: str, tmp_path: Path) -> None:
    content, spec = written(with_texts(text))
    path = tmp_path / "job.yaml"
    path.write_text(content)
    assert load_job(path).spec == spec
    assert load_job(path).metadata.uid == "u1", "the trainer writes it to the markers of its folders"
    content, spec = written(with_texts("dog", text))
    path.write_text(content)
    assert load_job(path).spec == spec


@given(
    st.from_regex(PHRASE, fullmatch=True).filter(lambda text: len(text) <= 300), st.from_regex(TOKEN, fullmatch=True)
)
def test_any_valid_text_survives_the_job_file(class_: str, identifier: str) -> None:
    job = with_texts(class_, identifier)
    if job.spec is None:  # for example, the identifier is a word of the class
        return
    content, _ = written(job)
    subject: Any = select_job(read_documents(content, "job.yaml"), "job.yaml").value
    subject = subject["spec"]["subject"]
    assert (subject["class"], subject["identifier"]) == (class_, identifier)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=200), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=200), _JSON, min_size=1, max_size=3))
def test_job_file_is_json_and_the_same_value_in_yaml(value: dict[str, Any]) -> None:
    content = json_in_yaml(value)
    assert json.loads(content) == value
    assert read_documents(content, "job.yaml")[0].value == value
