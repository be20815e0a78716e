"""Augmented variants are functions of the seed, the image and the variant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from test_plan import make_plan

from dreambooth_trainer.images.augment import augment
from dreambooth_trainer.phases.encode import encode, instance_images
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.training.cache import load_data


def ramp(width: int, height: int) -> Image.Image:
    """The red of a pixel is its column, the green its row."""
    image = Image.new("RGB", (width, height))
    image.putdata([(column, row, 0) for row in range(height) for column in range(width)])
    return image


def variants(photo: Image.Image, count: int, *, crop: bool, flip: bool, seed: int = 0, number: int = 0) -> list[bytes]:
    return [
        augment(photo, 16, seed, number, variant, random_crop=crop, random_flip=flip).tobytes()
        for variant in range(count)
    ]


@pytest.mark.parametrize("size", [(200, 16), (16, 200)])
def test_crops_are_squares_along_the_longer_side(size: tuple[int, int]) -> None:
    axis = 0 if size[0] > size[1] else 1
    starts: list[float] = []
    for variant in range(8):
        crop = augment(ramp(*size), 16, 0, 0, variant, random_crop=True, random_flip=False)
        assert crop.size == (16, 16)
        first, last = (crop.getpixel(at)[axis] for at in ((0, 0), (15, 15)))  # type: ignore[index]
        assert last - first == pytest.approx(15, abs=1)
        starts.append(first)
    assert len(set(starts)) >= 6
    assert max(starts) - min(starts) > 60


def test_variants_depend_on_seed_image_and_variant_only() -> None:
    photo = ramp(200, 16)
    first = variants(photo, 8, crop=True, flip=False)
    assert first == variants(photo, 8, crop=True, flip=False)
    assert first != variants(photo, 8, crop=True, flip=False, seed=1)
    assert first != variants(photo, 8, crop=True, flip=False, number=1)


def test_every_crop_is_also_mirrored() -> None:
    photo = ramp(200, 16)
    both = variants(photo, 16, crop=True, flip=True)
    assert both[::2] == variants(photo, 8, crop=True, flip=False)
    mirrored = [ImageOps.mirror(Image.frombytes("RGB", (16, 16), pixels)).tobytes() for pixels in both[::2]]
    assert both[1::2] == mirrored


@pytest.mark.parametrize(
    ("training", "count"),
    [({}, 1), ({"randomFlip": True}, 2), ({"randomCrop": True}, 8), ({"randomCrop": True, "randomFlip": True}, 16)],
)
def test_variants_of_an_image_are_encoded_in_a_row(tmp_path: Path, training: dict[str, bool], count: int) -> None:
    plan = make_plan({"training": training}).model_copy(update={"resolution": 16})
    folder = JobFolder(tmp_path)
    for path, size in ((folder.prepared, (16, 16)), (folder.photos, (200, 16))):
        path.mkdir(parents=True)
        for number in range(2):
            ramp(*size).save(path / f"{number:03d}.png")
    assert plan.variants_per_image == count
    assert plan.augmentation == {1: "none", 2: "random flip", 8: "random crop", 16: "random crop, random flip"}[count]
    images = instance_images(plan, folder)
    assert len(images) == 2 * count
    assert {image.size for image in images} == {(16, 16)}
    if training:
        options = {"crop": training.get("randomCrop", False), "flip": training.get("randomFlip", False)}
        second = variants(ramp(200, 16), count, **options, number=1)
        assert [image.tobytes() for image in images[count:]] == second
    else:
        assert images[0].tobytes() == ramp(16, 16).tobytes()


def test_every_variant_has_the_latents_and_the_prompt_of_its_image(tmp_path: Path) -> None:
    plan = make_plan({"training": {"randomFlip": True, "textEncoder": {"train": False}}})
    folder = JobFolder(tmp_path)
    folder.photos.mkdir(parents=True)
    for number, color in enumerate(("red", "blue")):
        photo = Image.new("RGB", (32, 32), color)
        photo.paste("white", (0, 0, 8, 32))  # an asymmetric mark
        photo.save(folder.photos / f"{number:03d}.png")
    encode(plan, folder, [["a sks dog", "a sks dog on the beach"]], [1, 1], [])
    latents = load_data(folder.latents).instance_images
    assert latents.prompt_indices.tolist() == [0, 0, 1, 1]
    red, red_mirrored, blue, _ = latents.images["latent_mean"]
    assert not torch.allclose(red, red_mirrored, atol=0.1)
    distance = (red.flip(-1) - red_mirrored).abs().mean()
    assert distance < (red - red_mirrored).abs().mean()
    assert distance < (red - blue).abs().mean()
    assert len(latents.prompts["text_embeds"]) == 2
