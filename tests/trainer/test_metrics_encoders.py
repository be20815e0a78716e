"""Encoders with tiny random models: shapes, preprocessing, and errors for missing weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from tinyencoders import SIDE, write_clip, write_dino
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, ViTModel

from dreambooth_api.errors import UserError
from dreambooth_trainer.metrics import batching
from dreambooth_trainer.metrics.encoders import (
    Encoders,
    SpriteSubjectEncoder,
    SpriteTextEncoder,
    load_encoders,
)
from dreambooth_trainer.metrics.scores import comparable_with_paper


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def loaded(dino: Path, clip: Path) -> Encoders:
    return load_encoders(str(dino), str(clip))


def _images(count: int, size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(count)
    noise = torch.randint(0, 256, (count, size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(pixels.numpy()) for pixels in noise]


def test_features_are_normalized_float32_and_independent_of_the_batch(
    loaded: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _images(5)
    whole = [loaded.dino.encode(images), loaded.clip.encode(images), loaded.clip.encode_text(["a dog", "cat"])]
    assert [tuple(rows.shape) for rows in whole] == [(5, 16), (5, 12), (2, 12)]
    for rows in whole:
        assert rows.dtype == torch.float32
        assert not rows.requires_grad
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    monkeypatch.setattr(batching, "BATCH_SIZE", 2)
    torch.testing.assert_close(loaded.dino.encode(images), whole[0])
    torch.testing.assert_close(loaded.clip.encode(images), whole[1])
    # Padding in a batch with longer texts must not change the features.
    torch.testing.assert_close(loaded.clip.encode_text(["cat"]), whole[2][1:])


def test_dino_uses_the_class_token_and_the_preprocessing_of_the_authors(dino: Path, loaded: Encoders) -> None:
    image = _images(1, (64, 48))[0]
    # By hand: bicubic resize of the shorter side to 32 (256/224 of 28), center crop to 28 x 28, ImageNet statistics.
    resized = image.resize((42, 32), Image.Resampling.BICUBIC).crop((7, 2, 35, 30))
    pixels = torch.tensor(list(resized.tobytes()), dtype=torch.float32).view(SIDE, SIDE, 3) / 255
    pixels = (pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    model = ViTModel.from_pretrained(dino, add_pooling_layer=False).eval()
    with torch.no_grad():
        token = model(pixel_values=pixels.permute(2, 0, 1)[None]).last_hidden_state[0, 0]
    torch.testing.assert_close(loaded.dino.encode([image])[0], token / token.norm(), atol=1e-5, rtol=1e-4)


def test_clip_features_reproduce_the_logits_of_the_model(clip: Path, loaded: Encoders) -> None:
    """Both image and text features must be projected and normalized."""
    images, texts = _images(2), ["dog", "a cat"]
    model = CLIPModel.from_pretrained(clip).eval()
    processor, tokenizer = CLIPImageProcessorPil.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    inputs = {**tokenizer(texts, padding=True, return_tensors="pt"), **processor(images=images, return_tensors="pt")}
    with torch.no_grad():
        expected = model(**inputs).logits_per_image / model.logit_scale.exp()
    torch.testing.assert_close(loaded.clip.encode(images) @ loaded.clip.encode_text(texts).T, expected)


def test_long_texts_and_other_image_modes_are_accepted(loaded: Encoders) -> None:
    assert loaded.clip.encode_text(["dog " * 100]).shape == (1, 12)
    modes = [image.convert(mode) for image, mode in zip(_images(3), ("L", "RGBA", "P"), strict=True)]
    assert loaded.dino.encode(modes).shape == (3, 16)
    assert loaded.dino.encode([]).shape == (0, 16)


def test_both_missing_folders_are_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_encoders("/nowhere/dino", "./nowhere-clip")
    remedy = "set a local folder with the model, builtin:sprites for sprite subjects, or evaluation.enabled: false"
    assert str(caught.value).splitlines() == [
        f"spec.evaluation.encoders.dino: '/nowhere/dino': the folder does not exist; {remedy}",
        f"spec.evaluation.encoders.clip: './nowhere-clip': the folder does not exist; {remedy}",
    ]


def test_pickled_weights_are_rejected(dino: Path, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((dino / "config.json").read_text())
    torch.save(ViTModel.from_pretrained(dino).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="no ViTModel with safetensors weights was found"):
        load_encoders(str(tmp_path), str(clip))


def test_a_checkpoint_of_another_architecture_is_rejected(dino: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"spec\.evaluation\.encoders\.dino") as caught:
        load_encoders(str(clip), str(clip))
    assert len(caught.value.issues) == 1
    config = json.loads((dino / "config.json").read_text()) | {"num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((dino / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="is not a checkpoint of a ViTModel"):
        load_encoders(str(tmp_path), str(clip))


@pytest.mark.parametrize(
    ("dino_name", "clip_name", "comparable"),
    [
        ("facebook/dino-vits16", "openai/clip-vit-base-patch32", True),
        ("/models/dino-vits16", "/models/clip-vit-base-patch32", True),
        ("builtin:sprites", "builtin:sprites", False),
        ("facebook/dino-vitb16", "openai/clip-vit-base-patch32", False),
    ],
)
def test_only_scores_of_the_papers_encoders_are_comparable_with_the_paper(
    dino_name: str, clip_name: str, comparable: bool
) -> None:
    assert comparable_with_paper(dino_name, clip_name) is comparable


class FakeEvaluator:
    """Distinct subject, image and text features."""

    def image_features_subject(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(images), 1)

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.tensor([[0.0, 1.0, 0.0]]).repeat(len(images), 1)

    def text_features(self, texts: list[str]) -> Tensor:
        assert isinstance(texts, list)
        return torch.tensor([[0.0, 0.0, 1.0]]).repeat(len(texts), 1)


def test_the_sprite_evaluator_replaces_both_encoders() -> None:
    evaluator = FakeEvaluator()
    encoders = Encoders(SpriteSubjectEncoder(evaluator), SpriteTextEncoder(evaluator))
    assert encoders.dino.name == encoders.clip.name == "builtin:sprites"
    assert encoders.dino.encode(_images(2)).argmax(dim=1).tolist() == [0, 0]
    assert encoders.clip.encode(_images(2)).argmax(dim=1).tolist() == [1, 1]
    assert encoders.clip.encode_text(("a", "b")).argmax(dim=1).tolist() == [2, 2]
