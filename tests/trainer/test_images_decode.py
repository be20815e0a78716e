"""Every supported image file is decoded to a square RGB image; every other file is rejected with a reason."""

import io
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imagefiles import USE_IMAGE, encoded, gradient
from PIL import Image, ImageCms, ImageOps

from dreambooth_api.errors import UserError
from dreambooth_trainer.images import RawImage, decode, prepare_image, prepare_photo


def prepared(data: bytes, resolution: int = 32) -> np.ndarray:
    """Pixels of the prepared image, int [resolution, resolution, 3]."""
    image = prepare_image(RawImage("a.png", data), resolution)
    assert (image.mode, image.size) == ("RGB", (resolution, resolution))
    return np.asarray(image).astype(int)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header_only_png(width: int, height: int) -> bytes:
    """A PNG with a large size in its header and no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels, end = png_chunk(b"IDAT", zlib.compress(b"")), png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + pixels + end


FRAMES = [gradient(), ImageOps.mirror(gradient())]
SINGLE_IMAGE = "save a single image as PNG"

REJECTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "an empty file": (lambda: b"", f"is empty (0 bytes); {USE_IMAGE}"),
    "text": (lambda: b"a sks dog\n", f"is text, regardless of its name; {USE_IMAGE}"),
    "text whose last character is truncated": (
        lambda: b"x" * 4095 + "é".encode(),
        f"is text, regardless of its name; {USE_IMAGE}",
    ),
    "random bytes": (
        lambda: b"\x00\x01\x02\xff" * 9,
        f"is an unknown format, regardless of its name; {USE_IMAGE}",
    ),
    "SVG": (
        lambda: b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        f"is an SVG image, regardless of its name; {USE_IMAGE}",
    ),
    "PDF": (lambda: b"%PDF-1.7\n", f"is a PDF document, regardless of its name; {USE_IMAGE}"),
    "a video": (
        lambda: b"\x00\x00\x00\x14ftypqt  \x00\x00\x00\x00qt  ",
        f"is a video (MP4 or QuickTime), regardless of its name; {USE_IMAGE}",
    ),
    "a web page": (lambda: b"<!DOCTYPE html><p>404", f"is a web page, regardless of its name; {USE_IMAGE}"),
    "a Git LFS pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\n",
        f"is a Git LFS pointer (run git lfs pull to download the image), regardless of its name; {USE_IMAGE}",
    ),
    "a link that a checkout saved as text": (
        lambda: b"../originals/my dog.jpg",
        "is a symbolic link to '../originals/my dog.jpg' saved as text (copy that file here, or check out the "
        f"repository again after git config core.symlinks true), regardless of its name; {USE_IMAGE}",
    ),
    "a link in the same folder": (
        lambda: b"0.JPG",
        "is a symbolic link to '0.JPG' saved as text (copy that file here, or check out the repository again after git "
        f"config core.symlinks true), regardless of its name; {USE_IMAGE}",
    ),
    "a link of git-annex that a checkout saved as text": (
        lambda: b"../.git/annex/objects/0.jpg",
        "is a link of git-annex saved as text (run git annex get or datalad get to download the image), regardless of "
        f"its name; {USE_IMAGE}",
    ),
    "a pointer of git-annex": (
        lambda: b"/annex/objects/MD5E-s9--0.jpg\n",
        "is a link of git-annex saved as text (run git annex get or datalad get to download the image), regardless of "
        f"its name; {USE_IMAGE}",
    ),
    "text with a path": (lambda: b"see a/b.jpg", f"is text, regardless of its name; {USE_IMAGE}"),
    "an animated GIF": (
        lambda: encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
        f"is an animation; {SINGLE_IMAGE}",
    ),
    "an animated PNG": (
        lambda: encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
        f"is an animation; {SINGLE_IMAGE}",
    ),
    "an animated WebP": (
        lambda: encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
        f"is an animation; {SINGLE_IMAGE}",
    ),
    "an animated AVIF": (
        lambda: encoded(FRAMES[0], "AVIF", save_all=True, append_images=FRAMES[1:]),
        f"is an animation; {SINGLE_IMAGE}",
    ),
    "a TIFF of two pages": (
        lambda: encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
        f"has several pages; {SINGLE_IMAGE}",
    ),
    "a raw photo": (
        lambda: encoded(gradient(), "TIFF", tiffinfo={254: 1}),
        "is a camera raw file, of which only a preview can be read; export it as JPEG or PNG",
    ),
    "floating-point pixels": (
        lambda: encoded(gradient().convert("F"), "TIFF"),
        "has 32-bit floating-point pixels, which are not supported; save it as 8-bit or 16-bit RGB",
    ),
    "a small image": (
        lambda: encoded(gradient(60, 15)),
        "has 60 x 15 pixels, training at resolution 32 requires at least 16 per side; "
        "use a larger image, or set training.resolution: 24",
    ),
    "a decompression bomb": (
        lambda: header_only_png(20_000, 20_000),
        "has 20,000 x 20,000 pixels, the maximum for PNG is 80 million pixels; "
        "scale it down to about 1024 pixels per side",
    ),
    "a decompression bomb of another shape": (
        lambda: header_only_png(2**31 - 1, 64),
        "has 2,147,483,647 x 64 pixels, the maximum for PNG is 80 million pixels; "
        "scale it down to about 1024 pixels per side",
    ),
}


@pytest.mark.parametrize("make, message", REJECTED.values(), ids=REJECTED)
def test_an_unusable_file_is_rejected_by_name(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(UserError) as caught:
        prepare_image(RawImage("03.png", make()), 32)
    assert str(caught.value) == f"03.png: {message}"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_a_truncated_file_is_rejected_by_name(kind: str) -> None:
    data = encoded(gradient(), kind)
    with pytest.raises(UserError, match=r"^03.png: is a damaged or truncated \w+ image \(.+\); copy it again"):
        prepare_image(RawImage("03.png", data[: len(data) * 2 // 3]), 32)


def test_the_error_for_a_small_image_suggests_a_resolution() -> None:
    with pytest.raises(UserError, match=r"at least 256 per side; use a larger image, or set training.resolution: 120$"):
        prepare_image(RawImage("a.png", encoded(gradient(90, 60))), 512)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "MPO"])
def test_every_format_is_cropped_to_the_center_square(kind: str) -> None:
    pixels = prepared(encoded(gradient(), kind))
    expected = np.asarray(gradient().crop((16, 0, 80, 64)).resize((32, 32), Image.Resampling.LANCZOS))
    assert np.abs(pixels - expected).mean() < 4


def test_a_static_gif_is_accepted() -> None:
    assert np.abs(prepared(encoded(gradient(), "GIF")) - prepared(encoded(gradient()))).mean() < 12


def test_the_first_image_of_an_mpo_file_is_used() -> None:
    both = encoded(gradient(), "MPO", save_all=True, append_images=[ImageOps.mirror(gradient())])
    assert np.abs(prepared(both) - prepared(encoded(gradient()))).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient(), kind, exif=exif)
    upright = encoded(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.abs(prepared(data) - prepared(upright)).mean() < 4


def test_transparency_is_blended_with_white_without_a_dark_edge() -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 31, 64))
    pixels = prepared(encoded(image))
    assert (pixels[:, 0] == (255, 0, 0)).all()
    assert (pixels[:, -1] == 255).all()
    assert (pixels[..., 0] > 250).all()


PIXELS: dict[str, Callable[[], bytes]] = {
    "gray": lambda: encoded(Image.new("L", (64, 64), 200)),
    "gray with transparency": lambda: encoded(Image.new("LA", (64, 64), (200, 255))),
    "16-bit gray": lambda: encoded(Image.fromarray(np.full((64, 64), 200 << 8, np.uint16))),
    "16-bit gray TIFF": lambda: encoded(Image.fromarray(np.full((64, 64), 200 << 8, np.uint16)), "TIFF"),
    "palette": lambda: encoded(Image.new("RGB", (64, 64), (200, 200, 200)).quantize()),
    "palette with a transparent entry": lambda: encoded(Image.new("L", (64, 64), 200).convert("P"), transparency=7),
    "CMYK": lambda: encoded(Image.new("CMYK", (64, 64), (0, 0, 0, 55)), "TIFF"),
    "CMYK JPEG": lambda: encoded(Image.new("CMYK", (64, 64), (0, 0, 0, 55)), "JPEG"),
}


@pytest.mark.parametrize("make", PIXELS.values(), ids=PIXELS)
def test_every_pixel_format_is_converted_to_rgb(make: Callable[[], bytes]) -> None:
    assert np.abs(prepared(make()) - 200).max() <= 2


def test_a_bilevel_image_is_converted_to_rgb() -> None:
    assert (prepared(encoded(Image.new("1", (64, 64), 1))) == 255).all()


def test_an_embedded_color_profile_is_applied() -> None:
    # Pillow can create no other RGB profile, so this is sRGB with its red and green primaries swapped.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    pixels = prepared(encoded(Image.new("RGB", (64, 64), (255, 0, 0)), icc_profile=bytes(profile)))
    assert np.abs(pixels - (0, 255, 0)).max() <= 2


@pytest.mark.parametrize("profile", [b"garbage", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()])
def test_a_profile_of_another_color_space_is_ignored(profile: bytes) -> None:
    assert (prepared(encoded(Image.new("RGB", (64, 64), (9, 99, 200)), icc_profile=profile)) == (9, 99, 200)).all()


def test_metadata_of_the_file_is_removed() -> None:
    exif = Image.Exif()
    exif[0x010E] = "at home"
    assert prepare_image(RawImage("a", encoded(gradient(), "JPEG", exif=exif, comment=b"x")), 32).info == {}


def test_a_large_jpeg_is_decoded_at_a_reduced_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(gradient(2000, 1600), "JPEG")
    monkeypatch.setattr(decode, "MAX_PIXELS", 250 * 200)
    assert np.abs(prepared(data) - prepared(encoded(gradient(2000, 1600).resize((100, 80))))).mean() < 5
    with pytest.raises(UserError, match=r"has 2,000 x 1,600 pixels, the maximum for progressive JPEG is"):
        prepare_image(RawImage("a.jpg", encoded(gradient(2000, 1600), "JPEG", progressive=True)), 32)


def test_a_decompression_bomb_is_rejected_without_allocating_memory() -> None:
    bomb = RawImage("bomb.png", header_only_png(100_000, 100_000))
    tracemalloc.start()
    with pytest.raises(UserError):
        prepare_image(bomb, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"]), st.data())
@settings(max_examples=150, deadline=None)
def test_any_damaged_file_is_decoded_or_rejected(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(encoded(gradient(40, 40), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        # Damaged headers cause more kinds of errors than damaged pixels.
        limit = data.draw(st.sampled_from([64, len(damaged)]))
        damaged[data.draw(st.integers(0, min(limit, len(damaged)) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = prepare_image(RawImage("a", bytes(damaged)), 32)
    except UserError as error:
        assert error.issues[0].path == "a"
    else:
        assert (image.mode, image.size) == ("RGB", (32, 32))


LARGE = zlib.compress(bytes(3 * 2**20))
METADATA = {
    "a large compressed text": png_chunk(b"zTXt", b"workflow\0\0" + LARGE),
    "a large international text": png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + LARGE),
    "many texts": 80 * png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 1))),
    "a large color profile": png_chunk(b"iCCP", b"monitor\0\0" + LARGE),
    "a damaged color profile": png_chunk(b"iCCP", b"monitor\0\0" + b"x" * 9),
    "a wrong checksum": png_chunk(b"tEXt", b"a\0b")[:-1] + b"!",
    "damaged EXIF": png_chunk(b"eXIf", b"MM\0*" + b"\xff" * 30),
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA)
@pytest.mark.parametrize("position", ["before the pixels", "after the pixels"])
def test_metadata_of_an_intact_png_does_not_matter(metadata: bytes, position: str) -> None:
    plain = encoded(gradient())
    at = 33 if position == "before the pixels" else len(plain) - 12
    assert np.array_equal(prepared(plain[:at] + metadata + plain[at:]), prepared(plain))


def test_a_photo_keeps_the_whole_image_upright_and_is_not_enlarged() -> None:
    wide = gradient(96, 64)
    photo = prepare_photo(RawImage("a", encoded(wide)), 32)
    assert (photo.mode, photo.size, photo.info) == ("RGB", (96, 64), {})
    assert np.array_equal(np.asarray(photo), np.asarray(wide))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert prepare_photo(RawImage("a", encoded(wide, "JPEG", exif=exif)), 32).size == (64, 96)


@pytest.mark.parametrize(("resolution", "size"), [(512, (1536, 1024)), (1280, (1920, 1280))])
def test_a_large_photo_is_scaled_down(resolution: int, size: tuple[int, int]) -> None:
    assert prepare_photo(RawImage("a", encoded(gradient(2400, 1600))), resolution).size == size


def heic(image: Image.Image, **options: Any) -> bytes:
    pillow_heif.register_heif_opener()
    return encoded(image, "HEIF", **options)


def test_heic_photos_are_read_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the pixels is on the right
    data = heic(gradient(160, 96), quality=95, exif=exif.tobytes())
    image = np.asarray(prepare_image(RawImage("IMG_1.HEIC", data), 64)).astype(int)
    expected = np.asarray(prepare_image(RawImage("a.png", encoded(gradient(160, 96).rotate(-90, expand=True))), 64))
    assert np.abs(image - expected).mean() < 6
    assert prepare_photo(RawImage("IMG_1.HEIC", data), 64).size == (96, 160)
    with pytest.raises(UserError, match=r"IMG_1.HEIC: is a damaged or truncated HEIC image"):
        prepare_image(RawImage("IMG_1.HEIC", data[: len(data) // 2]), 64)


def test_a_heic_photo_names_the_extra_if_its_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(gradient())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError) as caught:
        prepare_image(RawImage("IMG_1.HEIC", data), 32)
    assert str(caught.value) == (
        "IMG_1.HEIC: is a HEIC photo, which requires the package pillow-heif; pip install "
        "'dreambooth-operator[heif]', or export the photo as JPEG"
    )
