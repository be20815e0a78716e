"""CONTRIBUTING.md names files and identifiers of the code. Each must exist, where it is said to be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
CODE = ("api", "operator", "trainer", "client", "tests", "docs")
FOLDERS = {
    letter: folder for folder, letter in re.findall(r"`((?:api|trainer|operator)/\w+)`\s+\(\*\*([ATO])\*\*\)", TEXT)
}
FILE = re.compile(r"`(?:([ATO])/|(?=(?:tests|docs|bench|manifests|charts|docker)/))([\w./-]+)`")
TEST_FILE = re.compile(r"`(test_\w+\.py)`")
# Also decorators, attributes and calls, but not file names.
IDENTIFIER = re.compile(r"`@?(?!\w+\.(?:html|py|toml)`)(?:\w+\.)?([A-Za-z_]\w*)(?:\([^`]*\))?`")
_NAMES = r"(?:`[A-Za-z_]\w*`(?:,\s+|\s+and\s+|\s+or\s+)?)+"
_FILES = r"`(?:[ATO]|tests)/[\w./-]+\.py`"
# "`name` and `name` in `file`", and "`file`: `name`", also across a line break.
PLACED = re.compile(rf"({_NAMES})\s+(?:in|of)\s+({_FILES})")
HEADED = re.compile(rf"({_FILES}):\s+(?:a row of |a case in |a field of |a member of )?({_NAMES})")
# Names that are not identifiers of the code: commands, and folders and keys of other tools.
OTHERS = {"operator", "make", "dreambooth", "venv"}


def missing_files(text: str) -> list[str]:
    named = [f"{FOLDERS[letter]}/{path}" if letter else path for letter, path in FILE.findall(text)]
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    return [path for path in named if not (ROOT / path).exists()] + sorted(set(TEST_FILE.findall(text)) - tests)


def missing_identifiers(text: str) -> list[str]:
    return sorted(set(IDENTIFIER.findall(text)) - OTHERS - identifiers())


def misplaced_identifiers(text: str) -> list[str]:
    return [
        f"{name} in {path}"
        for names, file in [*PLACED.findall(text), *((names, file) for file, names in HEADED.findall(text))]
        for letter, path in FILE.findall(file)
        for name in re.findall(r"`(\w+)`", names)
        if name not in names_in(ROOT / FOLDERS.get(letter, "") / path)
    ]


@cache
def identifiers() -> set[str]:
    """All names that the code uses."""
    return set().union(*(names_in(ROOT / folder) for folder in CODE))


@cache
def names_in(path: Path) -> set[str]:
    """Names that the Python files below `path` define or use, their string constants, and their modules."""
    files = [path] if path.is_file() else list(path.rglob("*.py"))
    return {name for file in files for name in (file.stem, *_names(ast.parse(file.read_text())))}


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.alias(name=name):
                yield name
            case ast.keyword(arg=str(name)) | ast.Constant(value=str(name)):
                yield name
            case _:
                pass


def test_the_files_exist() -> None:
    assert set(FOLDERS) == {"A", "T", "O"}
    assert len(FILE.findall(TEXT)) > 50
    assert not missing_files(TEXT), "moved or misspelled"


def test_the_identifiers_exist() -> None:
    assert len(set(IDENTIFIER.findall(TEXT))) > 50
    assert not missing_identifiers(TEXT), "renamed or misspelled"


def test_the_identifiers_are_in_the_files_that_the_text_says() -> None:
    assert len(PLACED.findall(TEXT)) > 30
    assert len(HEADED.findall(TEXT)) > 10
    assert not misplaced_identifiers(TEXT)


@pytest.mark.parametrize("text", ["`A/absent.py`", "`docs/absent.md`", "`test_absent.py`"])
def test_a_missing_file_is_found(text: str) -> None:
    assert missing_files(text)


@pytest.mark.parametrize("text", ["`Absent`", "a `Plan`, `_absent`", "`@_absent`", "`absent(...)`", "`plan.absent`"])
def test_a_missing_identifier_is_found(text: str) -> None:
    assert missing_identifiers(text)


def test_an_identifier_of_another_file_is_found() -> None:
    assert misplaced_identifiers("`METRICS` and `Phase` in\n`A/uris.py`") == ["METRICS in uris.py", "Phase in uris.py"]
    assert misplaced_identifiers("`A/uris.py`: a row of `METRICS`") == ["METRICS in uris.py"]
    assert not misplaced_identifiers("`METRICS` in `A/metrics.py`")
