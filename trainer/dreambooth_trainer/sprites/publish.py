"""Writes the trained components as the folder of weights in the package."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline


def publish_pipeline(pipeline: StableDiffusionPipeline, out: Path, evaluator: Path) -> None:
    """Write `out` as float16 safetensors, with the evaluator in it. `out` is replaced once everything is written."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.to(torch.float16)
    pipeline.save_pretrained(partial)
    if evaluator.exists():
        shutil.copytree(evaluator, partial / "evaluator")
    for component in ("text_encoder", "unet", "vae"):
        clean_config(partial / component / "config.json")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def publish_folder(out: Path, folder: Path, *inside: Path) -> None:
    """Copy a finished folder to `out`, with other folders in it. `out` is replaced once everything is written."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder, partial)
    for part in inside:
        shutil.copytree(part, partial / part.name)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def clean_config(config: Path) -> None:
    """Remove the training path from a component's config, and set its dtype to float32.

    Weights are stored in float16 but run in float32 by default: diffusers loads in float32, while transformers uses
    `dtype` of the config. A float16 text encoder cannot run together with a float32 UNet.
    """
    settings = json.loads(config.read_text())
    settings.pop("_name_or_path", None)
    if "dtype" in settings:
        settings["dtype"] = "float32"
    config.write_text(json.dumps(settings, indent=2) + "\n")
