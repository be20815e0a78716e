"""New tokens under DeepSpeed, which casts parameters to the precision of the training, but no buffers."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examplelosses import PROMPTS
from familycases import INVERSION
from test_plan import make_plan

from dreambooth_trainer.families.base import live_text_encoders
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.training.cache import EncodedImages, TrainingData
from dreambooth_trainer.training.loop import run_step

pytestmark = [pytest.mark.trainer, pytest.mark.usefixtures("one_thread")]


def _train(method: str, model: Path, port: int, queue: Any) -> None:
    import torch.distributed as dist

    from dreambooth_trainer.training.deepspeed_engine import ZeroEngine

    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    training = {**INVERSION, "method": method, "resolution": 32, "steps": 2, "precision": "bf16"}
    plan = make_plan({"model": {"id": str(model)}, "training": training, "priorPreservation": {"mode": "None"}})
    engine = ZeroEngine(plan, 1, None)
    shapes = open_family(model).image_shapes(model, 32)
    images = {name: torch.full((3, *shape), 0.1) for name, shape in shapes.items()}
    prompts = engine.module.stage.encode_prompts(PROMPTS, live_text_encoders(open_family(model), plan))
    encoded = EncodedImages(images, prompts, torch.tensor([[0, 3]]), torch.arange(3), torch.ones(3, dtype=torch.long))
    queue.put([run_step(engine, plan, TrainingData(encoded, None), step, 0, 1).tolist() for step in range(2)])


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("TextualInversion", "tiny_model"),
        ("PivotalTuning", "tiny_model"),
        pytest.param("PivotalTuning", "tiny_flux_model", marks=pytest.mark.long),
    ],
)
def test_new_tokens_are_trained_in_bf16_under_deepspeed(request: pytest.FixtureRequest, method: str, name: str) -> None:
    model: Path = request.getfixturevalue(name)
    context: Any = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = context.Process(target=_train, args=(method, model, port, queue))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    assert np.isfinite(queue.get()).all()
