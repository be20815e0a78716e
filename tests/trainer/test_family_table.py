"""The table of families in the documentation says what the code can do."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from dreambooth_api.methods import methods_of_format
from dreambooth_trainer.families.base import ImagePrompts, KohyaWriter, SingleFileWriter
from dreambooth_trainer.families.registry import FAMILIES

pytestmark = pytest.mark.trainer

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "base-models.md"
SECTION = PAGE.read_text().partition("## Methods and formats")[2].partition("\n## ")[0]


def code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "not available"


def test_the_table_has_what_each_family_trains_and_publishes() -> None:
    rows = []
    for name, place in FAMILIES.items():
        module, _, attribute = place.partition(":")
        family = getattr(importlib.import_module(module), attribute)()
        tokens = family.extensible_text_encoders
        formats = ["`diffusers`", "`lora`"]
        formats += ["kohya's layout"] * isinstance(family, KohyaWriter)
        formats += ["`embeddings`"] * bool(tokens)
        formats += ["`safetensors`"] * isinstance(family, SingleFileWriter)
        formats += ["`ip-adapter`"] * isinstance(family, ImagePrompts)
        trained = f"`{name}`", f"`{family.denoiser}`", code(family.trainable_text_encoders), code(tokens)
        rows.append("| " + " | ".join([*trained, ", ".join(formats)]) + " |")
    assert [line for line in SECTION.splitlines() if line.startswith("| `")] == rows


def test_the_formats_are_those_of_the_methods() -> None:
    text = " ".join(SECTION.split())
    assert "`ip-adapter` with None" in text
    for name in ("lora", "embeddings", "safetensors"):
        *first, last = methods_of_format(name)
        assert f"`{name}` with {', '.join(first)} and {last}" in text
