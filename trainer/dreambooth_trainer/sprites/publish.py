"""How the trained parts become the folder that ships."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline


def publish_pipeline(pipeline: StableDiffusionPipeline, out: Path, evaluator: Path) -> None:
    """Write `out` as float16 safetensors, with the evaluator inside; `out` is replaced only when all is written."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.to(torch.float16)
    pipeline.save_pretrained(partial)
    if evaluator.exists():
        shutil.copytree(evaluator, partial / "evaluator")
    for part in ("text_encoder", "unet", "vae"):
        _settle(partial / part / "config.json")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _settle(config: Path) -> None:
    """Leave in a part's config only what the recipe decides.

    Half precision is how weights are stored, not how they run by default. diffusers loads to float32 unless told
    otherwise; transformers goes by `dtype` in the config, and a text encoder in float16 beside a UNet in float32
    cannot run. Where the part lay while it was trained is nobody's business.
    """
    settings = json.loads(config.read_text())
    settings.pop("_name_or_path", None)
    if "dtype" in settings:
        settings["dtype"] = "float32"
    config.write_text(json.dumps(settings, indent=2) + "\n")
