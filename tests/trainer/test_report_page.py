"""The HTML report: content, no external resources, and escaping of user input."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from dreambooth_trainer.report import page
from dreambooth_trainer.report.contents import (
    Comparison,
    Finding,
    PhaseTime,
    PromptRow,
    Range,
    ReferenceRow,
    Report,
    ScoreRow,
    SubjectReport,
    ToolFile,
)

MARKUP = "a sks dog <script>alert(1)</script> \" onerror='x' {{ 7*7 }} & co"


def _sprite(value: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (value, 10, 20))


def _report() -> Report:
    sprites = tuple(_sprite(value) for value in range(4))
    return Report(
        name="my-dog",
        base_model="builtin:sprites",
        pipeline_class="StableDiffusionPipeline",
        created=datetime(2026, 11, 24, 9, 30, tzinfo=UTC),
        subjects=(
            SubjectReport(
                instance_prompt="a sks dog",
                class_prompt="a dog",
                trigger="sks dog",
                images=sprites,
                comparison=Comparison("a sks dog", sprites, sprites),
                prompt_comparisons=(Comparison("a sks dog on the beach", sprites, sprites),),
                class_comparison=Comparison("a dog", sprites, sprites),
                class_images=sprites,
                num_class_images=800,
            ),
        ),
        scores=(
            ScoreRow("DINO", "similarity", 0.2, 0.7, real_images=0.774, normal=Range(low=0.487)),
            ScoreRow("PRES", "class similarity", 0.2, 0.8, normal=Range(high=0.487)),
            ScoreRow("DIV", "diversity", 0.8, 0.2),
        ),
        encoders="builtin:sprites",
        phases=(PhaseTime("train", 97.2),),
        settings={"steps": "400"},
        versions={"torch": "2.13.0"},
        loading_code="print('hello')",
    )


class _Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_images_are_embedded_and_there_are_no_external_resources(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    page.write_report(_report(), path)
    parsed = _Page(path.read_text(encoding="utf-8"))
    sources = [attrs["src"] for tag, attrs in parsed.tags if tag == "img"]
    assert len(sources) == 4 + 3 * 8 + 4
    assert all(source and source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", path.read_text(encoding="utf-8"))
    policy = [attrs for tag, attrs in parsed.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy[0]["content"]).startswith("default-src 'none'")
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
    assert path.stat().st_mode & 0o444 == 0o444


def test_a_page_without_photos_has_all_other_images(tmp_path: Path) -> None:
    photo = tuple(_sprite(value) for value in (200, 201))
    given = (_sprite(202),)
    subject = replace(_report().subjects[0], images=photo, own_class_images=given)
    report = replace(_report(), subjects=(subject,))
    sources = re.findall(r'src="([^"]+)"', page.render_report(report))
    public = page.render_report(report, photos=False)
    shown = re.findall(r'src="([^"]+)"', public)
    own = {re.findall(r'src="([^"]+)"', str(page.img_tag(image, "x")))[0] for image in (*photo, *given)}
    assert own <= set(sources)
    assert not own & set(shown)
    assert len(shown) == len(sources) - 3
    assert "Your images" not in public


def test_user_input_is_escaped(tmp_path: Path) -> None:
    comparison = Comparison(MARKUP, (_sprite(1),), (_sprite(2),))
    subject = replace(
        _report().subjects[0],
        instance_prompt=MARKUP,
        class_prompt=MARKUP,
        comparison=comparison,
        prompt_comparisons=(comparison,),
        class_comparison=comparison,
    )
    report = replace(
        _report(),
        name=MARKUP,
        base_model=MARKUP,
        encoders=MARKUP,
        subjects=(subject,),
        phases=(PhaseTime(MARKUP, 1.0, MARKUP),),
        settings={MARKUP: MARKUP},
        loading_code=MARKUP,
        tool_files=(ToolFile(MARKUP, MARKUP, MARKUP, MARKUP, MARKUP),),
    )
    parsed = _Page(page.render_report(report))
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert not [attrs for _, attrs in parsed.tags if "onerror" in attrs]
    assert "".join(parsed.words).count(MARKUP) == 18
    assert sum(str(attrs.get("alt")).endswith(MARKUP) for tag, attrs in parsed.tags if tag == "img") == 6 + 4


def test_optional_sections_are_omitted_and_missing_prior_preservation_is_stated() -> None:
    subject = replace(_report().subjects[0], prompt_comparisons=(), class_images=(), num_class_images=0)
    minimal = replace(
        _report(),
        subjects=(subject,),
        scores=(),
        phases=(),
        settings={},
        versions={},
        loading_code="",
    )
    text = page.render_report(minimal)
    assert "without prior preservation" in text
    for heading in ("Scores", "Loss", "Duration", "Usage", "Settings", "Versions", "Results of the paper"):
        assert f"<h2>{heading}" not in text


def test_each_of_several_subjects_has_its_images_and_scores() -> None:
    dog = replace(_report().subjects[0], scores=(ScoreRow("DINO", "similarity", 0.2, 0.7),))
    cat = replace(dog, instance_prompt="a ohwx cat", class_prompt="a cat", scores=())
    text = page.render_report(replace(_report(), subjects=(dog, cat)))
    words = " ".join(" ".join(_Page(text).words).split())
    assert "Subject 1: a sks dog" in words
    assert "Subject 2: a ohwx cat" in words
    assert "does a cat still produce varied images?" in words
    assert "Subject DINO PRES DIV a sks dog 0.700 – – a ohwx cat – – –" in words
    assert "Subject 1" not in page.render_report(_report())


def test_scores_within_their_normal_range_are_not_shown_as_bad() -> None:
    words = " ".join(" ".join(_Page(page.render_report(_report())).words).split())
    assert "DINO similarity 0.200 0.700 0.774 at least 0.487 ✓ normal" in words
    assert "PRES class similarity 0.200 0.800 – at most 0.487 ✗ not normal" in words
    assert "DIV diversity 0.800 0.200 – – ▼ lower" in words


def test_the_verdict_is_on_top_with_advice() -> None:
    findings = (
        Finding(False, "Prompt fidelity fell by 0.09", "use fewer steps", prompts=(MARKUP,), subject=MARKUP),
        Finding(True, "The subject is learned"),
    )
    text = page.render_report(replace(_report(), findings=findings))
    words = " ".join(" ".join(_Page(text).words).split())
    assert f"✗ {MARKUP} : Prompt fidelity fell by 0.09. Advice: use fewer steps. Prompts: {MARKUP} ." in words
    assert "✓ The subject is learned." in words
    assert text.index("<h2>Verdict") < text.index("Your images") < text.index("<h2>Scores")
    assert "<h2>Verdict" not in page.render_report(_report())


def test_pairs_from_the_same_noise_have_the_same_size() -> None:
    sprites = tuple(_sprite(value) for value in range(4))
    comparison = Comparison("a sks dog on the beach", sprites[:1], sprites)
    text = page.render_report(
        replace(_report(), subjects=(replace(_report().subjects[0], prompt_comparisons=(comparison,)),))
    )
    figure = re.search(r"<figcaption><q>a sks dog on the beach.*?</figure>", text, re.DOTALL)
    assert figure
    before, after, more = re.split(r"<h3>After", figure[0])
    assert [part.count("<img") for part in (before, after, more)] == [1, 1, 3]
    assert [re.findall(r"strip (\w+)", part) for part in (before, after)] == [["columns1"], ["columns1"]]
    assert "After, from other noise" not in page.render_report(_report())


def test_failed_prompts_are_marked() -> None:
    rows = (
        PromptRow("a dog on sand", 4, 0.7, 0.3, 0.29),
        PromptRow("a wet dog", 4, None, None, 0.1, ("is not followed", MARKUP)),
    )
    comparison = replace(_report().subjects[0].comparison, failures=(MARKUP,))
    subject = replace(_report().subjects[0], prompts=rows, prompt_comparisons=(comparison,))
    words = " ".join(" ".join(_Page(page.render_report(replace(_report(), subjects=(subject,)))).words).split())
    assert f"a sks dog ✗ {MARKUP} Before" in words
    assert "a dog on sand 4 0.700 0.300 0.290 a wet dog" in words
    assert f"a wet dog 4 – – 0.100 ✗ is not followed, {MARKUP}" in words


def test_results_of_the_paper_and_curves_are_shown_if_given() -> None:
    report = replace(
        _report(), references=(ReferenceRow("Real images", 0.774, 0.885, None),), curves_svg="<svg id='loss'></svg>"
    )
    text = page.render_report(report)
    assert "<svg id='loss'>" in text
    assert "Real images 0.774 0.885 –" in " ".join(" ".join(_Page(text).words).split())


@pytest.mark.parametrize(
    ("before", "after", "normal", "state", "direction"),
    [
        (0.5, 0.7, Range(low=0.7), "normal", "higher"),
        (0.5, 0.69, Range(low=0.7), "abnormal", "higher"),
        (0.5, 0.7, Range(high=0.7), "normal", "higher"),
        (0.5, 0.45, Range(low=0.4), "normal", "lower"),
        (0.5, 0.505, None, "unknown", "same"),
        (None, 0.7, None, "unknown", "unknown"),
    ],
)
def test_state_and_direction_of_a_score(
    before: float | None, after: float, normal: Range | None, state: str, direction: str
) -> None:
    row = ScoreRow("x", "y", before, after, normal=normal)
    assert (row.state, row.direction) == (state, direction)


def _decoded(markup: str) -> tuple[str, Image.Image]:
    found = re.search(r'src="data:image/(\w+);base64,([^"]+)"', markup)
    assert found
    return found[1], Image.open(io.BytesIO(base64.b64decode(found[2])))


def test_sprites_are_lossless_and_photos_are_scaled_down() -> None:
    sprite = Image.effect_noise((32, 32), 90).convert("RGB")
    kind, shown = _decoded(page.img_tag(sprite, "x"))
    assert (kind, shown.tobytes()) == ("png", sprite.tobytes())
    kind, shown = _decoded(page.img_tag(Image.new("RGBA", (2048, 1024)), "x"))
    assert (kind, shown.size) == ("jpeg", (512, 256))


def test_a_failed_write_keeps_the_old_page_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        page.write_report(_report(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert page.duration(seconds) == text
