"""The documentation names what the code has: reasons, phases, conditions, exit codes, tests, files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from dreambooth_api import environment
from dreambooth_api.environment import ExitCode
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.localruntime import LocalRuntimeSpec
from dreambooth_api.metrics import METRICS
from dreambooth_api.model import BaseModelRef
from dreambooth_api.runtime import RuntimeSpec
from dreambooth_api.status import REASON, ConditionType, Phase, TrainerPhase
from dreambooth_trainer.cli.main import cli
from dreambooth_trainer.planning.plan import fill_defaults

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TROUBLESHOOTING = DOCS / "troubleshooting.md"
STATUS = DOCS / "reference" / "status.md"
# Calls whose arguments contain a reason; `reason=` in any other call does as well.
TAKE_A_REASON = {"set_condition", "fail_job", "Failure", "ResolutionError", "_explain"}
# A fragment that begins with `spec:` is completed by it.
SUBJECT = {"class": "dog", "images": {"uri": "./photos"}}
STATUS_VALUES = {"True", "False", "Unknown"}
CAMEL_CASE = re.compile(r"[A-Z][a-z]+(?:[A-Z][a-z]+)*")
# Set by KubeRay or Python and passed on; they are documented as well.
FOREIGN = {
    "DeviceError",
    "JobDeploymentStatusTransitionGracePeriodExceeded",
    "PreRunningDeadlineExceeded",
    "SubmissionFailed",
    "TransientError",
    "Unknown",
}


def constants_in(tree: ast.Module) -> dict[str, str]:
    """Names of a module's constants that are texts."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def reasons_in(tree: ast.Module, constants: dict[str, str]) -> Iterator[str]:
    """Reasons in a module of the operator; `*Refused` for one that is put together of a kind and a word."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given: list[ast.AST] = [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
        for argument in [*given, *(call.args if name in TAKE_A_REASON else [])]:
            yield from _texts(argument, constants)


def _texts(node: ast.AST, constants: dict[str, str]) -> Iterator[str]:
    text = ""
    match node:
        case ast.JoinedStr(values=[ast.FormattedValue(), ast.Constant(value=str(end))]):
            text = f"*{end}"
        case ast.Constant(value=str(value)):
            text = value
        case ast.Name(id=name) | ast.Attribute(attr=name):
            text = constants.get(name, "")
        case ast.JoinedStr():
            pass
        case _:
            for child in ast.iter_child_nodes(node):
                yield from _texts(child, constants)
    if CAMEL_CASE.fullmatch(text.removeprefix("*")) and text not in STATUS_VALUES:
        yield text


def contract_reasons() -> set[str]:
    """The failure reasons of the contract, as constants or as members of an enum."""
    values = vars(environment).values()
    members = {m.value for e in values if isinstance(e, type) and issubclass(e, Enum) for m in e}
    texts = {value for value in [*values, *members] if isinstance(value, str)}
    return {text for text in texts if CAMEL_CASE.fullmatch(text) and re.fullmatch(REASON, text)}


def code_reasons() -> set[str]:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "operator").rglob("*.py")]
    constants = {name: text for tree in trees for name, text in constants_in(tree).items()}
    return contract_reasons() | {reason for tree in trees for reason in reasons_in(tree, constants)}


def documented(page: Path) -> set[str]:
    """Names in the first column of the tables of a page."""
    cells = (line.split("|")[1] for line in page.read_text().splitlines() if line.startswith("| "))
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_every_reason_has_an_entry_in_troubleshooting() -> None:
    reasons, entries = code_reasons(), documented(TROUBLESHOOTING)
    assert reasons >= {"InvalidInput", "OutOfBounds", "HeadLost", "DeadlineExceeded", "WaitingForPods", "*Refused"}
    ends = tuple(reason.removeprefix("*") for reason in reasons if reason.startswith("*"))
    assert {r for r in reasons if not r.startswith("*")} - entries == set()
    assert [end for end in ends if not any(entry.endswith(end) for entry in entries)] == []
    assert {entry for entry in entries - reasons - FOREIGN if not entry.endswith(ends)} == set()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ('Failure(reason="NewReason", message=m)', "NewReason"),
        ('builder.set_condition(_C.FAILED, "False", "Odd" if x else "Even")', "Even"),
        ('_LATE = "TooLate"\nfail_job(builder, _LATE, message)', "TooLate"),
        ('Failure(reason=f"{kind}Lost")', "*Lost"),
    ],
)
def test_a_new_reason_would_be_found(code: str, reason: str) -> None:
    tree = ast.parse(code)
    assert reason in reasons_in(tree, constants_in(tree))


@pytest.mark.parametrize("kind", [Phase, ConditionType, TrainerPhase])
def test_the_status_page_has_every_member(kind: type[Enum]) -> None:
    assert {member.value for member in kind} - documented(STATUS) == set()


def test_the_status_page_has_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \|", STATUS.read_text(), re.MULTILINE)
    assert {int(row) for row in rows} == set(ExitCode)


def test_every_variable_of_the_contract_is_documented() -> None:
    variables = {v for v in vars(environment).values() if isinstance(v, str) and v.startswith("DREAMBOOTH_")}
    assert variables == {v for v in documented(DOCS / "reference" / "files.md") if v.startswith("DREAMBOOTH_")}


def test_every_metric_is_documented() -> None:
    text = (DOCS / "reference" / "scores.md").read_text()
    first_table = text.split("\n## ")[0].splitlines()
    rows = [re.split(r" *\| *", line)[1] for line in first_table if line.startswith("| ")]
    assert rows[1:] == [metric.label for metric in METRICS]
    assert all(f"`{metric.name}`" in text for metric in METRICS)


def test_every_test_that_the_pages_name_exists() -> None:
    named = {name for page in DOCS.rglob("*.md") for name in re.findall(r"`(tests/[\w/]+\.py)`", page.read_text())}
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_the_repository_pages_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def examples() -> Iterator[tuple[str, str]]:
    """Name and text of every YAML example in README and docs, and of every sample."""
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        for block in re.finditer(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            line = page.read_text()[: block.start()].count("\n") + 1
            yield f"{page.relative_to(ROOT)}:{line}", block[1]
    for sample in sorted((ROOT / "manifests" / "samples").glob("*.yaml")):
        yield str(sample.relative_to(ROOT)), sample.read_text()


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in examples()])
def test_every_example_is_valid(text: str) -> None:
    example: dict[str, Any] = yaml.safe_load(text)
    spec: dict[str, Any] = example["spec"]
    match example.get("kind"):
        case "DreamBoothRuntime":
            RuntimeSpec.model_validate(spec)
        case "LocalDreamBoothRuntime":
            LocalRuntimeSpec.model_validate(spec)
        case "DreamBoothJob":
            check_plan(DreamBoothJob.model_validate(example))
        case "Job":
            (container,) = spec["template"]["spec"]["containers"]
            check_command(container["command"], container)
        case "RayJob":
            cluster = spec["rayClusterSpec"]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                (container,) = group["template"]["spec"]["containers"]
                check_command(spec["entrypoint"].split(), container)
        case _:
            head = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothJob", "metadata": {"name": "my-dog"}}
            subjects = {} if "subjects" in spec else {"subject": {**SUBJECT, **spec.get("subject", {})}}
            check_plan(DreamBoothJob.model_validate({**head, "spec": {**spec, **subjects}}))


def check_command(line: Sequence[str], container: dict[str, Any]) -> None:
    """The command exists, and has these arguments and options. Its paths are mounted."""
    program, *words = line
    assert program == "dreambooth"
    command: Any = cli
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    mounted = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
    for word in words:
        if word.startswith("--"):
            assert word in [option for parameter in command.params for option in parameter.opts]
        elif word.startswith("/"):
            assert any(Path(word).is_relative_to(path) for path in mounted), word


def check_plan(job: DreamBoothJob) -> None:
    """The job can be planned for a model with the paper's defaults, on workers with one GPU each."""
    if job.spec.model is None:
        job = job.model_copy(update={"spec": job.spec.model_copy(update={"model": BaseModelRef(id="team/model")})})
    identifiers = [subject.identifier for subject in job.spec.all_subjects]
    fill_defaults(job, image_count=4, identifiers=identifiers, zero_stage=1, precision="bf16", gpus_per_worker=1)
