"""New tokens for identifiers: which names can become tokens, and the embeddings under DeepSpeed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_plan import make_plan
from torch import nn

from dreambooth_api.errors import UserError
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.methods.tokens import ExtendedEmbedding, add_tokens
from dreambooth_trainer.sampling.prompt_check import check_prompts
from dreambooth_trainer.sprites import WEIGHTS

pytestmark = pytest.mark.trainer


def inversion(*identifiers: str, vectors: int = 2, **subject: Any) -> dict[str, Any]:
    images = {"uri": "builtin:sprites/dog-pink-blue"}
    subjects = [{"class": "dog", "images": images, "identifier": name, **subject} for name in identifiers]
    return {
        "subject": None,
        "subjects": subjects,
        "training": {"method": "TextualInversion", "textualInversion": {"vectors": vectors}},
    }


@pytest.mark.parametrize(
    ("identifiers", "rule"),
    [
        (["sks", "sks_1"], "is a part of 'sks_1', the identifier of another subject"),
        (["XYZ", "abc"], "has upper-case letters"),
        (["og", "abc"], "is a part of 'dog'"),
        (["abc", "ab"], "is a part of 'abc'"),
    ],
)
def test_names_that_would_be_misread_are_rejected(identifiers: list[str], rule: str) -> None:
    plan = make_plan(inversion(*identifiers))
    with pytest.raises(UserError, match=rule):
        add_tokens(open_family(WEIGHTS).open(WEIGHTS, ()), plan)


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
