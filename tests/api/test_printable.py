"""Text of others on a terminal."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from dreambooth_api.status import printable
from dreambooth_operator.kubectl_plugin.render import event_rows, render
from dreambooth_trainer.cli.main import _labeled

NOW = datetime(2026, 11, 25, tzinfo=UTC)
# Colors, the clipboard (OSC 52), a title, 8-bit codes, reversal of text, line separators, and markup of rich.
HOSTILE = (
    "\x1b[31mx\x1b[0m", "\x1b]52;c;cm0gLXJm\x07", "\x9d0;t\x9c", "\x9b2J", "\u202egpj.exe", "\u2066x\u2069", "a\u2028b",
    "[red]x[/red]", "\\\\[bold]x", "[/]", "[link=http://x]y[/link]", "\x00", "a\rb", "\x08\x08",
)  # fmt: skip
FORBIDDEN = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *"\u202e\u2066\u2069\u2028"} - {"\n", "\t"}


def shown(content: object) -> str:
    """What is printed on a terminal without colors."""
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(content, soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_text_has_no_control_characters(text: str) -> None:
    assert not FORBIDDEN & set(printable(text))
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_terminal_shows_text_of_others_literally(text: str) -> None:
    condition = {"type": text, "status": "True", "reason": text, "message": text}
    status = {
        "phase": text,
        "message": text,
        "conditions": [condition],
        "training": {"steps": 2, "progress": text, "eta": text},
        "scores": {"dino": text},
        "output": {"uri": text},
    }
    event = {"type": "Warning", "reason": text, "message": text}
    for content in (
        render({"metadata": {"namespace": "n", "name": "j"}, "status": status}, NOW),
        event_rows([event], NOW),
        _labeled("error", text),
    ):
        output = shown(content)
        assert not FORBIDDEN & set(output)
        for line in printable(text).splitlines():
            assert line.strip() in output
