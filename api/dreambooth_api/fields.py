"""Field types that the specs share, and the base of all spec models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

UID = r"^[-0-9A-Za-z]*$"
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
# A single line of printable text. Braces are reserved for templates, where {} is replaced by "sks dog".
TEMPLATE = r"^[^\x00-\x1f{}]*\{\}[^\x00-\x1f{}]*$"
PHRASE = r"^[^\x00-\x1f{}]*[^\x00-\x20{}][^\x00-\x1f{}]*$"
# Greater than zero: quotas and Kueue do not count a pod without requests.
QUANTITY = r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*)(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
TOKEN = r"^[^\s{}]{1,32}$"  # noqa: S105 - a word, not a secret
MAX_IDENTIFIER_LENGTH = 32
RELATIVE_PATH = r"^([^/.:\x00-\x1f][^/:\x00-\x1f]*(/[^/.:\x00-\x1f][^/:\x00-\x1f]*)*)?$"

Phrase = Annotated[str, Field(pattern=PHRASE, max_length=300)]
Template = Annotated[str, Field(pattern=TEMPLATE, max_length=300)]
ObjectName = Annotated[str, Field(pattern=DNS_SUBDOMAIN)]
Quantity = Annotated[str, Field(pattern=QUANTITY)]

_DECIMAL_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS = {**_DECIMAL_UNITS, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity_value(quantity: str) -> float:
    """The number that a Kubernetes quantity stands for, for example bytes."""
    number = quantity.rstrip("kKMGTim")
    return float(number) * _UNITS[quantity.removeprefix(number)]


def rule_error(at: str, rule: str, remedy: str) -> PydanticCustomError:
    """A broken rule over several fields: the field to change (camelCase, "" for the object), the rule, the remedy."""
    return PydanticCustomError("rule", "{rule}; {remedy}", {"at": at, "rule": rule, "remedy": remedy})


class Strict(BaseModel):
    """Base of all spec models: camelCase in YAML, snake_case in Python, immutable; unknown keys are rejected."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
    )


M = TypeVar("M", bound=Strict)


def shared(model: type[M]) -> Callable[[], M]:
    """A default factory that returns the same instance each time, which is safe because models are immutable.

    Most of a job's spec is defaults: new instances would take most of the time of its validation.
    """
    instance = model()
    return lambda: instance


class VolumeClaim(Strict):
    """A folder on a PersistentVolumeClaim in the job's namespace."""

    claim_name: ObjectName = Field(description="Name of the PersistentVolumeClaim.")
    path: str = Field(default="", pattern=RELATIVE_PATH, description="Folder in the volume, relative to its root.")


class ObjectRef(Strict):
    """Reference to a ConfigMap or Secret in the job's namespace."""

    name: ObjectName = Field(description="Name of the object.")
