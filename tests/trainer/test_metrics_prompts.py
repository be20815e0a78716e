"""The evaluation prompts of the paper."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dreambooth_trainer.metrics.prompts import LIVE_PROMPTS, OBJECT_PROMPTS, fill_template, is_live, paper_prompts

PUBLISHED = Path("/work/shared/dreambooth-dataset/prompts_and_classes.txt")


def _published_lists() -> list[list[str]]:
    text = PUBLISHED.read_text().replace(".format(unique_token, class_token)", "").replace("{0} {1}", "{}")
    return [ast.literal_eval(found) for found in re.findall(r"prompt_list = (\[.*?\n\])", text, flags=re.DOTALL)]


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the dataset of the paper is not available")
def test_prompts_equal_the_published_lists() -> None:
    assert [list(OBJECT_PROMPTS), list(LIVE_PROMPTS)] == _published_lists()


@pytest.mark.parametrize("templates", [OBJECT_PROMPTS, LIVE_PROMPTS])
def test_there_are_25_unique_templates_with_one_placeholder(templates: tuple[str, ...]) -> None:
    assert len(set(templates)) == 25
    assert all(template.count("{}") == 1 for template in templates)


@pytest.mark.parametrize(
    ("class_name", "live"),
    [
        ("dog", True),
        ("Cat", True),
        ("golden retriever dog", True),
        ("backpack", False),
        ("stuffed animal", False),
        ("toy", False),
        ("rubber duck", False),
        ("dog house", False),
        ("teapot", False),
        ("hot dog", True),  # a limitation of word lists; evaluation.prompts overrides it
        ("", False),
    ],
)
def test_live_subjects(class_name: str, live: bool) -> None:
    assert is_live(class_name) is live
    assert paper_prompts(class_name) == list(LIVE_PROMPTS if live else OBJECT_PROMPTS)


def test_fill_template_does_not_interpret_other_braces() -> None:
    assert fill_template("a {} by {0.__class__}", "sks dog") == "a sks dog by {0.__class__}"
