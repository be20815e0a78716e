"""The HTML report: complete, alone in the world, and deaf to what prompts contain."""

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
    PhaseTime,
    ReferenceRow,
    Report,
    ScoreRow,
    loading_code,
)

NASTY = "a sks dog <script>alert(1)</script> \" onerror='x' {{ 7*7 }} & co"


def _sprite(value: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (value, 10, 20))


def _report() -> Report:
    sprites = tuple(_sprite(value) for value in range(4))
    return Report(
        name="my-dog",
        subject_prompt="a sks dog",
        class_prompt="a dog",
        base_model="builtin:sprites",
        created=datetime(2026, 11, 24, 9, 30, tzinfo=UTC),
        subject_images=sprites,
        subject=Comparison("a sks dog", sprites, sprites),
        contexts=(Comparison("a sks dog on the beach", sprites, sprites),),
        drift=Comparison("a dog", sprites, sprites),
        class_images=sprites,
        num_class_images=800,
        scores=(
            ScoreRow("DINO", "likeness", 0.2, 0.8, True),
            ScoreRow("PRES", "collapse", 0.2, 0.8, False),
            ScoreRow("DIV", "variety", 0.8, 0.2, None),
        ),
        encoders="builtin:sprites",
        phases=(PhaseTime("train", 97.2),),
        settings={"steps": "400"},
        versions={"torch": "2.13.0"},
        loading_code=loading_code("out/my-dog", "a sks dog"),
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


def test_page_holds_its_pictures_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
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
    assert list(path.parent.iterdir()) == [path]  # no temporary file stays
    assert path.stat().st_mode & 0o444 == 0o444


def test_words_of_a_user_stay_words(tmp_path: Path) -> None:
    nasty = Comparison(NASTY, (_sprite(1),), (_sprite(2),))
    report = replace(
        _report(),
        name=NASTY,
        subject_prompt=NASTY,
        class_prompt=NASTY,
        base_model=NASTY,
        encoders=NASTY,
        subject=nasty,
        contexts=(nasty,),
        drift=nasty,
        phases=(PhaseTime(NASTY, 1.0, NASTY),),
        settings={NASTY: NASTY},
        loading_code=NASTY,
    )
    parsed = _Page(page.render_report(report))
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert not [attrs for _, attrs in parsed.tags if "onerror" in attrs]
    assert "".join(parsed.words).count(NASTY) == 13
    assert sum(str(attrs.get("alt")).endswith(NASTY) for tag, attrs in parsed.tags if tag == "img") == 6 + 4


def test_optional_parts_vanish_and_missing_priors_are_said() -> None:
    bare = replace(
        _report(),
        contexts=(),
        class_images=(),
        num_class_images=0,
        scores=(),
        phases=(),
        settings={},
        versions={},
        loading_code="",
    )
    text = page.render_report(bare)
    assert "without prior preservation" in text
    for heading in ("Scores", "Loss", "Time", "Use it", "Settings", "Versions", "Beside the paper"):
        assert f"<h2>{heading}" not in text


def test_scores_say_better_or_worse_by_what_they_mean() -> None:
    words = " ".join(" ".join(_Page(page.render_report(_report())).words).split())
    assert "DINO likeness 0.200 0.800 ▲ better" in words
    assert "PRES collapse 0.200 0.800 ▲ worse" in words
    assert "DIV variety 0.800 0.200 ▼ lower" in words


def test_paper_rows_and_curves_are_shown_when_given() -> None:
    report = replace(
        _report(), references=(ReferenceRow("Real images", 0.774, 0.885, None),), curves_svg="<svg id='loss'></svg>"
    )
    text = page.render_report(report)
    assert "<svg id='loss'>" in text
    assert "Real images 0.774 0.885 –" in " ".join(" ".join(_Page(text).words).split())


@pytest.mark.parametrize(
    ("before", "after", "higher_is_better", "verdict"),
    [
        (0.5, 0.52, True, "better"),
        (0.5, 0.52, False, "worse"),
        (0.5, 0.48, False, "better"),
        (0.5, 0.505, True, "same"),
        (0.5, 0.7, None, "changed"),
        (None, 0.7, True, "unknown"),
    ],
)
def test_verdict(before: float | None, after: float, higher_is_better: bool | None, verdict: str) -> None:
    assert ScoreRow("x", "y", before, after, higher_is_better).verdict == verdict


def _decoded(markup: str) -> tuple[str, Image.Image]:
    found = re.search(r'src="data:image/(\w+);base64,([^"]+)"', markup)
    assert found
    return found[1], Image.open(io.BytesIO(base64.b64decode(found[2])))


def test_sprites_are_kept_to_the_pixel_and_photographs_shrunk() -> None:
    sprite = Image.effect_noise((32, 32), 90).convert("RGB")
    kind, shown = _decoded(page.picture(sprite, "x"))
    assert (kind, shown.tobytes()) == ("png", sprite.tobytes())
    kind, shown = _decoded(page.picture(Image.new("RGBA", (2048, 1024)), "x"))
    assert (kind, shown.size) == ("jpeg", (512, 256))


def test_failed_write_keeps_the_old_page_and_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def broken(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", broken)
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


def test_loading_code_is_python_whatever_the_prompt_contains() -> None:
    prompt = 'it\'s "sks" dog'
    for code in (loading_code("out/a'b", prompt), loading_code("out/a\n'b", prompt, adapter=True)):
        compile(code, "snippet", "exec")
        assert repr(prompt) in code
    assert "load_lora_weights('out')" in loading_code("out", prompt, adapter=True)
    assert "load_lora_weights" not in loading_code("out", prompt)
