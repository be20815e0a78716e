"""Images good and bad, all made on the fly; real photographs where ../shared has them."""

import io
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from dreambooth_api.errors import UserError
from dreambooth_api.subject import ImageSource
from dreambooth_trainer.images import RawImage, decode, prepare_image, prepare_images, read_folder, read_images, sources

PHOTOS = Path(os.environ.get("DREAMBOOTH_DATASET", Path(__file__).parents[2].parent / "shared" / "dreambooth-dataset"))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(width: int = 96, height: int = 64) -> Image.Image:
    """Red grows to the right, green downwards: any turn or mirror shows."""
    x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)
    pixels = np.stack([*np.meshgrid(x, y), np.full((height, width), 60)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def prepared(data: bytes, resolution: int = 32) -> np.ndarray:
    """Pixels of the prepared image, int [resolution, resolution, 3]."""
    image = prepare_image(RawImage("a.png", data), resolution)
    assert (image.mode, image.size) == ("RGB", (resolution, resolution))
    return np.asarray(image).astype(int)


def header_only_png(width: int, height: int) -> bytes:
    """A PNG that promises much and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


FRAMES = [gradient(), ImageOps.mirror(gradient())]
READABLE = "give a JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF image, or remove the file"
PICTURE = "save the picture you mean as PNG"

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing at all": (lambda: b"", f"is empty (0 bytes); {READABLE}"),
    "text": (lambda: b"a sks dog\n", f"is text, whatever its name says; {READABLE}"),
    "text whose last character is cut": (
        lambda: b"x" * 4095 + "é".encode(),
        f"is text, whatever its name says; {READABLE}",
    ),
    "noise": (
        lambda: b"\x00\x01\x02\xff" * 9,
        f"is no image that can be read here, whatever its name says; {READABLE}",
    ),
    "SVG": (
        lambda: b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        f"is an SVG drawing, whatever its name says; {READABLE}",
    ),
    "PDF": (lambda: b"%PDF-1.7\n", f"is a PDF document, whatever its name says; {READABLE}"),
    "HEIC": (
        lambda: b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
        f"is a HEIC photo, whatever its name says; {READABLE}",
    ),
    "a video": (
        lambda: b"\x00\x00\x00\x14ftypqt  \x00\x00\x00\x00qt  ",
        f"is a video (MP4 or QuickTime), whatever its name says; {READABLE}",
    ),
    "a web page": (lambda: b"<!DOCTYPE html><p>404", f"is a web page, whatever its name says; {READABLE}"),
    "a Git LFS pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\n",
        f"is a Git LFS pointer; run git lfs pull to get the image itself, whatever its name says; {READABLE}",
    ),
    "an animated GIF": (
        lambda: encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
        f"is an animation; {PICTURE}",
    ),
    "an animated PNG": (
        lambda: encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
        f"is an animation; {PICTURE}",
    ),
    "an animated WebP": (
        lambda: encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
        f"is an animation; {PICTURE}",
    ),
    "an animated AVIF": (
        lambda: encoded(FRAMES[0], "AVIF", save_all=True, append_images=FRAMES[1:]),
        f"is an animation; {PICTURE}",
    ),
    "a TIFF of two pages": (
        lambda: encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
        f"has several pages; {PICTURE}",
    ),
    "a raw photo": (
        lambda: encoded(gradient(), "TIFF", tiffinfo={254: 1}),
        "is a camera's raw file that shows only a preview; export it as JPEG or PNG",
    ),
    "floating-point pixels": (
        lambda: encoded(gradient().convert("F"), "TIFF"),
        "has 32-bit floating-point pixels, whose white is not known; save it as 8-bit or 16-bit RGB",
    ),
    "a small picture": (
        lambda: encoded(gradient(60, 15)),
        "has 60 x 15 pixels; training at 32 needs a shorter side of at least 16; "
        "give a larger picture, or set training.resolution: 24",
    ),
    "a decompression bomb": (
        lambda: header_only_png(20_000, 20_000),
        "has 20,000 x 20,000 pixels; at most 80 million are read of a PNG; scale it to about 1024 pixels a side",
    ),
    "a bomb of another shape": (
        lambda: header_only_png(2**31 - 1, 64),
        "has 2,147,483,647 x 64 pixels; at most 80 million are read of a PNG; scale it to about 1024 pixels a side",
    ),
}


@pytest.mark.parametrize("make, sentence", REFUSED.values(), ids=REFUSED)
def test_a_bad_file_is_refused_by_name(make: Callable[[], bytes], sentence: str) -> None:
    with pytest.raises(UserError) as told:
        prepare_image(RawImage("03.png", make()), 32)
    assert str(told.value) == f"03.png: {sentence}"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_a_cut_off_file_is_refused_by_name(kind: str) -> None:
    data = encoded(gradient(), kind)
    with pytest.raises(UserError, match=r"^03.png: is a damaged or cut-off \w+ image \(.+\); copy it again"):
        prepare_image(RawImage("03.png", data[: len(data) * 2 // 3]), 32)


def test_a_small_picture_comes_with_a_resolution_that_would_do() -> None:
    with pytest.raises(UserError, match=r"at least 256; give a larger picture, or set training.resolution: 120$"):
        prepare_image(RawImage("a.png", encoded(gradient(90, 60))), 512)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "MPO"])
def test_every_format_gives_the_centre_square(kind: str) -> None:
    pixels = prepared(encoded(gradient(), kind))
    expected = np.asarray(gradient().crop((16, 0, 80, 64)).resize((32, 32), Image.Resampling.LANCZOS))
    assert np.abs(pixels - expected).mean() < 4


def test_a_static_gif_works() -> None:
    assert np.abs(prepared(encoded(gradient(), "GIF")) - prepared(encoded(gradient()))).mean() < 12


def test_a_picture_of_two_as_phones_make_them_is_its_first() -> None:
    both = encoded(gradient(), "MPO", save_all=True, append_images=[ImageOps.mirror(gradient())])
    assert np.abs(prepared(both) - prepared(encoded(gradient()))).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_picture_is_turned_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient(), kind, exif=exif)
    upright = encoded(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.abs(prepared(data) - prepared(upright)).mean() < 4


def test_transparency_lies_on_white_without_a_dark_edge() -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 31, 64))
    pixels = prepared(encoded(image))
    assert (pixels[:, 0] == (255, 0, 0)).all()
    assert (pixels[:, -1] == 255).all()
    assert (pixels[..., 0] > 250).all()


COLOURS: dict[str, Callable[[], bytes]] = {
    "grey": lambda: encoded(Image.new("L", (64, 64), 200)),
    "grey with transparency": lambda: encoded(Image.new("LA", (64, 64), (200, 255))),
    "16-bit grey": lambda: encoded(Image.fromarray(np.full((64, 64), 200 << 8, np.uint16))),
    "16-bit grey TIFF": lambda: encoded(Image.fromarray(np.full((64, 64), 200 << 8, np.uint16)), "TIFF"),
    "palette": lambda: encoded(Image.new("RGB", (64, 64), (200, 200, 200)).quantize()),
    "palette with a transparent entry": lambda: encoded(Image.new("L", (64, 64), 200).convert("P"), transparency=7),
    "CMYK": lambda: encoded(Image.new("CMYK", (64, 64), (0, 0, 0, 55)), "TIFF"),
    "CMYK JPEG": lambda: encoded(Image.new("CMYK", (64, 64), (0, 0, 0, 55)), "JPEG"),
}


@pytest.mark.parametrize("make", COLOURS.values(), ids=COLOURS)
def test_every_kind_of_pixel_becomes_rgb(make: Callable[[], bytes]) -> None:
    assert np.abs(prepared(make()) - 200).max() <= 2


def test_black_and_white_becomes_rgb() -> None:
    assert (prepared(encoded(Image.new("1", (64, 64), 1))) == 255).all()


def test_an_embedded_profile_is_applied() -> None:
    # Lab has no RGB rival in Pillow, so the profile is sRGB with its red and green primaries exchanged.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    pixels = prepared(encoded(Image.new("RGB", (64, 64), (255, 0, 0)), icc_profile=bytes(profile)))
    assert np.abs(pixels - (0, 255, 0)).max() <= 2


@pytest.mark.parametrize("profile", [b"rubbish", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()])
def test_a_profile_that_does_not_fit_is_ignored(profile: bytes) -> None:
    assert (prepared(encoded(Image.new("RGB", (64, 64), (9, 99, 200)), icc_profile=profile)) == (9, 99, 200)).all()


def test_nothing_of_the_file_rides_along() -> None:
    exif = Image.Exif()
    exif[0x010E] = "at home"
    assert prepare_image(RawImage("a", encoded(gradient(), "JPEG", exif=exif, comment=b"x")), 32).info == {}


def test_a_wide_picture_works_below_the_cap_and_says_what_it_loses() -> None:
    found = prepare_images([RawImage("wide.png", encoded(Image.new("L", (20_000, 400), 90)))], 512)
    assert (np.asarray(found.images[0].image) == 90).all()
    assert found.warnings == [
        "1 image: the method works best with 3-5, from several sides",
        "wide.png: only the middle 2% of it is kept; crop it around the subject yourself",
        "wide.png: 400 pixels were enlarged to 512; a larger picture is sharper",
    ]


def test_a_large_jpeg_is_never_held_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(gradient(2000, 1600), "JPEG")
    monkeypatch.setattr(decode, "MAX_PIXELS", 250 * 200)
    assert np.abs(prepared(data) - prepared(encoded(gradient(2000, 1600).resize((100, 80))))).mean() < 5
    with pytest.raises(UserError, match=r"has 2,000 x 1,600 pixels; .* of a progressive JPEG"):
        prepare_image(RawImage("a.jpg", encoded(gradient(2000, 1600), "JPEG", progressive=True)), 32)


def test_a_bomb_costs_no_memory() -> None:
    bomb = RawImage("bomb.png", header_only_png(100_000, 100_000))
    tracemalloc.start()
    with pytest.raises(UserError):
        prepare_image(bomb, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"]), st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_is_survived_or_told(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(encoded(gradient(40, 40), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        # Headers break in more interesting ways than pixels.
        limit = data.draw(st.sampled_from([64, len(damaged)]))
        damaged[data.draw(st.integers(0, min(limit, len(damaged)) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = prepare_image(RawImage("a", bytes(damaged)), 32)
    except UserError as error:
        assert error.issues[0].path == "a"
    else:
        assert (image.mode, image.size) == ("RGB", (32, 32))


def test_all_bad_files_and_captions_are_told_at_once() -> None:
    raws = [RawImage("00.png", encoded(gradient())), RawImage("01.png", b""), RawImage("02.png", b"text")]
    with pytest.raises(UserError) as told:
        prepare_images(raws, 32, {"00.png": "a sks dog", "03.png": "a sks dog"})
    assert [str(issue) for issue in told.value.issues] == [
        'spec.subject.captions["03.png"]: names no image of the subject; did you mean 02.png?',
        f"01.png: is empty (0 bytes); {READABLE}",
        f"02.png: is text, whatever its name says; {READABLE}",
    ]


def test_the_same_picture_twice_is_said() -> None:
    bmp, png = encoded(gradient(), "BMP"), encoded(gradient())
    found = prepare_images([RawImage("a.bmp", bmp), RawImage("b.png", png), RawImage("c.png", png)], 32, {"a.bmp": "x"})
    assert [image.caption for image in found.images] == ["x", None, None]
    assert len({image.digest for image in found.images}) == 1
    assert found.warnings == [
        "b.png is the same picture as a.bmp; it counts twice in training",
        "c.png is the same picture as a.bmp; it counts twice in training",
    ]


def test_two_hundred_images_work_and_are_said_to_be_many() -> None:
    raws = [RawImage(f"{i:03}.png", encoded(Image.new("RGB", (32, 32), (i, 0, 0)))) for i in range(200)]
    found = prepare_images(raws, 32)
    assert len(found.images) == 200
    assert found.warnings == ["200 images: the method is made for 3-5; more dilute the subject and need more steps"]


def test_no_image_is_an_error() -> None:
    with pytest.raises(UserError, match="holds no images; put 3-5 pictures of the subject there"):
        prepare_images([], 32)


def test_a_folder_is_read_in_order_and_without_what_is_no_image(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", ".hidden", ".DS_Store", "Thumbs.db", "a.txt", "c"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "more").mkdir()
    found = read_folder(str(tmp_path))
    assert found.images == [RawImage(name, name.encode()) for name in ("a.JPG", "b.png", "c")]
    assert found.warnings == [
        f"more in {tmp_path}: folders inside the folder are not searched",
        f"Thumbs.db, a.txt in {tmp_path}: not read as images",
    ]
    assert read_folder(f"file://{tmp_path}").images == found.images


def test_a_bucket_is_read_like_a_folder() -> None:
    files = fsspec.filesystem("memory")
    files.pipe({"/photos/1.png": b"one", "/photos/2.png": b"two", "/photos/sub/3.png": b"three"})
    assert [image.name for image in read_folder("memory://photos").images] == ["1.png", "2.png"]


def test_a_mounted_secret_is_read_through_its_links(tmp_path: Path) -> None:
    # The kubelet mounts keys as links into a dated folder, so that all change at once.
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "a.png").write_bytes(b"x")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "a.png").symlink_to("..data/a.png")
    source = ImageSource.model_validate({"secret": {"name": "photos"}})
    assert read_images(source, tmp_path).images == [RawImage("a.png", b"x")]
    with pytest.raises(UserError, match=r"^spec.subject.images.secret: is on a cluster"):
        read_images(source)


def test_a_volume_has_a_folder(tmp_path: Path) -> None:
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.png").write_bytes(b"x")
    source = ImageSource.model_validate({"pvc": {"claimName": "photos", "path": "dog"}})
    assert read_images(source, tmp_path).images == [RawImage("a.png", b"x")]


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "it is not there": (lambda at: None, "does not exist; correct the path; it is relative to the job file"),
    "it is a file": (lambda at: at.write_bytes(b""), "is a file; give the folder that it is in"),
    "it is empty": (lambda at: at.mkdir(), "holds no images; put 3-5 pictures of the subject there"),
    "only folders are in it": (
        lambda at: (at / "dog").mkdir(parents=True),
        "holds no images, only dog; give one of its folders: {at}/dog",
    ),
    "only captions are in it": (
        lambda at: (at.mkdir(), (at / "a.txt").write_bytes(b"")),
        "holds no images, only a.txt; put 3-5 pictures of the subject there",
    ),
}


@pytest.mark.parametrize("make, sentence", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_without_images_is_told(tmp_path: Path, make: Callable[[Path], object], sentence: str) -> None:
    at = tmp_path / "photos"
    make(at)
    with pytest.raises(UserError) as told:
        read_folder(str(at))
    assert str(told.value.issues[0]).endswith(sentence.format(at=at))
    assert told.value.issues[0].path == "spec.subject.images.uri"


def test_sizes_are_judged_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        with (tmp_path / name).open("wb") as file:
            file.truncate(100 * 2**20)
    monkeypatch.setattr(sources, "_read", None)
    with pytest.raises(UserError) as told:
        read_folder(str(tmp_path))
    assert [str(f) for f in told.value.issues] == [
        f"{name}: has 100 MiB; at most 64 are read; save it smaller" for name in "abc"
    ]
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 2**30)
    monkeypatch.setattr(sources, "MAX_ALL_BYTES", 2**28)
    with pytest.raises(UserError, match=r"holds 0\.3 GiB"):
        read_folder(str(tmp_path))
    monkeypatch.setattr(sources, "MAX_FILES", 2)
    with pytest.raises(UserError, match="holds 3 files; at most 2 are read"):
        read_folder(str(tmp_path))


def test_built_in_subjects_are_drawn() -> None:
    found = read_folder("builtin:sprites/dog-pink-blue")
    assert [raw.name for raw in found.images] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert prepare_images(found.images, 32).warnings == []
    with pytest.raises(UserError, match=r"is no built-in subject; did you mean builtin:sprites/dog-pink-blue\?$"):
        read_folder("builtin:sprites/dog-pink")
    with pytest.raises(UserError, match="is no built-in subject; write one of dog-pink-blue, "):
        read_folder("builtin:sprites/xyz")


def test_another_scheme_is_not_read() -> None:
    with pytest.raises(UserError, match="https:// is not read here; write a local folder, s3://"):
        read_folder("https://example.org/photos")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"{PHOTOS} is absent: the real photographs are not in this repository")
def test_real_photographs_go_through() -> None:
    for subject in (one for one in sorted(PHOTOS.iterdir()) if one.is_dir()):
        found = prepare_images(read_folder(str(subject)).images, 512)
        assert 4 <= len(found.images) <= 6
        assert found.warnings == []
        assert all(np.asarray(image.image).std() > 10 for image in found.images)
