"""The promises in SECURITY.md have tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
_REFERENCE = re.compile(r"`(tests/[a-z0-9_/]+\.py)::(test_\w+)`")
PROMISES = re.findall(r"^\| (.+?) \| (`tests/.*) \|$", TEXT, re.MULTILINE)


def test_every_promise_names_a_test() -> None:
    section = TEXT.split("### Promises")[1].split("### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(PROMISES) >= 15


@pytest.mark.parametrize("promise", [promise for promise, _ in PROMISES])
def test_the_tests_of_a_promise_exist(promise: str) -> None:
    tests = dict(PROMISES)[promise]
    found = _REFERENCE.findall(tests)
    assert len(found) == tests.count("`") // 2, "each is tests/<folder>/<file>.py::<name>"
    for path, name in found:
        tree = ast.parse((ROOT / path).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in functions, f"{path} has no {name}"
