"""Captions are matched to images in any Unicode form, and read from text files in the usual encodings."""

from __future__ import annotations

import codecs
import os
import unicodedata
from pathlib import Path

import pytest
from imagefiles import encoded, gradient

from dreambooth_api.errors import UserError
from dreambooth_api.subject import Subject
from dreambooth_trainer.images.captions import caption_for, with_caption_files
from dreambooth_trainer.images.sources import RawImage, read_folder

NFC, NFD = (unicodedata.normalize(form, "Café.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("name", "captions", "expected"),
    [
        ("a.png", {"a.png": "x"}, "x"),
        ("a.png", {"b.png": "x"}, None),
        (NFD, {NFC: "x"}, "x"),
        (NFC, {NFD: "x"}, "x"),
        (NFC, {NFD: "x", NFC: "y"}, "y"),
        ("caf\udce9.png", {NFC: "x"}, None),
    ],
)
def test_names_match_in_any_unicode_form(name: str, captions: dict[str, str], expected: str | None) -> None:
    assert caption_for(name, captions) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a sks dog", "a sks dog"),
        ("a sks dog, très joli".encode(), "a sks dog, très joli"),
        (codecs.BOM_UTF8 + b"a sks dog\r\n", "a sks dog"),
        (codecs.BOM_UTF16_LE + "a sks dog, été".encode("utf-16-le"), "a sks dog, été"),
        (codecs.BOM_UTF16_BE + "a sks dog 🐶".encode("utf-16-be"), "a sks dog 🐶"),
        (b"a sks dog,\n  on grass\n", "a sks dog, on grass"),
        (b" \n", ""),
    ],
)
def test_a_text_file_beside_an_image_is_its_caption(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / NFC).write_bytes(encoded(gradient()))
    (tmp_path / NFD.replace(".png", ".TXT")).write_bytes(content)
    (tmp_path / "Café.caption").write_bytes(b"another tool")
    found = read_folder(str(tmp_path))
    assert ([image.name for image in found.images], found.captions, found.warnings) == ([NFC], {NFC: expected}, [])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a sks dog, été".encode("latin-1"), "a.txt: is not UTF-8 text: byte 11 is 0xe9; save the file as UTF-8"),
        (b"a sks dog " * 40, "it has more than 300 characters, braces or control characters; shorten it"),
        (b"a {} dog", "it has more than 300 characters, braces or control characters"),
        (codecs.BOM_UTF16_LE + b"a", "a.txt: is not UTF-8 text"),
    ],
)
def test_a_caption_file_that_cannot_be_used_is_an_error(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "a.png").write_bytes(encoded(gradient()))
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_folder(str(tmp_path))
    assert sentence in str(caught.value)


def test_all_caption_files_that_cannot_be_used_are_reported_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(encoded(gradient()))
        (tmp_path / f"{name}.txt").write_bytes(b"\xe9")
    with pytest.raises(UserError) as caught:
        read_folder(str(tmp_path))
    assert [issue.path for issue in caught.value.issues] == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("identifier", "texts", "captions", "warning"),
    [
        ("sks", {"a.png": "a sks dog sitting"}, {"a.png": "a sks dog sitting"}, ""),
        ("sks", {"a.png": ""}, {}, ""),
        ("sks", {NFD: "a sks dog sitting"}, {NFC: "a sks dog"}, ""),
        (
            "sks",
            {"a.png": "a dog"},
            {},
            "a.png: the .txt file beside it is ignored: it does not contain the identifier",
        ),
        ("auto", {"a.png": "a sks dog"}, {}, "captions require a fixed identifier, and identifier is auto"),
        ("sks", {os.fsdecode(b"caf\xe9.png"): "a sks dog"}, {}, "the name of the image is not UTF-8"),
    ],
)
def test_captions_of_the_job_take_precedence_and_unusable_files_are_noted(
    identifier: str, texts: dict[str, str], captions: dict[str, str], warning: str
) -> None:
    given = {NFC: "a sks dog"} if NFD in texts else {}
    spec = {"class": "dog", "identifier": identifier, "images": {"uri": "photos"}, "captions": given}
    subject, warnings = with_caption_files(Subject.model_validate(spec), texts)
    assert subject.captions == captions
    assert [warning in line for line in warnings] == [True] * bool(warning)


def write(folder: Path, **files: str) -> None:
    """Images, and files with the given texts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(encoded(gradient()))
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def test_captions_are_read_from_metadata_jsonl(tmp_path: Path) -> None:
    rows = """{"file_name": "a.png", "text": "a sks dog\\n sitting"}

{"file_name": "b.png", "text": "a sks dog running", "id": 3}
{"file_name": "c.png"}
{"file_name": "d.png", "text": "not copied"}
"""
    write(tmp_path, metadata_jsonl=rows, b_txt="a sks dog in a text file")
    found = read_folder(str(tmp_path))
    assert found.captions == {"a.png": "a sks dog sitting", "b.png": "a sks dog in a text file"}
    assert found.warnings == ["metadata.jsonl has captions of 1 file(s) that are not among the images"]
    spec = {"class": "dog", "images": {"uri": "photos"}, "captions": {"a.png": "a sks dog of the job"}}
    subject, warnings = with_caption_files(Subject.model_validate(spec), found.captions, found.origins)
    assert subject.captions == {"a.png": "a sks dog of the job", "b.png": "a sks dog in a text file"}
    assert warnings == []


def test_all_faults_of_metadata_jsonl_and_caption_files_are_reported_at_once(tmp_path: Path) -> None:
    rows = """{"file_name": "a.png", "text": "a {} dog"}
a.png, a sks dog
["a.png"]
{"file_name": "a.png", "text": 1}
"""
    write(tmp_path, metadata_jsonl=rows, b_txt="{}")
    with pytest.raises(UserError) as caught:
        read_folder(str(tmp_path))
    lines = [str(issue) for issue in caught.value.issues]
    for line, expected in zip(
        lines,
        (
            "b.txt: '{}': is not a caption",
            "metadata.jsonl line 1: 'a {} dog': is not a caption",
            "metadata.jsonl line 2: is not JSON",
            "metadata.jsonl line 3: has no file_name; write, for example, {",
            "metadata.jsonl line 4: has a text that is not a string",
        ),
        strict=True,
    ):
        assert line.startswith(expected)


def test_kohya_folders_are_one_subject_with_weights_and_captions(tmp_path: Path) -> None:
    write(tmp_path / "10_sks dog", a_txt="a sks dog on the beach", b_npz="")
    write(tmp_path / "15_sks dog close up", metadata_jsonl='{"file_name": "b.png", "text": "a sks dog at night"}')
    write(tmp_path / "__MACOSX")
    (tmp_path / ".DS_Store").write_bytes(b"")
    found = read_folder(str(tmp_path))
    first, second = "10_sks dog", "15_sks dog close up"
    data = encoded(gradient())
    assert found.images == [
        *(RawImage(f"{first}/{name}.png", data, weight=2) for name in "abc"),
        *(RawImage(f"{second}/{name}.png", data, weight=3) for name in "abc"),
    ]
    assert found.captions == {
        f"{first}/a.png": "a sks dog on the beach",
        f"{first}/b.png": "sks dog",
        f"{first}/c.png": "sks dog",
        f"{second}/a.png": "sks dog close up",
        f"{second}/b.png": "a sks dog at night",
        f"{second}/c.png": "sks dog close up",
    }
    note = (
        "images are used in proportion to the repeats of their folders: 10 for 10_sks dog, 15 for 15_sks dog close up"
    )
    assert found.warnings == [note]


@pytest.mark.parametrize(
    ("fields", "captions", "warning"),
    [
        ({}, {"10_sks dog/a.png": "sks dog"}, ""),
        ({"instancePrompt": "a photo of sks dog"}, {}, ""),
        (
            {"identifier": "zwx"},
            {},
            "10_sks dog/a.png: the name of its folder is ignored: it does not contain the iden",
        ),
    ],
)
def test_the_name_of_a_kohya_folder_is_the_prompt_unless_the_job_has_one(
    tmp_path: Path, fields: dict[str, str], captions: dict[str, str], warning: str
) -> None:
    (tmp_path / "10_sks dog").mkdir()
    (tmp_path / "10_sks dog" / "a.png").write_bytes(encoded(gradient()))
    found = read_folder(str(tmp_path))
    assert found.images[0].weight == 1
    subject = Subject.model_validate({"class": "dog", "images": {"uri": "photos"}, **fields})
    subject, warnings = with_caption_files(subject, found.captions, found.origins)
    assert subject.captions == captions
    assert [warning in line for line in warnings] == [True] * bool(warning)


def test_kohya_folders_beside_images_and_links_to_folders_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere")
    write(tmp_path / "photos")
    write(tmp_path / "photos" / "10_sks dog")
    assert [image.name for image in read_folder(str(tmp_path / "photos")).images] == ["a.png", "b.png", "c.png"]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "10_sks dog").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="contains no images, only 10_sks dog"):
        read_folder(str(tmp_path / "linked"))
