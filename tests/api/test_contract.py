"""The contract stands in its package only, and the package needs nothing but pydantic."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from dreambooth_api import environment, uris
from dreambooth_api.job import API_VERSION
from dreambooth_api.methods import MEMBERS, METHODS
from dreambooth_api.progress import parse_message
from dreambooth_api.status import TrainerPhase
from dreambooth_api.training import Training
from dreambooth_trainer.methods.registry import REGISTRY
from dreambooth_trainer.planning.defaults import PAPER, SPRITES
from dreambooth_trainer.runner import PHASES

ROOT = Path(__file__).resolve().parents[2]
HALVES = (ROOT / "operator", ROOT / "trainer")
TEXTS = {name: value for name, value in vars(environment).items() if name.isupper() and isinstance(value, str)}
# A name of a variable or a path is found within a longer text as well; a reason is a word that others may hold.
WITHIN = {value for value in TEXTS.values() if value.startswith(("DREAMBOOTH_", "/"))} | {"dreambooth_trainer"}
# Literals that stand in one module of the contract only, and its name.
HOMES = dict.fromkeys([*(f"{scheme}://" for scheme in [*uris.EXTRAS, "pvc"]), uris.HUB, uris.BUILTIN], "uris.py")
HOMES |= {API_VERSION: "job.py", "/attempts/": "progress.py"}
WHOLE = {environment.INVALID_INPUT, environment.BELOW_THRESHOLDS, environment.OUT_OF_MEMORY}


def texts_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and value of each text in Python code that is not a docstring."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def second_times(source: str, within: set[str]) -> list[tuple[int, str]]:
    return [
        (line, text)
        for line, text in texts_of(source)
        if text in WHOLE or any(part in text for part in within) or text.startswith("DREAMBOOTH_")
    ]


def test_no_literal_of_the_contract_stands_a_second_time() -> None:
    found: list[str] = []
    for half in HALVES:
        # The trainer may name its own modules.
        within = WITHIN - {"dreambooth_trainer"} if half.name == "trainer" else WITHIN
        for path in sorted(half.rglob("*.py")):
            found += [
                f"{path.relative_to(ROOT)}:{line}: {text}" for line, text in second_times(path.read_text(), within)
            ]
    assert not found


def test_schemes_version_and_route_stand_in_their_module_only() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for folder in ("api", "operator", "trainer", "client")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in texts_of(path.read_text())
        if any(part in text and path != ROOT / "api/dreambooth_api" / home for part, home in HOMES.items())
    ]
    assert not found


def test_another_object_store_is_one_row() -> None:
    source = Path(uris.__file__).read_text()
    more = source.replace('"gs": "gcs"', '"gs": "gcs", "az": "azure"')
    assert more != source
    names: dict[str, Any] = {}
    exec(compile(more, uris.__file__, "exec"), names)  # our own module, with another row
    assert re.search(names["SOURCE_URI"], "az://photos/dog")
    assert re.search(names["OUTPUT_URI"], "az://models/dog")
    assert not re.search(uris.OUTPUT_URI, "az://models/dog")
    assert names["OBJECT_STORES"] == f"{uris.OBJECT_STORES} or az://"


def test_the_trainer_has_the_phases_of_the_contract_in_order() -> None:
    reported = [parse_message(json.dumps({"phase": phase.name}))[0].phase for phase in PHASES]
    assert reported == list(TrainerPhase)


@pytest.mark.parametrize(
    "code",
    [
        'os.environ["DREAMBOOTH_OUT"]',
        'os.environ["DREAMBOOTH_NEW"]',
        'x = f"{y}/dreambooth/output/{z}"',
        'x = ["python", "-m", "dreambooth_trainer"]',
        'reporter.failed("BelowThresholds", "m")',
    ],
)
def test_a_second_literal_is_found(code: str) -> None:
    assert second_times(code, WITHIN)


def test_words_that_only_resemble_the_contract_are_not_found() -> None:
    assert not second_times('"""DREAMBOOTH_OUT in a docstring."""\nx = "OutOfMemoryError"', WITHIN)


def test_the_contract_imports_pydantic_and_the_standard_library_only() -> None:
    allowed = {"dreambooth_api", "pydantic", "pydantic_core", *sys.stdlib_module_names}
    for path in (ROOT / "api").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert module.partition(".")[0] in allowed, f"{path}: {module}"


def test_every_method_of_the_api_has_traits_and_an_implementation() -> None:
    names = set(get_args(Training.model_fields["method"].annotation))
    trained = {name for name, traits in METHODS.items() if traits.trains}
    assert names == set(METHODS)
    assert trained == set(REGISTRY)
    assert names - trained == {"None"}
    assert set(MEMBERS) < set(Training.model_fields)
    for defaults in (PAPER, SPRITES):
        assert set(defaults.learning_rates) == trained
