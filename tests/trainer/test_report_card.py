"""The model card: metadata for the Hub, escaping of prompts, and score rows."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from dreambooth_trainer.metrics.scores import Scores
from dreambooth_trainer.report.card import code_fence, code_span, model_card, save_gallery
from dreambooth_trainer.report.contents import Comparison, Finding, Report, SubjectReport, ToolFile
from dreambooth_trainer.report.page import write_report
from dreambooth_trainer.report.scores import encoder_names, read_scores, score_rows

VALUES = {"dino": 0.8, "clipI": 0.9, "clipT": 0.3, "pres": 0.4, "subjectDiversity": 0.2, "classDiversity": 0.5}
SCORES = Scores(values=VALUES, real_images={"dino": 0.774})


def _report(prompt: str = "a sks dog", base: str = "org/base", num_class_images: int = 1000) -> Report:
    images = (Image.new("RGB", (8, 8)),)
    comparison = Comparison(prompt, images, images)
    return Report(
        name="my-dog",
        base_model=base,
        pipeline_class="StableDiffusionPipeline",
        created=datetime(2026, 11, 24, tzinfo=UTC),
        subjects=(
            SubjectReport(
                instance_prompt=prompt,
                class_prompt="a dog",
                trigger="sks dog",
                images=images * 5,
                comparison=comparison,
                prompt_comparisons=(),
                class_comparison=comparison,
                num_class_images=num_class_images,
            ),
        ),
        scores=score_rows(None, SCORES),
        encoders="builtin:sprites",
        settings={"steps": "400", "a|b": "c|d"},
        loading_code="print('hello')",
    )


def test_the_hub_library_reads_the_metadata(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    report = _report("a sks dog: # not a comment")
    gallery = save_gallery(report, tmp_path)
    licensed = {"license": "other", "license_name": "community", "license_link": "https://example.org/license"}
    model_card(report, "grid.png", gallery=gallery, formats=["lora"], license_fields=licensed).save(path)
    data = ModelCard.load(path).data.to_dict()
    assert data == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "instance_prompt": "a sks dog: # not a comment",
        "library_name": "diffusers",
        "license": "other",
        "license_name": "community",
        "license_link": "https://example.org/license",
        "pipeline_tag": "text-to-image",
        "tags": [
            *("text-to-image", "diffusers", "dreambooth", "stable-diffusion", "stable-diffusion-diffusers"),
            *("lora", "template:sd-lora"),
        ],
        "widget": [{"text": "a sks dog: # not a comment", "output": {"url": "images/00.png"}}],
    }
    assert Image.open(tmp_path / "images" / "00.png").size == (8, 8)
    assert "<Gallery />" in path.read_text()


def test_the_gallery_has_each_prompt_once(tmp_path: Path) -> None:
    dog = _report().subjects[0]
    prompts = [dog.comparison, *(replace(dog.comparison, prompt=f"a sks dog {number}") for number in range(9))]
    report = replace(_report(), subjects=(replace(dog, prompt_comparisons=tuple(prompts)),) * 2)
    gallery = save_gallery(report, tmp_path)
    assert [image.prompt for image in gallery] == ["a sks dog", *(f"a sks dog {number}" for number in range(5))] * 2
    assert [image.file for image in gallery] == [f"images/{number:02}.png" for number in range(12)]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"{n:02}.png" for n in range(12)]


def test_a_complete_model_is_a_finetune_without_a_template() -> None:
    for formats in (["diffusers", "safetensors"], ["lora", "diffusers"]):
        assert model_card(_report(), formats=formats).data.to_dict()["base_model_relation"] == "finetune"
    data = model_card(_report()).data.to_dict()
    assert "template:sd-lora" not in data["tags"]
    assert not {"widget", "license", "license_name"} & data.keys()
    assert "<Gallery />" not in model_card(_report()).text


def test_the_card_and_the_report_of_image_prompts_claim_no_training(tmp_path: Path) -> None:
    report = replace(_report(num_class_images=0), settings={"method": "None", "image prompts": "IP-Adapter a/b"})
    text = model_card(report, formats=["ip-adapter"]).text
    assert "Nothing was trained." in text
    assert "arXiv:2308.06721" in text
    write_report(report, tmp_path / "report.html")
    assert "Image prompts for org/base" in (tmp_path / "report.html").read_text()
    for wrong in ("Trained with", "fine-tuned", "DreamBooth fine-tuning", "arXiv:2208.12242"):
        assert wrong not in text
        assert wrong not in (tmp_path / "report.html").read_text().partition("<h2>")[0]


def test_the_card_names_the_trigger_words_and_the_files_for_other_tools() -> None:
    file = ToolFile("dog.safetensors", "loras/dog.safetensors", "Lora/dog.safetensors", "a|b", "a sks dog")
    text = model_card(replace(_report(), tool_files=(file,))).text
    assert "## Trigger words\n\n- Use `sks dog` in a prompt to generate the subject, for example `a sks dog`.\n" in text
    row = "| `dog.safetensors` | `loras/dog.safetensors` | `Lora/dog.safetensors` | `a\\|b` | `a sks dog` |"
    assert f"| --- | --- | --- | --- | --- |\n{row}\n\n## Scores" in text
    assert "ComfyUI" not in model_card(_report()).text


@pytest.mark.parametrize("base", ["builtin:sprites", "/models/sd15", "a/b/c"])
def test_a_base_model_that_is_not_on_the_hub_is_not_in_the_metadata(base: str) -> None:
    card = model_card(_report(base=base))
    assert not {"base_model", "base_model_relation"} & card.data.to_dict().keys()
    assert f"`{base}` fine-tuned" in card.text


def test_tables_have_no_blank_lines_and_images_are_shown() -> None:
    text = model_card(_report(), "grid.png").text
    assert "![Images before and after training](grid.png)" in text
    assert "| --- | ---: | ---: | ---: | ---: | --- |\n| DINO | - | 0.800 | 0.774 | - | Similarity" in text
    assert "| --- | --- |\n| `steps` | `400` |\n| `a\\|b` | `c\\|d` |\n" in text
    assert "```python\nprint('hello')\n```" in text
    assert "\n\n\n" not in text
    assert "![" not in model_card(_report()).text


def test_the_verdict_is_in_the_card() -> None:
    prompts = ("in `x`", "on sand")
    findings = (
        Finding(False, "The loss rose", "use a lower rate", subject="a `b`"),
        Finding(True, "All is well", prompts=prompts),
        Finding(True, "Done"),
    )
    text = model_card(replace(_report(), findings=findings)).text
    assert "## Verdict\n\n- ✗ `` a `b` ``: The loss rose. **Advice: use a lower rate.**\n" in text
    assert "\n- ✓ All is well. Prompts: `` in `x` ``, `on sand`.\n" in text
    assert "\n- ✓ Done.\n\n##" in text


def test_the_card_states_which_step_was_selected() -> None:
    selection = "Step 100 of 200 was selected: its DINO (0.600) is the highest"
    assert f"\n{selection}.\n" in model_card(replace(_report(), selection=selection)).content
    assert "selected" not in model_card(_report()).content


def test_training_without_prior_preservation_is_stated() -> None:
    assert "1000 class images of `a dog`" in model_card(_report()).text
    assert "without prior preservation" in model_card(_report(num_class_images=0)).text


def test_the_card_shows_how_to_prompt_each_of_several_subjects() -> None:
    dog = replace(_report().subjects[0], scores=score_rows(None, SCORES))
    cat = replace(dog, instance_prompt="a o|wx cat", class_prompt="a cat", images=dog.images[:3], num_class_images=500)
    text = model_card(replace(_report(), subjects=(dog, cat))).text
    assert "on images of 2 subjects.\n\n| Instance prompt |" in text
    assert "| `a sks dog` | `a dog` | 5 |\n| `a o\\|wx cat` | `a cat` | 3 |\n" in text
    assert "| Subject | DINO | CLIP-I | CLIP-T |" in text
    assert "| `a o\\|wx cat` | 0.800 | 0.900 | 0.300 |" in text
    assert "on 1000 class images of `a dog` and 500 class images of `a cat`." in text
    assert "\n\n\n" not in text


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


def test_code_fence_is_longer_than_any_fence_in_the_text() -> None:
    assert code_fence("x") == "```"
    assert code_fence("a ```` b") == "`````"


@pytest.mark.parametrize(
    ("lpips", "shown"),
    [
        ({"lpips_network": "AlexNet"}, "dino; clip; LPIPS (AlexNet)"),
        (
            {"without_lpips": "DIV is not computed: no route to host"},
            "dino; clip; DIV is not computed: no route to host",
        ),
        ({}, "dino; clip"),
    ],
)
def test_the_report_states_how_div_was_computed(tmp_path: Path, lpips: dict[str, str], shown: str) -> None:
    scores = Scores(values=VALUES, dino_encoder="dino", clip_encoder="clip", **lpips)
    content = scores.model_dump(mode="json", by_alias=True)
    (tmp_path / "scores.json").write_text(json.dumps({"before": content, "after": content}))
    plan: Any = SimpleNamespace(spec=SimpleNamespace(evaluation=SimpleNamespace(enabled=True)))
    folder: Any = SimpleNamespace(scores=tmp_path / "scores.json")
    found = read_scores(folder, plan)
    assert found
    assert encoder_names(found[1]) == shown


def test_score_rows_show_before_and_after_and_skip_missing_scores() -> None:
    before = Scores(values={**VALUES, "pres": 0.39, "dino": 0.3})
    rows = score_rows(before, SCORES)
    assert [(row.name, row.before, row.after) for row in rows[:4]] == [
        ("DINO", 0.3, 0.8),
        ("CLIP-I", 0.9, 0.9),
        ("CLIP-T", 0.3, 0.3),
        ("PRES", 0.39, 0.4),
    ]
    assert [row.state for row in rows] == ["normal", "unknown", "normal", "normal", "unknown", "normal"]
    rows = score_rows(None, Scores(values={"dino": 0, "clipI": 0, "clipT": 0}))
    assert [row.name for row in rows] == ["DINO", "CLIP-I", "CLIP-T"]
