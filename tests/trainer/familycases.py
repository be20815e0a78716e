"""Jobs of every model family on tiny models, without Ray, and what plain diffusers draws with their results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from examplelosses import PROMPTS
from PIL import Image
from safetensors.torch import load_file
from test_plan import make_plan
from torch import Tensor

from dreambooth_trainer.families.base import Family
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.phases.encode import encode
from dreambooth_trainer.phases.train import save_trained_model
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.training.cache import load_data
from dreambooth_trainer.training.loop import run_step
from dreambooth_trainer.training.plain_engine import PlainEngine

INVERSION = {
    "method": "TextualInversion",
    "textualInversion": {"vectors": 2},
    "learningRate": 0.1,
    "globalBatchSize": len(PROMPTS),
}
LORA = {"method": "LoRA", "lora": {"rank": 4, "alpha": 10}}


def open_all(folder: Path) -> tuple[Family, Any]:
    family = open_family(folder)
    return family, family.open(folder, (family.denoiser, *family.text_encoders, *family.image_encoders))


def plain(pipeline_class: Any, folder: Path) -> Any:
    """A pipeline of plain diffusers, which requires components that a model lacks to be passed as None."""
    index = json.loads((folder / "model_index.json").read_text())
    missing = {name: None for name, kind in index.items() if kind == [None, None]}
    return pipeline_class.from_pretrained(folder, dtype=torch.float32, **missing)


def draw(model: Path | Any, adapter: Path | None = None, **options: Any) -> np.ndarray:
    """An image that a plain diffusers pipeline, or the one in a folder, draws."""
    pipeline = plain(DiffusionPipeline, model) if isinstance(model, Path) else model
    if adapter is not None:
        pipeline.load_lora_weights(adapter)
        if pipeline.scheduler.config.get("variance_type") == "learned_range":  # as the guide of diffusers says
            pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, variance_type="fixed_small")
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    size = {"height": 32, "width": 32}
    return pipeline("a sks dog", num_inference_steps=4, generator=noise, output_type="np", **size, **options).images


def load_tokens(pipeline: Any, folder: Path) -> None:
    """Load new tokens as the documentation says, with diffusers only."""
    tensors = load_file(folder / "learned_embeds.safetensors")
    if set(tensors) == {"sks"}:
        pipeline.load_textual_inversion(folder)
        return
    keys = {key: suffix for key, suffix in (("clip_l", ""), ("clip_g", "_2"), ("t5", "_2")) if key in tensors}
    assert len(keys) == len(tensors) == 2
    for key, suffix in keys.items():
        encoder, tokenizer = (getattr(pipeline, f"{part}{suffix}") for part in ("text_encoder", "tokenizer"))
        for part in encoder.modules():
            if getattr(part, "eos_token_id", None) == 2:
                part.eos_token_id = tokenizer.eos_token_id
        pipeline.load_textual_inversion(tensors[key], token="sks", text_encoder=encoder, tokenizer=tokenizer)


def run_job(model: Path, images: list[Image.Image], root: Path, training: dict[str, Any]) -> JobFolder:
    """Encode, two steps of training, and save."""
    plan = make_plan({"model": {"id": str(model)}, "training": {"resolution": 32, "steps": 2, **training}})
    folder, checkpoint = JobFolder(root), root / "checkpoint"
    for path in (folder.prepared, checkpoint):
        path.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder.prepared / f"{number:03d}.png")
    encode(plan, folder, [PROMPTS], [1] * len(PROMPTS), [])
    engine, data = PlainEngine(plan, None), load_data(folder.latents)
    losses = [run_step(engine, plan, data, step, 0, 1).tolist() for step in range(2)]
    assert np.isfinite(losses).all()
    engine.save_weights(checkpoint, 0)
    save_trained_model(plan, checkpoint, folder)
    return folder


def weights_of(model: Path) -> dict[str, Tensor]:
    files = model.glob("*/*.safetensors")
    return {f"{path.parent.name}.{key}": tensor for path in files for key, tensor in load_file(path).items()}
