"""New tokens under DeepSpeed, which casts parameters to the precision of the training, but no buffers."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_family_conformance import INVERSION, PROMPTS
from test_plan import make_plan

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
    plan = make_plan({"model": {"id": str(model)}, "training": training})
    engine = ZeroEngine(plan, 1, None)
    shapes = open_family(model).image_shapes(model, 32)
    images = {name: torch.full((3, *shape), 0.1) for name, shape in shapes.items()}
    prompts = engine.module.stage.encode_prompts(PROMPTS, open_family(model).trainable_text_encoders)
    encoded = EncodedImages(images, prompts, torch.tensor([[0, 3]]), torch.arange(3), torch.ones(3, dtype=torch.long))
    queue.put([run_step(engine, plan, TrainingData(encoded, None), step, 0, 1).tolist() for step in range(2)])


@pytest.mark.parametrize("method", ["TextualInversion", "PivotalTuning"])
def test_new_tokens_are_trained_in_bf16_under_deepspeed(method: str, tiny_model: Path) -> None:
    context: Any = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = context.Process(target=_train, args=(method, tiny_model, port, queue))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    assert np.isfinite(queue.get()).all()
