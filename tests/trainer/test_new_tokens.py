"""New tokens for identifiers: which names can become tokens, and the embeddings under DeepSpeed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_plan import make_plan
from tinymodels import tiny_t5, tiny_text_config
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from dreambooth_trainer.methods.tokens import ExtendedEmbedding, extend
from dreambooth_trainer.models.clip_pooling import pool_at_end
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
    embedding = ExtendedEmbedding(nn.Embedding(4, 8), 4, torch.ones(1, 8, dtype=torch.bfloat16))
    for parameter in embedding.parameters():
        parameter.data = parameter.data.bfloat16()
    assert embedding.norms.dtype is torch.float32
    assert embedding(torch.tensor([0, 4])).dtype is torch.bfloat16


def test_new_tokens_keep_the_norms_that_they_start_with() -> None:
    start = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    embedding = ExtendedEmbedding(nn.Embedding(4, 2), 4, start)
    assert torch.equal(embedding.vectors(), start)
    embedding.rows.data = torch.tensor([[0.0, 100.0], [1e-3, 0.0]])  # after some training
    torch.testing.assert_close(embedding(torch.tensor([4, 5])), torch.tensor([[0.0, 5.0], [2.0, 0.0]]))


@pytest.mark.parametrize("eos_in_config", [2, None], ids=["as on the Hub", "of newer models"])
def test_prompts_with_new_tokens_are_pooled_at_their_end(eos_in_config: int | None) -> None:
    tokenizer: Any = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    config = tiny_text_config(tokenizer, 16, "gelu", 1)
    config.eos_token_id = eos_in_config or tokenizer.eos_token_id
    encoder: Any = CLIPTextModelWithProjection(config).eval()
    known = tokenizer("a dog", padding="max_length", return_tensors="pt").input_ids
    before = encoder(known).text_embeds
    tokenizer.add_tokens("sks")
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    pool_at_end(encoder, tokenizer)
    assert encoder.config.eos_token_id == tokenizer.eos_token_id, "a published model pools there in other tools, too"
    assert torch.equal(encoder(known).text_embeds, before), "prompts without new tokens are pooled as before"
    # Only what follows the token differs, and the token comes first: a causal encoder pools elsewhere if this is equal.
    first, second = (
        encoder(tokenizer(text, padding="max_length", return_tensors="pt").input_ids).text_embeds
        for text in ("sks dog", "sks cat")
    )
    assert not torch.equal(first, second)


def test_encoders_that_get_new_tokens_pool_at_the_end() -> None:
    tokenizer: Any = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    config = tiny_text_config(tokenizer, 16, "gelu", 1)
    config.eos_token_id = 2
    encoder = CLIPTextModelWithProjection(config)
    slot = SimpleNamespace(module="text_encoder", tokenizer=tokenizer)
    stage: Any = SimpleNamespace(modules={"text_encoder": encoder}, text=[slot])
    extend(stage, make_plan({"training": {"method": "TextualInversion"}}))
    assert encoder.config.eos_token_id == tokenizer.eos_token_id


def test_encoders_that_do_not_pool_stay_as_they_are() -> None:
    encoder, tokenizer = tiny_t5(16)
    before = encoder.config.to_dict()
    pool_at_end(encoder, tokenizer)
    assert encoder.config.to_dict() == before


def test_all_vectors_count_in_the_length_of_prompts() -> None:
    identifiers = ["sks", "abc"]
    short, _ = check_prompts(make_plan(inversion(*identifiers, vectors=1)), WEIGHTS)
    assert not short
    issues, warnings = check_prompts(make_plan(inversion(*identifiers, vectors=16)), WEIGHTS)
    assert "'a sks sks_1" in str(issues[0])
    assert not warnings, "an identifier that becomes a token is a single token"
