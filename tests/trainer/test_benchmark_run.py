"""`dreambooth bench` with whole jobs: photos, built-in subjects, pairs, and an interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_benchmark import write_dataset

from dreambooth_trainer.sprites.captions import SPRITES_PROMPTS

pytestmark = [pytest.mark.trainer, pytest.mark.long]
FAST = ("training.steps=2", "evaluation.imagesPerPrompt=1")
FASTER = (*FAST, "priorPreservation.numClassImages=4", 'evaluation.prompts=["a {} on the beach"]')
PROMPTS = ("a {} on the beach", "a {} in the snow")


def command(out: Path, dataset: object, *more: str, sets: tuple[str, ...] = FASTER, kind: str = "paper") -> list[str]:
    arguments = ["--dataset", str(dataset), "--out", str(out), "--seeds", "1", *more]
    arguments += [argument for text in sets for argument in ("--set", text)]
    return [sys.executable, "-m", "dreambooth_trainer", "bench", kind, *arguments]


def run(*arguments: Any, **options: Any) -> str:
    done = subprocess.run(command(*arguments, **options), capture_output=True, text=True, check=False, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_interrupted_benchmark_continues(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (out, "builtin:sprites", "--subjects", "2", "--methods", "LoRA,Full", "--parallel", "2")
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = lambda: {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/*/result.json")}  # noqa: E731
    while not results():
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    first = results()
    assert len(first) < 4
    text = run(*arguments)
    assert f"4 jobs, {len(first)} of them finished" in text
    assert results().items() >= first.items(), "a finished job is not repeated"
    summary = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["Real images", "Base model", "LoRA", "Full"]
    for result in summary["runs"]:
        job = out / "jobs" / result["subject"] / f"{result['method']}-0" / "job"
        scores = json.loads((job / "work" / "scores.json").read_text())
        assert scores["after"]["values"].items() <= result["trained"].items()
        assert scores["before"]["values"].items() <= result["base"].items()
        assert result["publishedBytes"] > 10_000
        assert not list(job.rglob("*.safetensors")), "weights are deleted once the job is scored"
    assert len(list((out / "store").rglob("class-images/*/000000.png"))) == 2, "jobs of a class share class images"
    page = (out / "index.html").read_text()
    # Five photos, and an image of the base model and of each method.
    assert page.count("<img ") == 2 * (5 + 3)
    assert "| LoRA |" in (out / "results.md").read_text()
    before = results()
    assert "4 jobs, 4 of them finished" in run(*arguments)
    assert results() == before


def test_photos_in_the_format_of_the_papers_dataset(tmp_path: Path) -> None:
    lines = [f"'{prompt.replace('{}', '{0} {1}')}'.format(unique_token, class_token)," for prompt in PROMPTS]
    head = ["Classes", "", "subject_name,class", "dog6,dog", "", "Prompts", ""]
    text = "\n".join([*head, "Object Prompts", *lines, "Live Subject Prompts", *lines])
    dataset = write_dataset(tmp_path / "data", text, subjects=("dog6",))
    ablations = ("--class-nouns", "Right,None", "--images", "1")
    run(tmp_path / "out", dataset, "--methods", "TextualInversion", "--keep-models", *ablations, sets=FAST)
    result, other = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert (result["classNoun"], other["classNoun"]) == ("Right", "None")
    # One photo, and for each prompt an image of the base model and of both class nouns.
    assert (tmp_path / "out" / "index.html").read_text().count("<img ") == 1 + 2 * 3
    job = tmp_path / "out" / "jobs" / "dog6" / "TextualInversion-class-noun-Right-1-image-0" / "job"
    own = json.loads((job / "work" / "scores.json").read_text())["after"]
    assert not own["realImages"], "one photo"
    assert set(result["realImages"]) == {"dino", "clipI"}, "both photos"
    assert result["trained"]["dino"] != own["values"]["dino"]
    assert result["trained"]["clipT"] == own["values"]["clipT"]
    assert (job / "model" / "learned_embeds.safetensors").stat().st_size == result["publishedBytes"]
    prompts = [row["prompt"] for row in json.loads((job / "work" / "scores.json").read_text())["after"]["prompts"]]
    assert prompts == [prompt.replace("{}", "dog") for prompt in PROMPTS]
    assert set(PROMPTS) <= set(SPRITES_PROMPTS), "the base model reads them"


def test_a_pair_is_trained_and_scored_with_both_subjects_in_each_image(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (out, "builtin:sprites", "--pairs", "1", "--methods", "LoRA,Full")
    run(*arguments, kind="pairs")
    summary = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in summary["rows"]] == [
        "Photos of one subject", "Base model", "LoRA", "Full",
    ]  # fmt: skip
    for result in summary["runs"]:
        job = out / "jobs" / "dog-00+cat-01" / f"{result['method']}-0" / "job"
        assert result["subject"] == "dog-00+cat-01"
        for model, values in (("before", result["base"]), ("after", result["trained"])):
            own = json.loads((job / "work" / "scores.json").read_text())[model]["values"]
            assert (values["singleDino"], values["singleClipT"]) == (own["dino"], own["clipT"])
            assert values["dinoLower"] <= min(values["dinoFirst"], values["dinoSecond"]) + 1e-9  # with one image, equal
            assert values["dino"] == pytest.approx((values["dinoFirst"] + values["dinoSecond"]) / 2)
        assert set(result["realImages"]) == {"dinoLower", "dino", "clipI"}
        assert not list(job.rglob("*.safetensors")), "weights are deleted once the images are scored"
    page = (out / "index.html").read_text()
    assert "<th>a sks dog and a " in page
    # Five photos of each subject, and an image of the base model and of each method.
    assert page.count("<img ") == 2 * 5 + 3
    before = {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/*/result.json")}
    assert "2 jobs, 2 of them finished" in run(*arguments, kind="pairs")
    assert {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/*/result.json")} == before
