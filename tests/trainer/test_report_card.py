"""The model card: metadata that the hub reads, Markdown that a prompt cannot break; score rows."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from dreambooth_trainer.metrics.scores import Scores
from dreambooth_trainer.report.card import code_fence, code_span, model_card
from dreambooth_trainer.report.contents import Comparison, Report
from dreambooth_trainer.report.scores import score_rows

SCORES = Scores(dino=0.8, clip_i=0.9, clip_t=0.3, pres=0.4, div=0.2, div_class=0.5)


def _report(prompt: str = "a sks dog", base: str = "org/base", num_class_images: int = 1000) -> Report:
    picture = (Image.new("RGB", (8, 8)),)
    shown = Comparison(prompt, picture, picture)
    return Report(
        name="my-dog",
        subject_prompt=prompt,
        class_prompt="a dog",
        base_model=base,
        created=datetime(2026, 11, 24, tzinfo=UTC),
        subject_images=picture * 5,
        subject=shown,
        contexts=(),
        drift=shown,
        num_class_images=num_class_images,
        scores=score_rows(None, SCORES),
        encoders="builtin:sprites",
        settings={"steps": "400", "a|b": "c|d"},
        loading_code="print('hello')",
    )


def test_card_survives_the_hubs_own_reader(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    model_card(_report("a sks dog: # not a comment"), "grid.png", lora=True, license_id="openrail++").save(path)
    data = ModelCard.load(path).data.to_dict()
    assert data == {
        "base_model": "org/base",
        "instance_prompt": "a sks dog: # not a comment",
        "library_name": "diffusers",
        "license": "openrail++",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "dreambooth", "lora"],
    }


@pytest.mark.parametrize("base", ["builtin:sprites", "/models/sd15", "a/b/c"])
def test_what_is_no_hub_id_is_named_in_the_text_only(base: str) -> None:
    card = model_card(_report(base=base))
    assert "base_model" not in card.data.to_dict()
    assert f"`{base}` fine-tuned" in card.text


def test_tables_have_no_blank_lines_and_pictures_are_shown() -> None:
    text = model_card(_report(), "grid.png").text
    assert "![before and after](grid.png)" in text
    assert "| --- | ---: | ---: | --- |\n| DINO | - | 0.800 |" in text
    assert "| --- | --- |\n| `steps` | `400` |\n| `a\\|b` | `c\\|d` |\n" in text
    assert "```python\nprint('hello')\n```" in text
    assert "\n\n\n" not in text
    assert "![" not in model_card(_report()).text


def test_missing_priors_are_said() -> None:
    assert "1000 class images of `a dog`" in model_card(_report()).text
    assert "without prior preservation" in model_card(_report(num_class_images=0)).text


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("a sks dog", "`a sks dog`"),
        ("a `sks` dog", "`` a `sks` dog ``"),
        ("<b>\n# x", "`<b> # x`"),
    ],
)
def test_code_span(text: str, markdown: str) -> None:
    assert code_span(text) == markdown


def test_code_fence_is_longer_than_what_it_holds() -> None:
    assert code_fence("x") == "```"
    assert code_fence("a ```` b") == "`````"


def test_score_rows_pair_before_and_after_and_skip_what_was_not_measured() -> None:
    before = SCORES.model_copy(update={"pres": 0.39, "dino": 0.3})
    rows = score_rows(before, SCORES)
    assert [(row.name, row.before, row.after) for row in rows[:4]] == [
        ("DINO", 0.3, 0.8),
        ("CLIP-I", 0.9, 0.9),
        ("CLIP-T", 0.3, 0.3),
        ("PRES", 0.39, 0.4),
    ]
    assert rows[0].verdict == "better"
    assert rows[3].higher_is_better is False
    assert [row.name for row in score_rows(None, Scores(dino=0, clip_i=0, clip_t=0))] == ["DINO", "CLIP-I", "CLIP-T"]
