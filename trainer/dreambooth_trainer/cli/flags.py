"""Options that set fields of a job. Each has the name, the type and the description of its field."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

import click

from dreambooth_api.job import JobSpec
from dreambooth_trainer.jobfile.overrides import Override
from dreambooth_trainer.jobfile.schema import schema_at

FIELDS = (
    "subject.class",
    "subject.identifier",
    "subject.instancePrompt",
    "model.id",
    "training.method",
    "training.steps",
    "training.learningRate",
    "training.resolution",
    "training.globalBatchSize",
    "training.seed",
    "priorPreservation.numClassImages",
    "priorPreservation.classPrompt",
    "cluster.workers",
)
"""Paths below spec. Any other field is set with --set."""


def flag_of(field: str) -> str:
    """The option of a field: `training.learningRate` is `--learning-rate`, and `model.id` is `--model`."""
    name = field.removesuffix(".id").rpartition(".")[2]
    return "--" + re.sub(r"([A-Z])", r"-\1", name).lower()


def flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of all fields to a command. Their values are in its parameters `flag_0`, `flag_1`, ..."""
    for index, field in reversed(list(enumerate(FIELDS))):
        node = schema_at(JobSpec, tuple(field.split(".")))
        text = (node.field.description if node.field else None) or ""
        help_text = f"{text.partition('. ')[0].rstrip('.')}. Sets {field}."
        command = click.option(flag_of(field), f"flag_{index}", type=_type(node.annotation), help=help_text)(command)
    return command


def take_overrides(parameters: dict[str, Any]) -> list[Override]:
    """Remove the options of fields from the parameters of a command, and return those that are given."""
    values: Mapping[str, Any] = {field: parameters.pop(f"flag_{index}") for index, field in enumerate(FIELDS)}
    return [
        Override(("spec", *field.split(".")), value, f"{flag_of(field)} {value}")
        for field, value in values.items()
        if value is not None
    ]


def _type(annotation: Any) -> click.ParamType:
    """The type of a field's option. Bounds and patterns are checked with the whole job."""
    options = [annotation, *get_args(annotation)]
    for kind, parameter in ((int, click.INT), (float, click.FLOAT), (str, click.STRING)):
        if kind in options:
            return parameter
    choices = [value for option in options for value in (option, *get_args(option)) if isinstance(value, str)]
    return click.Choice(list(dict.fromkeys(choices))) if choices else click.STRING
