"""New tokens for identifiers: which names can become tokens, and the embeddings under DeepSpeed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_plan import make_plan
from torch import nn

from dreambooth_trainer.methods.tokens import ExtendedEmbedding
from dreambooth_trainer.sampling.prompt_check import check_prompts
from dreambooth_trainer.sampling.token_check import token_issues
from dreambooth_trainer.sprites import WEIGHTS

pytestmark = pytest.mark.trainer


FOLDERS = ("tokenizer",)


def inversion(*identifiers: str, vectors: int = 2, **subject: Any) -> dict[str, Any]:
    images = {"uri": "builtin:sprites/dog-pink-blue"}
    subjects = [{"class": "dog", "images": images, "identifier": name, **subject} for name in identifiers]
    return {
        "subject": None,
        "subjects": subjects,
        "training": {"method": "TextualInversion", "textualInversion": {"vectors": vectors}},
    }


@pytest.mark.parametrize(
    ("identifiers", "rules"),
    [
        (["sks", "sks_1"], ["is a part of 'sks_1', the identifier of another subject", None]),
        (["XYZ", "abc"], ["has upper-case letters", None]),
        (["og", "abc"], ["would be read inside of a word of the prompt 'a og dog'", None]),
        (["abc", "ab"], [None, "is a part of 'abc'"]),
        (["eac", "abc"], ["would be read inside of a word of the prompt 'a eac dog on the beach'", None]),
        (["red", "abc"], [None, None]),
        (["c", "abc"], ["becomes a token, and 'c' is a token of the base model already", None]),
    ],
)
def test_names_that_would_be_misread_are_rejected(identifiers: list[str], rules: list[str | None]) -> None:
    """`rules` of each subject."""
    issues = {issue.path: str(issue) for issue in token_issues(make_plan(inversion(*identifiers)), WEIGHTS, FOLDERS)}
    expected = {f"spec.subjects[{index}].identifier": rule for index, rule in enumerate(rules) if rule}
    assert issues.keys() == expected.keys()
    for path, rule in expected.items():
        assert rule in issues[path]
        assert "; set auto, or another word in lower case, for example <" in issues[path]


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("spec.subject.instancePrompt", {"subject": {"instancePrompt": "a sks dog with masks"}}),
        ('spec.subject.captions["a.png"]', {"subject": {"captions": {"a.png": "a sks dog in the dusksun"}}}),
        ("spec.priorPreservation.classPrompt", {"priorPreservation": {"classPrompt": "a dog with masks"}}),
        ("spec.evaluation.prompts[0]", {"evaluation": {"prompts": ["a {} with masks"]}}),
    ],
)
def test_a_token_is_not_read_inside_of_words_of_any_prompt(field: str, spec: dict[str, Any]) -> None:
    subject = {"class": "dog", "images": {"uri": "photos"}, **spec.get("subject", {})}
    job = {**spec, "subject": subject, "training": {"method": "PivotalTuning"}}
    (issue,) = token_issues(make_plan(job), WEIGHTS, FOLDERS)
    assert f"({field})" in issue.rule
    assert token_issues(make_plan({**job, "training": {"method": "LoRA"}}), WEIGHTS, FOLDERS) == []


def test_embeddings_have_the_number_format_of_the_rows_also_if_only_parameters_are_cast() -> None:
    """DeepSpeed casts parameters, but no buffers."""
    embedding = ExtendedEmbedding(nn.Embedding(4, 8), 4, torch.ones(1, 8))
    for parameter in embedding.parameters():
        parameter.data = parameter.data.bfloat16()
    assert embedding.norms.dtype is torch.float32
    assert embedding(torch.tensor([0, 4])).dtype is torch.bfloat16


def test_all_vectors_count_in_the_length_of_prompts() -> None:
    identifiers = ["sks", "abc"]
    short, _ = check_prompts(make_plan(inversion(*identifiers, vectors=1)), WEIGHTS)
    assert not short
    issues, warnings = check_prompts(make_plan(inversion(*identifiers, vectors=16)), WEIGHTS)
    assert "'a sks sks_1" in str(issues[0])
    assert not warnings, "an identifier that becomes a token is a single token"
