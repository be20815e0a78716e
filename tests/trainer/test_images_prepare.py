"""All images of a subject are prepared at once, with warnings; real photographs are used if they are present."""

import os
from pathlib import Path

import numpy as np
import pytest
from imagefiles import USE_IMAGE, encoded, gradient, noise
from PIL import Image

from dreambooth_api.errors import UserError
from dreambooth_trainer.images import RawImage, prepare_images, read_folder

PHOTOS = Path(os.environ.get("DREAMBOOTH_DATASET", Path(__file__).parents[2].parent / "shared" / "dreambooth-dataset"))


def test_a_wide_image_is_cropped_with_warnings() -> None:
    found = prepare_images([RawImage("wide.png", encoded(Image.new("L", (20_000, 400), 90)))], 512)
    assert (np.asarray(found.images[0].image) == 90).all()
    assert found.warnings == [
        "1 image: 3-5 images from different angles work best",
        "wide.png: cropping to the center square keeps 2% of the image; crop it around the subject",
        "wide.png: upscaled from 400 to 512 pixels; a larger image is sharper",
        "wide.png (0): may be blurred: the variance of the Laplacian is less than 30; training learns the blur",
    ]


def test_all_unusable_files_and_captions_are_reported_at_once() -> None:
    raws = [RawImage("00.png", encoded(gradient())), RawImage("01.png", b""), RawImage("02.png", b"text")]
    with pytest.raises(UserError) as caught:
        prepare_images(raws, 32, {"00.png": "a sks dog", "03.png": "a sks dog"})
    assert [str(issue) for issue in caught.value.issues] == [
        'spec.subject.captions["03.png"]: is not an image of the subject; did you mean 02.png?',
        f"01.png: is empty (0 bytes); {USE_IMAGE}",
        f"02.png: is text, regardless of its name; {USE_IMAGE}",
    ]


def test_duplicates_cause_a_warning() -> None:
    bmp, png = encoded(noise(), "BMP"), encoded(noise())
    found = prepare_images([RawImage("a.bmp", bmp), RawImage("b.png", png), RawImage("c.png", png)], 32, {"a.bmp": "x"})
    assert [image.caption for image in found.images] == ["x", None, None]
    assert len({image.digest for image in found.images}) == 1
    assert found.warnings == [
        "b.png is a duplicate of a.bmp; training uses both",
        "c.png is a duplicate of a.bmp; training uses both",
    ]


def test_two_hundred_images_are_accepted_with_a_warning() -> None:
    raws = [RawImage(f"{i:03}.png", encoded(noise(32, 32, seed=i))) for i in range(200)]
    found = prepare_images(raws, 32)
    assert len(found.images) == 200
    assert found.warnings == [
        "200 images: 3-5 images work best; more images need more steps and reduce subject fidelity"
    ]


def test_an_empty_list_of_images_is_rejected() -> None:
    with pytest.raises(UserError, match="contains no images; add 3-5 images of the subject"):
        prepare_images([], 32)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"{PHOTOS} is absent: the photographs are not in this repository")
def test_real_photographs_are_accepted() -> None:
    for subject in (path for path in sorted(PHOTOS.iterdir()) if path.is_dir()):
        found = prepare_images(read_folder(str(subject)).images, 512)
        assert 4 <= len(found.images) <= 6
        assert found.warnings == []
        assert all(np.asarray(image.image).std() > 10 for image in found.images)
