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
from dreambooth_trainer.images.sources import read_folder

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
