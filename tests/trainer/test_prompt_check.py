"""Prompts that the text encoder would cut off are rejected; an identifier of several tokens causes a warning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from test_plan import make_plan

from dreambooth_trainer.sampling.prompt_check import check_prompts
from dreambooth_trainer.sprites import WEIGHTS

LONG = "a photo of a small red striped old cute nice toy animal drawing on the beach with one sks dog"


def test_every_prompt_that_is_too_long_is_reported_with_what_would_be_ignored() -> None:
    template = LONG.replace("sks dog", "{}")
    spec = {
        "subject": {
            "images": {"uri": "photos"},
            "class": "dog",
            "instancePrompt": LONG,
            "captions": {"a.png": LONG, "b.png": "a sks dog"},
        },
        "priorPreservation": {"classPrompt": LONG.replace("sks ", "")},
        "evaluation": {"prompts": ["a {} on the beach", template]},
    }
    issues, warnings = check_prompts(make_plan(spec), WEIGHTS)
    assert [issue.path for issue in issues] == [
        "spec.subject.instancePrompt",
        'spec.subject.captions["a.png"]',
        "spec.priorPreservation.classPrompt",
        "spec.evaluation.prompts[1]",
    ]
    assert str(issues[0]) == (
        f"spec.subject.instancePrompt: the prompt {LONG!r} has 20 tokens, the text encoder reads 14: 'the beach with "
        "one sks dog' would be ignored; shorten it"
    )
    assert warnings == []


def test_a_long_class_is_reported_once() -> None:
    spec = {"subject": {"images": {"uri": "photos"}, "class": "small red striped old cute nice toy dog of my aunt"}}
    issues, _ = check_prompts(make_plan(spec), WEIGHTS)
    assert [issue.path for issue in issues] == ["spec.subject.class"]


def test_prompts_within_the_limit_are_accepted() -> None:
    prompt = " ".join(["sks", *["dog"] * 13])
    subject = {"images": {"uri": "photos"}, "class": "dog", "instancePrompt": prompt}
    assert check_prompts(make_plan({"subject": subject}), WEIGHTS) == ([], [])


def test_an_identifier_of_several_tokens_causes_a_warning() -> None:
    subject = {"images": {"uri": "photos"}, "class": "dog", "identifier": "my-toy"}
    issues, warnings = check_prompts(make_plan({"subject": subject}), WEIGHTS)
    assert issues == []
    assert warnings == [
        "the identifier 'my-toy' is 3 tokens for this model (my, -, toy); a single rare token is learned better: set "
        "subject.identifier: auto to select one"
    ]


def test_prompts_for_deepfloyd_if_have_the_length_that_its_pipeline_reads(tiny_if_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_if_model, tmp_path / "model"))
    config = folder / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 512}))
    subjects = [
        {"images": {"uri": "photos"}, "class": "dog", "instancePrompt": f"{'a' * size} sks"} for size in (71, 72)
    ]
    fitting, long = (check_prompts(make_plan({"subject": subject}), folder)[0] for subject in subjects)
    assert fitting == []
    assert "has 77 tokens, the text encoder reads 76: 's' would be ignored" in str(long[0])
