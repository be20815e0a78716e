"""Photos of `kubectl dreambooth create`: upright, small, without metadata, under valid names."""

from __future__ import annotations

import base64
import errno
import io
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from dreambooth_api.errors import UserError
from dreambooth_api.job import DreamBoothJob
from dreambooth_operator.kubectl_plugin.cli import cli
from dreambooth_operator.kubectl_plugin.photos import MAX_BYTES, pack, valid_keys

ORIENTATION, GPS = 0x0112, 0x8825


def photo(path: Path, size: tuple[int, int] = (1600, 1200), *, orientation: int = 1, noise: float = 8) -> Path:
    """A photo that is red at the top of its pixels, with a position. More noise makes it larger."""
    pixels = np.random.default_rng(0).normal(128, noise, (size[1], size[0], 3))
    pixels[: size[1] // 4] = [230, 20, 20]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif.get_ifd(GPS)[1] = "N"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, exif=exif, quality=98)
    return path


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def dry_run(*arguments: str) -> Result:
    command = ["create", "my-dog", "--class", "dog", *arguments, "--dry-run=client"]
    return CliRunner(env={"KUBECONFIG": None, "HOME": "/nonexistent"}).invoke(cli, command)


def test_photos_are_upright_shrunk_and_without_metadata(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", orientation=6)
    packed = pack(tmp_path)
    image = opened(packed.files["a.jpg"])
    assert (image.size, packed.side, packed.count) == ((1024, 1365), 1024, 1)
    assert image.getpixel((1020, 700))[0] > 200, "the top of the pixels is on the right of the upright photo"
    assert dict(image.getexif()) == {}
    assert opened(pack(tmp_path, resolution=256).files["a.jpg"]).size == (256, 341)


def test_the_best_quality_that_fits_is_used(tmp_path: Path) -> None:
    for name in "abc":
        photo(tmp_path / f"{name}.jpg", (1200, 1100), noise=60)
    packed = pack(tmp_path)
    assert packed.total <= MAX_BYTES
    assert packed.side < 1024, "three noisy photos do not fit at full size"
    assert packed.total > MAX_BYTES / 3


def test_noise_can_be_encoded(tmp_path: Path) -> None:
    """Pillow's buffer for optimized JPEG files is too small for pixels that cannot be compressed."""
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert opened(pack(tmp_path).files["a.jpg"]).size == (512, 512)


def test_photos_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    for number in range(12):
        photo(tmp_path / f"{number}.jpg", (600, 600), noise=90)
    result = dry_run("--images", str(tmp_path))
    assert result.exit_code == 1
    assert re.search(
        r"12 photos \([\d,]+ bytes\) do not fit into a ConfigMap, which holds at most 1,048,576", result.output
    )
    for document in re.findall(r"^spec:\n(?: .*\n?)+", result.output, re.MULTILINE):
        spec: Any = yaml.safe_load(document.replace("BUCKET", "bucket"))["spec"]
        DreamBoothJob.model_validate(
            {
                "apiVersion": "dreambooth.dev/v1alpha1",
                "kind": "DreamBoothJob",
                "metadata": {"name": "my-dog"},
                "spec": {"subject": {**spec["subject"], "class": "dog"}},
            }
        )
    assert result.output.count("spec:") == 2


def test_small_images_are_lossless(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "sprite.png")
    assert (np.asarray(opened(pack(tmp_path).files["sprite.png"])) == pixels).all()


def test_transparency_becomes_white_and_the_color_profile_is_kept(tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGBA", (300, 300), (0, 0, 0, 0)).save(tmp_path / "a.png", icc_profile=profile)
    Image.new("CMYK", (300, 300)).save(tmp_path / "b.jpg", icc_profile=profile)
    files = pack(tmp_path).files
    assert opened(files["a.jpg"]).getpixel((5, 5)) == (255, 255, 255)
    assert opened(files["a.jpg"]).info["icc_profile"] == profile
    assert "icc_profile" not in opened(files["b.jpg"]).info, "the profile of other colors"


def test_captions_keep_their_image_and_other_files_are_skipped(tmp_path: Path) -> None:
    photo(tmp_path / "Mein Hund (1).jpeg", (64, 64))
    (tmp_path / "Mein Hund (1).txt").write_text("a sks dog")
    for name in (".DS_Store", "notes.md", "alone.txt", "x.json"):
        (tmp_path / name).write_text("x")
    assert sorted(pack(tmp_path).files) == ["Mein-Hund-1.png", "Mein-Hund-1.txt"]


def test_captions_of_decomposed_names_are_found(tmp_path: Path) -> None:
    """macOS stores names in Unicode NFD."""
    photo(tmp_path / unicodedata.normalize("NFD", "hündin.jpg"), (64, 64))
    (tmp_path / unicodedata.normalize("NFC", "hündin.txt")).write_text("a sks dog")
    packed = pack(tmp_path)
    assert sorted(packed.files) == ["h-ndin.png", "h-ndin.txt"]
    assert packed.keys == {unicodedata.normalize("NFC", "hündin.jpg"): "h-ndin.png"}


def test_captions_of_the_job_are_renamed_with_the_photos(tmp_path: Path) -> None:
    photo(tmp_path / "my beach.png", (200, 200))
    photo(tmp_path / "my-beach.jpg", (200, 200))
    captions = ("my beach.png=a sks dog at a beach", "my-beach.jpg=a sks dog")
    sets = [argument for caption in captions for argument in ("--set", f"subject.captions.{caption}")]
    photos, job = yaml.safe_load_all(dry_run("--images", str(tmp_path), *sets, "-o", "yaml").stdout)
    assert job["spec"]["subject"]["captions"] == {"my-beach.jpg": "a sks dog at a beach", "my-beach-2.jpg": "a sks dog"}
    assert set(photos["binaryData"]) == {"my-beach.jpg", "my-beach-2.jpg"}


def test_names_are_valid_and_unique() -> None:
    keys = valid_keys(["a b", "a-b", "A B", "ü", "é", "..", "x" * 300])
    assert list(keys.values()) == ["a-b", "a-b-2", "A-B-3", "photo", "photo-2", "photo-3", "x" * 200]


def test_all_unusable_files_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    frames = [Image.new("RGB", (200, 200), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    photo(tmp_path / "c.jpg", (64, 64))
    (tmp_path / "c.png").write_bytes((tmp_path / "c.jpg").read_bytes())
    Image.new("I;16", (200, 200)).save(tmp_path / "d.png")
    (tmp_path / "e.jpg").write_bytes((tmp_path / "c.jpg").read_bytes()[:300])
    with pytest.raises(UserError) as caught:
        pack(tmp_path)
    assert [issue.path for issue in caught.value.issues] == ["a.heic", "b.gif", "c.png", "d.png", "e.jpg"]
    assert "a.heic: is a damaged HEIC image" in str(caught.value)
    for wrong, rule in ((tmp_path / "none", "is not a folder"), (tmp_path / "empty", "contains no images")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=rule):
            pack(wrong)


def test_heic_photos_are_read_if_their_package_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif.register_heif_opener()
    Image.linear_gradient("L").convert("RGB").resize((300, 200)).save(tmp_path / "IMG_1.HEIC", "HEIF")
    assert opened(pack(tmp_path).files["IMG_1.jpg"]).size == (300, 200)
    monkeypatch.setattr("dreambooth_operator.kubectl_plugin.photos.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"IMG_1.HEIC: is a HEIC photo, .*; pip install 'dreambooth-operator\[heif\]'"):
        pack(tmp_path)


def test_captions_in_metadata_jsonl_are_stored_as_text_files(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        photo(tmp_path / name, (64, 64))
    (tmp_path / "b.txt").write_text("a sks dog in a file")
    (tmp_path / "a.txt").write_text("\n")  # without a caption, as for a job
    rows = '{"file_name": "a.jpg", "text": "a sks dog"}\n{"file_name": "b.jpg", "text": "a sks dog in a list"}\n'
    (tmp_path / "metadata.jsonl").write_text(rows)
    files = pack(tmp_path).files
    assert {name: files[name] for name in files if name.endswith(".txt")} == {
        "a.txt": b"a sks dog", "b.txt": b"a sks dog in a file",
    }  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("a.jpg: x")
    with pytest.raises(UserError, match=r"^metadata.jsonl line 1: is not JSON"):
        pack(tmp_path)


def test_folders_of_kohya_are_stored_with_their_tokens_as_captions(tmp_path: Path) -> None:
    for folder in ("10_sks dog", "10_sks dog asleep"):
        (tmp_path / folder).mkdir()
        photo(tmp_path / folder / "0.jpg", (64, 64))
    (tmp_path / "10_sks dog asleep" / "0.txt").write_text("a sks dog in a basket")
    packed = pack(tmp_path)
    assert dict(packed.keys) == {
        "10_sks dog/0.jpg": "10_sks-dog-0.png", "10_sks dog asleep/0.jpg": "10_sks-dog-asleep-0.png",
    }  # fmt: skip
    assert packed.files["10_sks-dog-0.txt"] == b"sks dog"
    assert packed.files["10_sks-dog-asleep-0.txt"] == b"a sks dog in a basket"
    prompt = dry_run("--images", str(tmp_path), "--set", "subject.instancePrompt=a sks dog", "-o", "yaml").stdout
    assert set(next(yaml.safe_load_all(prompt))["binaryData"]) == set(packed.files) - {"10_sks-dog-0.txt"}
    (tmp_path / "10_sks dog").rename(tmp_path / "20_sks dog")
    with pytest.raises(UserError, match="has folders with different repeats, which a ConfigMap does not keep"):
        pack(tmp_path)


def test_links_to_other_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password")
    folder = tmp_path / "photos"
    folder.mkdir()
    photo(folder / "a.jpg", (64, 64))
    (folder / "a.txt").symlink_to(tmp_path / "secret")
    (folder / "b.jpg").symlink_to(folder / "a.jpg")
    with pytest.raises(UserError) as caught:
        pack(folder)
    assert [issue.path for issue in caught.value.issues] == ["a.txt"]
    (folder / "a.txt").unlink()
    assert pack(folder).count == 2, "links inside the folder are"


def test_unreadable_folders_and_captions_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, as which tests may run, can read everything, so the errors are made here."""
    photo(tmp_path / "a.jpg", (64, 64))
    (tmp_path / "a.txt").touch()
    for method, path in (("read_bytes", tmp_path / "a.txt"), ("iterdir", tmp_path)):

        def denied(path: Path) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        with monkeypatch.context() as patch:
            patch.setattr(Path, method, denied)
            refused = dry_run("--images", str(tmp_path))
        assert refused.exit_code == 1
        assert refused.output == f"Error: {path}: cannot be read: Permission denied; correct its permissions\n"


def test_dry_run_prints_objects_that_kubectl_can_create(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", (200, 200))
    arguments = (
        "--images",
        str(tmp_path),
        "--runtime",
        "sprites",
        "--set",
        "training.steps=9",
        "-o",
        "yaml",
        "-n",
        "x",
    )
    result = dry_run(*arguments, "--set", "subject.captions.a.jpg=a sks dog")
    assert result.stderr.startswith("configmap/my-dog-photos created (dry run): 1 photo, ")
    photos, job = yaml.safe_load_all(result.stdout)
    assert opened(base64.b64decode(photos["binaryData"]["a.jpg"])).size == (200, 200)
    assert (photos["metadata"]["name"], photos["metadata"]["namespace"]) == ("my-dog-photos", "x")
    assert job["metadata"] == {"name": "my-dog", "namespace": "x"}
    assert job["spec"] == {
        "subject": {
            "images": {"configMap": {"name": "my-dog-photos"}},
            "class": "dog",
            "captions": {"a.jpg": "a sks dog"},
        },
        "runtimeRef": {"name": "sprites"},
        "training": {"steps": 9},
    }
    assert dry_run("--images", str(tmp_path)).output.endswith("dreamboothjob.dreambooth.dev/my-dog created (dry run)\n")


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("dbr/a", {"name": "a"}),
        ("ldbr/a", {"kind": "LocalDreamBoothRuntime", "name": "a"}),
        ("localdreamboothruntime/a", {"kind": "LocalDreamBoothRuntime", "name": "a"}),
    ],
)
def test_runtime_has_a_kind(text: str, reference: dict[str, str]) -> None:
    result = dry_run("--images", "s3://bucket/dog", "--runtime", text, "-o", "yaml")
    assert yaml.safe_load(result.output)["spec"]["runtimeRef"] == reference


def test_unknown_kind_of_runtime_is_rejected() -> None:
    result = dry_run("--images", "s3://bucket/dog", "--runtime", "pod/a")
    assert "--runtime pod/a: pod is not a kind of runtime; write NAME for a DreamBoothRuntime, or" in result.output


def test_buckets_need_no_photos() -> None:
    result = dry_run("--images", "s3://bucket/dog", "-o", "json")
    assert '"uri": "s3://bucket/dog"' in result.output
    assert "ConfigMap" not in result.output


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.stpes=5", "spec.training.stpes: 5: is not a field of a job; see kubectl explain dreamboothjob.spec"),
        ("training.steps=many", "spec.training.steps: 'many': "),
        ("steps", "--set steps: is not KEY=VALUE; write, for example, --set training.steps=200"),
        ("subject.class.x=1", "--set subject.class.x=1: class has no keys below it"),
        ("training.steps={", "--set training.steps={: the value is not valid YAML"),
        ("subject.instancePrompt=a dog", "spec.subject.instancePrompt: "),
    ],
)
def test_invalid_fields_are_named(override: str, sentence: str) -> None:
    result = dry_run("--images", "s3://bucket/dog", "--set", override)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert sentence in result.output


def test_missing_pillow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "a.jpg", (64, 64))
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "run pip install 'dreambooth-operator[plugin]'" in dry_run("--images", str(tmp_path)).output
