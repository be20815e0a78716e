"""What Ray Train calls on each worker; light, as the controller imports it as well."""

from __future__ import annotations

from typing import Any


def run_worker(config: dict[str, Any]) -> None:
    """Train, with the `LoopConfig` under "loop"."""
    from dreambooth_trainer.engine.loop import train_loop

    train_loop(config["loop"])
