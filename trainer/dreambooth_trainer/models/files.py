"""Which files of a model are loaded. A hub repository holds other number formats and training weights beside them.

`from_pretrained` without a variant reads one set of safetensors: a plain file, or the shards that the plain index
names. What it does not read is not downloaded, hashed, counted or published either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

INDEX = "model_index.json"
# The safety checker's weights are never loaded: drawings and photographs of a subject are its user's own.
UNUSED = {"safety_checker"}
CONFIGURATION = (".json", ".txt", ".model")

Read = Callable[[str], str]


def pipeline_files(names: Collection[str], read: Read) -> list[str]:
    """What is loaded of a diffusers pipeline.

    Args:
        names: the files that there are, relative to the pipeline's folder, with slashes.
        read: the text of one of them.
    """
    files = [INDEX]
    for part, kind in json.loads(read(INDEX)).items():
        if part.startswith("_") or part in UNUSED or not isinstance(kind, list) or None in kind:
            continue
        inside = {name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")}
        files += [f"{part}/{name}" for name in model_files(inside, lambda name, part=part: read(f"{part}/{name}"))]
    return sorted(files)


def model_files(names: Collection[str], read: Read) -> list[str]:
    """What is loaded of one model, tokenizer or scheduler: configuration and weights. Arguments as above."""
    top = {name for name in names if "/" not in name}
    weights = weight_names(top, read)
    configuration = [name for name in top if name.endswith(CONFIGURATION) and ".index." not in name]
    return sorted({*weights, *configuration})


def weight_names(names: Collection[str], read: Read) -> list[str]:
    """What is loaded of one model's weights, the index of shards included; empty if there are none in safetensors."""
    # Where a plain file and shards lie in one folder, diffusers takes the shards and transformers the plain file.
    for stem, shards_first in (("diffusion_pytorch_model", True), ("model", False)):
        plain, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
        if index in names and (shards_first or plain not in names):
            shards = set(json.loads(read(index))["weight_map"].values())
            return sorted({index, *shards.intersection(names)})
        if plain in names:
            return [plain]
    return []


def without_safetensors(names: Collection[str]) -> list[str]:
    """Folders that hold weights, but none in safetensors. Arguments as above."""
    folders = {name.rpartition("/")[0] for name in names if name.endswith((".bin", ".ckpt", ".msgpack"))}
    return sorted(
        folder
        for folder in folders - UNUSED - {""}
        if not any(name.startswith(f"{folder}/") and name.endswith(".safetensors") for name in names)
    )


def local_names(folder: Path) -> set[str]:
    """The files of a diffusers pipeline on this machine, relative, with slashes."""
    return {path.relative_to(folder).as_posix() for path in folder.glob("*/*")}


def local_pipeline_files(folder: Path) -> list[Path]:
    """What is loaded of a diffusers pipeline on this machine."""
    return [folder / name for name in pipeline_files(local_names(folder), lambda name: (folder / name).read_text())]


def local_weights(folder: Path) -> list[Path]:
    """The safetensors files that are loaded of one model on this machine."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    loaded = weight_names(names, lambda name: (folder / name).read_text())
    return [folder / name for name in loaded if name.endswith(".safetensors")]
