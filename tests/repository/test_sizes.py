"""Code stays small enough to read: a module on a few screens, a function on one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Tests are exempt: a module of tests is a list of cases.
PACKAGES = ("api", "operator", "trainer", "client")
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60


def too_long(path: str, source: str) -> Iterator[str]:
    """One sentence for each module or function above its limit."""
    lines = len(source.splitlines())
    if lines > MAX_MODULE_LINES:
        yield f"{path} has {lines} lines, at most {MAX_MODULE_LINES} are allowed: split the module"
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield (
                f"{path}:{node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES} are allowed:"
                " split the function"
            )


def test_modules_and_functions_are_within_the_limits() -> None:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    assert files
    faults = [fault for file in files for fault in too_long(str(file.relative_to(ROOT)), file.read_text())]
    assert not faults, "\n".join(faults)


def test_one_line_too_many_is_found() -> None:
    body = "\n    x = 1" * (MAX_FUNCTION_LINES - 1)
    assert list(too_long("a.py", f"def f():{body}")) == []
    (fault,) = too_long("a.py", f"class A:\n  async def f():{body}\n    x = 1")
    assert fault.startswith("a.py:2: f has 61 lines")
    (fault,) = too_long("a.py", "x = 1\n" * (MAX_MODULE_LINES + 1))
    assert fault.startswith("a.py has 401 lines")
