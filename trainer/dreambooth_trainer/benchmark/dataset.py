"""Reads a dataset of subjects in the format of the paper's: a folder per subject, and prompts_and_classes.txt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Template
from dreambooth_trainer.metrics.prompts import SLOT, is_live

FILE = "prompts_and_classes.txt"
_TEMPLATE: TypeAdapter[str] = TypeAdapter(Template)
_HEADER = "subject_name,class"
_LISTS = {"Object Prompts": False, "Live Subject Prompts": True}
"""Headings of the two lists of prompts, and whether the list is for live subjects."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")
_PROMPT = re.compile(r"""(['"])(.*)\1\.format\(""")
_EXAMPLE = "'a {0} {1} in the snow'.format(unique_token, class_token)"
_OPTION = "--dataset"


@dataclass(frozen=True)
class DatasetSubject:
    """A subject: name of its folder, class noun, and prompt templates, in which {} is the subject.

    Attributes:
        folder: images that it is trained on.
        references: folder with all of its images, if these are some of them.
    """

    name: str
    class_: str
    folder: Path
    prompts: tuple[str, ...]
    references: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """The subjects whose folders exist, and the names of those whose folders do not."""

    subjects: tuple[DatasetSubject, ...]
    missing: tuple[str, ...]


def read_dataset(folder: Path) -> Dataset:
    """Read the file with prompts and classes of a dataset. The images are not read.

    Raises:
        UserError: with all issues of the file, or if no subject has a folder.
    """
    path = folder / FILE
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        rule = f"has no readable {FILE}"
        remedy = f"use a folder with one folder of images per subject and {FILE}, as github.com/google/dreambooth has"
        raise UserError(ValidationIssue(_OPTION, str(folder), rule, remedy)) from error
    issues: list[ValidationIssue] = []
    classes = _classes(lines, issues)
    prompts = _prompts(lines, issues)
    if not classes:
        issues.append(ValidationIssue(FILE, None, "lists no classes", f"write {_HEADER}, then a line per subject"))
    for heading, live in _LISTS.items():
        if not prompts[live]:
            remedy = f"write {heading}, and below it lines as {_EXAMPLE}"
            issues.append(ValidationIssue(FILE, None, f"lists no {heading}", remedy))
    if issues:
        raise UserError(issues)
    subjects = tuple(
        DatasetSubject(name, class_, (folder / name).resolve(), tuple(prompts[is_live(class_)]))
        for name, class_ in classes.items()
        if (folder / name).is_dir()
    )
    if not subjects:
        remedy = f"add folders named as in {FILE}, for example {next(iter(classes))}"
        raise UserError(ValidationIssue(_OPTION, str(folder), "has no folder of any subject", remedy))
    present = {subject.name for subject in subjects}
    return Dataset(subjects, tuple(name for name in classes if name not in present))


def write_prompts_and_classes(folder: Path, classes: Sequence[tuple[str, str]], prompts: Sequence[str]) -> None:
    """Write the file of a dataset, with the same prompts for objects and live subjects.

    Args:
        classes: name and class of each subject.
        prompts: templates, in which {} is the subject.
    """
    listed = [f"'{prompt.replace(SLOT, '{0} {1}')}'.format(unique_token, class_token)" for prompt in prompts]
    block = ["", "prompt_list = [", ",\n".join(listed), "]", ""]
    lines = ["Classes", "", _HEADER, *(f"{name},{class_}" for name, class_ in classes), "", "Prompts", ""]
    for heading in _LISTS:
        lines += [heading, *block]
    (folder / FILE).write_text("\n".join(lines))


def _classes(lines: Sequence[str], issues: list[ValidationIssue]) -> dict[str, str]:
    """The classes by name of the subject: the lines after the header, up to the next heading."""
    classes: dict[str, str] = {}
    first = next((number for number, line in enumerate(lines, 1) if line.strip() == _HEADER), len(lines))
    for number, line in enumerate(lines[first:], first + 1):
        if line.strip() == "Prompts":
            break
        if not line.strip():
            continue
        name, comma, class_ = (part.strip() for part in line.partition(","))
        if not comma or not class_:
            rule = f"is not {_HEADER}"
            issues.append(ValidationIssue(FILE, line, rule, "write, for example, dog2,dog", f"line {number}"))
        elif not _NAME.fullmatch(name):
            rule = "is not the name of a folder: letters, digits, underscores, dots and hyphens"
            issues.append(ValidationIssue(FILE, name, rule, "rename the folder", f"line {number}"))
        elif name in classes:
            issues.append(ValidationIssue(FILE, name, "is listed twice", "remove one of them", f"line {number}"))
        else:
            classes[name] = class_
    return classes


def _prompts(lines: Sequence[str], issues: list[ValidationIssue]) -> dict[bool, list[str]]:
    """The prompt templates for objects (False) and live subjects (True). The expressions in the file are not run."""
    prompts: dict[bool, list[str]] = {False: [], True: []}
    live: bool | None = None
    for number, line in enumerate(lines, 1):
        live = _LISTS.get(line.strip(), live)
        match = _PROMPT.search(line)
        if live is None or match is None:
            continue
        template = match[2].replace("{0} {1}", SLOT)
        try:
            prompts[live].append(_TEMPLATE.validate_python(template))
        except ValidationError:
            rule = "does not contain {0} {1} exactly once"
            remedy = f"write, for example, {_EXAMPLE}"
            issues.append(ValidationIssue(FILE, match[2], rule, remedy, f"line {number}"))
    return prompts
