"""Selects the files of a model that are loaded.

Hub repositories also contain other number formats and training weights. `from_pretrained` without a variant reads one
set of safetensors: a single file, or the shards in the index. No other files are downloaded, hashed, counted or
published.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

INDEX = "model_index.json"
# The adapter in a published model, under the name that diffusers' `load_lora_weights` expects.
ADAPTER_FILE = "pytorch_lora_weights.safetensors"
# Embeddings of new tokens, under the name that `load_textual_inversion` expects, with a number from the second subject.
EMBEDDINGS_PATTERN = "learned_embeds*.safetensors"
# An image-prompt adapter (IP-Adapter), and the embeddings of each subject's images.
IP_ADAPTER_FILE = "ip_adapter.safetensors"
IMAGE_EMBEDS_FILE = "image_embeds.safetensors"
# Text encoders and tokenizers of pipelines that load tokens into two encoders, by class of the pipeline and by key of
# the embeddings in these files, as in diffusers' advanced examples.
TOKEN_COMPONENTS = {
    "StableDiffusionXLPipeline": {
        "clip_l": ("text_encoder", "tokenizer"),
        "clip_g": ("text_encoder_2", "tokenizer_2"),
    },
    "FluxPipeline": {"clip_l": ("text_encoder", "tokenizer"), "t5": ("text_encoder_2", "tokenizer_2")},
}
# The ones of which these pipelines use the pooled output.
POOLING_COMPONENTS = {
    "StableDiffusionXLPipeline": ("text_encoder_2", "tokenizer_2"),
    "FluxPipeline": ("text_encoder", "tokenizer"),
}
# The safety checker is not loaded: users generate images of their own subject for their own use. The watermark of
# DeepFloyd IF in class images would be learned.
UNUSED_COMPONENTS = {"safety_checker", "watermarker"}
SUPER_RESOLUTION_PIPELINE = "IFSuperResolutionPipeline"
# By class of the pipeline: this one gets the text embeddings of the base model.
UNUSED_BY_PIPELINE = {SUPER_RESOLUTION_PIPELINE: {"text_encoder", "tokenizer"}}
# Chat templates of language models are in .jinja files; transformers runs them in a sandbox.
CONFIG_SUFFIXES = (".json", ".txt", ".model", ".jinja")


def embeddings_file(subject: int) -> str:
    """Name of the file with the new tokens of a subject."""
    return "learned_embeds.safetensors" if subject == 0 else f"learned_embeds_{subject + 1}.safetensors"


ReadText = Callable[[str], str]


def pipeline_files(names: Collection[str], read: ReadText) -> list[str]:
    """Names of the files that are loaded of a diffusers pipeline.

    Args:
        names: all file names, relative to the pipeline's folder, with slashes.
        read: returns the text of a file.
    """
    files, index = [INDEX], json.loads(read(INDEX))
    unused = UNUSED_COMPONENTS | UNUSED_BY_PIPELINE.get(index.get("_class_name"), set())
    for component, kind in index.items():
        if component.startswith("_") or component in unused or not isinstance(kind, list) or None in kind:
            continue
        prefix = f"{component}/"
        inner = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        files += [prefix + name for name in model_files(inner, lambda name, prefix=prefix: read(prefix + name))]
    return sorted(files)


def model_files(names: Collection[str], read: ReadText) -> list[str]:
    """Names of the files that are loaded of a model, tokenizer or scheduler: its config and weights.

    Args:
        names: all file names, relative to the model's folder, with slashes.
        read: returns the text of a file.
    """
    top_level = {name for name in names if "/" not in name}
    weights = weight_files(top_level, read)
    configs = [name for name in top_level if name.endswith(CONFIG_SUFFIXES) and ".index." not in name]
    return sorted({*weights, *configs})


def weight_files(names: Collection[str], read: ReadText) -> list[str]:
    """Names of a model's safetensors files that are loaded, with the index of its shards; empty if there are none."""
    # If a folder has both a single file and shards, diffusers loads the shards and transformers the single file.
    for stem, shards_first in (("diffusion_pytorch_model", True), ("model", False)):
        single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
        if index in names and (shards_first or single not in names):
            shards = set(json.loads(read(index))["weight_map"].values())
            return sorted({index, *shards.intersection(names)})
        if single in names:
            return [single]
    return []


def without_safetensors(names: Collection[str]) -> list[str]:
    """Components of a pipeline that have weights, but not in safetensors.

    Args:
        names: all file names, relative to the pipeline's folder, with slashes.
    """
    folders = {name.rpartition("/")[0] for name in names if name.endswith((".bin", ".ckpt", ".msgpack"))}
    return sorted(
        folder
        for folder in folders - UNUSED_COMPONENTS - {""}
        if not any(name.startswith(f"{folder}/") and name.endswith(".safetensors") for name in names)
    )


def local_names(folder: Path) -> set[str]:
    """Names of the files of a local diffusers pipeline, relative to its folder, with slashes."""
    return {path.relative_to(folder).as_posix() for path in folder.glob("*/*")}


def local_pipeline_files(folder: Path) -> list[Path]:
    """Paths of the files that are loaded of a local diffusers pipeline."""
    return [folder / name for name in pipeline_files(local_names(folder), lambda name: (folder / name).read_text())]


def local_weights(folder: Path) -> list[Path]:
    """Paths of the safetensors files that are loaded of a local model; empty if there are none."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    loaded = weight_files(names, lambda name: (folder / name).read_text())
    return [folder / name for name in loaded if name.endswith(".safetensors")]
