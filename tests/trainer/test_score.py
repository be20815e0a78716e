"""`dreambooth score`: the paper's metrics for images of any program."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tinyencoders import SIDE, write_clip, write_dino
from torch.nn.functional import cosine_similarity
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, ViTModel

from dreambooth_trainer.benchmark.generated import read_groups
from dreambooth_trainer.cli.main import run_cli

PROMPTS = ["a sks dog", "a sks dog on the beach", "a sks dog, asleep"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_dino(tmp_path_factory.mktemp("dino")), write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def write_images(folder: Path, count: int, seed: int, size: tuple[int, int] = (48, 40)) -> list[Path]:
    folder.mkdir()
    random = np.random.default_rng(seed)
    paths = [folder / f"{index}.png" for index in range(count)]
    for path in paths:
        pixels = random.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size).save(path)
    return paths


def write_metadata(folder: Path, prompts: dict[str, str]) -> None:
    rows = [json.dumps({"file_name": name, "text": text, "seed": 1}) for name, text in prompts.items()]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")


def score(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run_cli(["score", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, " ".join(output.err.split())


def independent_scores(encoders: tuple[Path, Path], folder: Path, prompts: dict[str, str]) -> dict[str, float]:
    """All metrics by their definitions in the paper, one pair of images at a time."""
    vit = ViTModel.from_pretrained(encoders[0], add_pooling_layer=False).eval()
    model: Any = CLIPModel.from_pretrained(encoders[1]).eval()
    processor, tokenizer = (
        CLIPImageProcessorPil.from_pretrained(encoders[1]),
        CLIPTokenizer.from_pretrained(encoders[1]),
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    @torch.no_grad()
    def dino(path: Path) -> torch.Tensor:
        image = Image.open(path).convert("RGB")
        scale = SIDE * 256 / 224 / min(image.size)
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
        pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), dtype=np.float32) / 255
        scaled = (torch.tensor(pixels) - mean) / std
        return vit(pixel_values=scaled.permute(2, 0, 1)[None]).last_hidden_state[0, 0]

    @torch.no_grad()
    def clip(path: Path, text: str = "x") -> tuple[torch.Tensor, torch.Tensor]:
        pixels = processor(images=[Image.open(path).convert("RGB")], return_tensors="pt")
        output = model(**tokenizer([text], return_tensors="pt"), **pixels)
        return output.image_embeds[0], output.text_embeds[0]

    def mean_similarity(pairs: Any) -> float:
        return float(torch.stack([cosine_similarity(a, b, dim=0) for a, b in pairs]).mean())

    real, made = sorted((folder / "references").iterdir()), sorted((folder / "images").glob("*.png"))
    class_features = [dino(path) for path in sorted((folder / "class").iterdir())]
    real_dino, real_clip = [dino(path) for path in real], [clip(path)[0] for path in real]
    groups = [[dino(path) for path in made if prompts[path.name] == text] for text in PROMPTS]
    texts = {path: prompts[path.name].replace("sks ", "") for path in made}
    return {
        "dino": mean_similarity((dino(path), other) for path in made for other in real_dino),
        "clipI": mean_similarity((clip(path)[0], other) for path in made for other in real_clip),
        "clipT": mean_similarity(clip(path, texts[path]) for path in made),
        "pres": mean_similarity((one, other) for one in class_features for other in real_dino),
        "subjectDiversity": float(np.mean([1 - mean_similarity(combinations(g, 2)) for g in groups if len(g) > 1])),
        "classDiversity": 1 - mean_similarity(combinations(class_features, 2)),
        "real dino": mean_similarity(combinations(real_dino, 2)),
        "real clipI": mean_similarity(combinations(real_clip, 2)),
    }


def test_scores_equal_an_independent_implementation(
    encoders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], offline: None
) -> None:
    made = write_images(tmp_path / "images", 7, seed=0)
    write_images(tmp_path / "references", 4, seed=1, size=(64, 52))
    write_images(tmp_path / "class", 3, seed=2)
    prompts = {path.name: PROMPTS[index % 3] for index, path in enumerate(made)}
    # The three ways to give a prompt: metadata, a text file, and one prompt for the rest.
    write_metadata(tmp_path / "images", {name: text for name, text in prompts.items() if text == PROMPTS[0]})
    for path in made[1::3]:
        path.with_suffix(".txt").write_text(PROMPTS[1])
    arguments = ["--images", tmp_path / "images", "--references", tmp_path / "references", "--identifier", "sks"]
    arguments += ["--class-images", tmp_path / "class", "--prompt", PROMPTS[2]]
    arguments += ["--dino", encoders[0], "--clip", encoders[1]]
    code, text, _ = score(capsys, *arguments, "-o", "json")
    assert code == 0, text
    report = json.loads(text)
    expected = independent_scores(encoders, tmp_path, prompts)
    bounds = {f"real {name}": value for name, value in report["scores"]["realImages"].items()}
    assert report["scores"]["values"] | bounds == pytest.approx(expected, abs=1e-4)
    assert (report["images"], report["references"], report["classImages"]) == (7, 4, 3)
    assert [row["prompt"] for row in report["scores"]["prompts"]] == ["a dog", "a dog on the beach", "a dog, asleep"]
    assert report["notComputed"].keys() == {"div"}
    assert report["comparableWithPaper"] is False
    table = score(capsys, *arguments)[1]
    assert f"DINO │ {expected['dino']:.3f} │ {expected['real dino']:.3f}" in " ".join(table.split())
    assert report["dinoEncoder"]["digest"] in table


def test_the_digest_changes_with_the_weights(tmp_path: Path) -> None:
    from dreambooth_trainer.metrics.encoder_files import encoder_digest

    folder = write_dino(tmp_path / "dino")
    before = encoder_digest(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not loaded")
    assert encoder_digest(folder) == before
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert encoder_digest(folder) != before


def test_built_in_subjects_have_the_built_in_encoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images", 2, seed=0)
    code, text, _ = score(
        capsys, "--images", tmp_path / "images", "--prompt", "a dog", "--references", "builtin:sprites/dog-pink-blue",
        "-o", "json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(text)
    assert report["dinoEncoder"] == report["clipEncoder"]
    assert report["dinoEncoder"]["name"] == "builtin:sprites"
    assert report["scores"]["values"].keys() == {"dino", "clipI", "clipT", "subjectDiversity"}
    assert report["notComputed"]["pres"] == "needs --class-images"


def test_all_faults_of_the_folders_are_reported_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images", 3, seed=0)
    (tmp_path / "images" / "2.png").write_bytes(b"%PDF")
    rows = ['{"file_name": "9.png", "text": "a dog"}', "no JSON", '{"file_name": "0.png", "text": "a {} dog"}']
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join(rows))
    code, _, text = score(
        capsys, "--images", tmp_path / "images", "--references", tmp_path / "x", "--class-images", tmp_path / "y"
    )
    assert code == 2
    for fault in (
        f"--references: '{tmp_path}/x': does not exist",
        '--images["metadata.jsonl line 2"]: is not JSON',
        "line 3\"]: 'a {} dog': is not a caption: it has more than 300 characters, braces",
        f"--images: '{tmp_path}/images': has no prompt for 0.png, 1.png, 2.png; write metadata.jsonl with one line",
        '--images["2.png"]: is a PDF document',
        f"--class-images: '{tmp_path}/y': does not exist; pass a folder of images",
    ):
        assert fault in text, text


@pytest.mark.parametrize(
    ("identifier", "prompt", "expected"),
    [
        ("<new1>", "a <new1> dog, asleep", "a dog, asleep"),
        ("[V]", "a photo of a [V] dog", "a photo of a dog"),
        ("S*", "a photo of S*", "a photo of"),
        ("sks", "a masks shop of a sks dog", "a masks shop of a dog"),
    ],
)
def test_identifiers_are_removed_from_prompts(tmp_path: Path, identifier: str, prompt: str, expected: str) -> None:
    write_images(tmp_path / "images", 1, seed=0)
    assert [group.text for group in read_groups(tmp_path / "images", prompt, identifier)] == [expected]


def test_prompts_of_other_files_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images", 2, seed=0)
    write_metadata(tmp_path / "images", {"0.png": "a dog", "9.png": "a dog"})
    code, _, text = score(capsys, "--images", tmp_path / "images", "--references", tmp_path / "images")
    assert code == 2
    assert '--images["metadata.jsonl"]: has prompts of files that are not images of the folder: 9.png; correct' in text
    assert "has no prompt for 1.png; write" in text


def test_without_the_hub_the_message_says_what_to_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path / "images", 1, seed=0)
    code, _, text = score(capsys, "--images", tmp_path / "images", "--references", tmp_path / "images", "--prompt", "x")
    assert code == 2
    for option, model in (("--dino", "facebook/dino-vits16"), ("--clip", "openai/clip-vit-base-patch32")):
        name = model.partition("/")[2]
        assert (
            f"{option}: {model!r}: is not in the cache, and HF_HUB_OFFLINE is set; download {model} on another machine "
            f"(hf download {model} --local-dir {name}) and set {option} ./{name}; or set {option} builtin:sprites"
        ) in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--references: is required unless --images is a job; set a folder of real images"),
        (
            ["--references", "IMAGES", "--prompt", "a dog", "--identifier", "sks"],
            "--identifier: 'sks': is in no prompt",
        ),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_images(tmp_path / "images", 1, seed=0)
    given = [str(tmp_path / "images") if argument == "IMAGES" else argument for argument in arguments]
    code, _, text = score(capsys, "--images", tmp_path / "images", *given)
    assert code == 2
    assert message in text
