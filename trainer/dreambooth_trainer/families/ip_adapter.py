"""The files of an IP-Adapter (Ye et al. 2023) with the layout of diffusers, and loading it into a pipeline."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.imageprompt import IpAdapter
from dreambooth_trainer.families.registry import on_disk
from dreambooth_trainer.models.files import model_files
from dreambooth_trainer.models.hub import Repository, fetch, open_repository
from dreambooth_trainer.planning.model_facts import denoiser_config, read_config

PATH = "spec.training.imagePrompt.adapter"
ENCODER = "image_encoder"


@dataclass(frozen=True)
class AdapterFiles:
    """Local paths of an adapter's weights, and of the folder of its image encoder."""

    weights: Path
    encoder: Path


def adapter_files(adapter: IpAdapter) -> AdapterFiles:
    """The local files of an adapter, downloaded from the Hub if needed.

    Raises:
        UserError: the adapter was not found, or has no safetensors weights in these places.
        TransientError: the Hub cannot be reached.
    """
    folder = on_disk(adapter)
    if folder is None:
        select = _select(adapter.weights)
        folder = fetch(adapter.id, adapter.revision, f"{PATH}.id", _encoder_config(adapter.weights), select)
    else:
        _local_names(adapter, folder)
    weights = folder / adapter.weights
    return AdapterFiles(weights, weights.parent / ENCODER)


def pinned_adapter(adapter: IpAdapter) -> IpAdapter:
    """The adapter with its commit as the revision, if it is on the Hub. Its weights are not downloaded.

    Raises:
        UserError, TransientError: as `adapter_files`.
    """
    if on_disk(adapter) is not None:
        adapter_files(adapter)
        return adapter
    repository = open_repository(adapter.id, adapter.revision, f"{PATH}.id", _encoder_config(adapter.weights))
    _select(adapter.weights)(repository)
    return adapter.model_copy(update={"revision": repository.commit})


def adapter_digest(adapter: IpAdapter) -> str:
    """What identifies the contents of a pinned adapter: its commit, or a SHA-256 of its files."""
    folder = on_disk(adapter)
    if folder is None:
        return f"{adapter.id}@{adapter.revision}/{adapter.weights}"
    digest = hashlib.sha256()
    for name in _local_names(adapter, folder):  # others may be in the folder, and an encoder has gigabytes
        with (folder / name).open("rb") as file:
            digest.update(f"{name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_adapter(weights: Path, base: Path) -> None:
    """Reject an adapter that was not made for the architecture of a base model. Reads only headers.

    Args:
        weights: file of the adapter.
        base: diffusers folder of the base model, which may be without weights.

    Raises:
        UserError: it cannot be read, is not an IP-Adapter, or has another width.
    """
    try:
        with safe_open(weights, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise UserError(_issue(weights.name, f"cannot be read: {error}", "download the file again")) from error
    widths = {shape[1] for name, shape in shapes.items() if name.endswith(("to_k_ip.weight", "to_v_ip.weight"))}
    if not widths or not any(name.startswith("image_proj.") for name in shapes):
        rule = "has no tensors image_proj.* and ip_adapter.*, which an IP-Adapter consists of"
        raise UserError(_issue(weights.name, rule, "set the weights of an IP-Adapter"))
    expected = read_config(base, denoiser_config(base)).get("cross_attention_dim")
    if widths != {expected}:
        rule = f"has keys of {' and '.join(map(str, sorted(widths)))} inputs, the base model needs {expected}"
        raise UserError(_issue(weights.name, rule, "set an adapter that was trained for the base model"))


def load_ip_adapter(pipeline: Any, weights: Path, *, encoder: bool) -> None:
    """Load an adapter into a pipeline of Stable Diffusion, with its image encoder or without it.

    Raises:
        UserError: the adapter does not fit the pipeline.
    """
    folder = ENCODER if encoder else None
    try:
        # The loader joins the parts of the path, so the subfolder may be empty.
        pipeline.load_ip_adapter(
            str(weights.parent), subfolder="", weight_name=weights.name, image_encoder_folder=folder
        )
    except (KeyError, ValueError, RuntimeError) as error:
        rule = f"does not fit the base model: {str(error).partition(chr(10))[0]}"
        raise UserError(_issue(weights.name, rule, "set an adapter that was trained for the base model")) from error


@functools.cache
def _select(weights: str) -> Callable[[Repository], list[str]]:
    """A function that returns the names of an adapter's files. `fetch` caches by function."""

    def select(repository: Repository) -> list[str]:
        return _names(IpAdapter(id=repository.model_id, weights=weights), repository.names, repository.read)

    return select


def _local_names(adapter: IpAdapter, folder: Path) -> list[str]:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    return _names(adapter, names, lambda name: (folder / name).read_text())


def _names(adapter: IpAdapter, names: frozenset[str] | set[str], read: Callable[[str], str]) -> list[str]:
    folder = _encoder_config(adapter.weights).removesuffix("config.json")
    inner = {name.removeprefix(folder) for name in names if name.startswith(folder)}
    # transformers ignores weights with the name of diffusers', and reads pickle files if there are no others.
    inner = {name for name in inner if not name.startswith("diffusion_pytorch_model")}
    encoder = model_files(inner, lambda name: read(folder + name))
    issues: list[ValidationIssue] = []
    if adapter.weights not in names:
        rule, others = "does not exist in the repository", [name for name in names if name.endswith(".safetensors")]
        remedy = f"set one of: {', '.join(sorted(others)[:8])}" if others else "use another adapter"
        issues.append(ValidationIssue(f"{PATH}.weights", adapter.weights, rule, remedy))
    if "config.json" not in inner or not any(name.endswith(".safetensors") for name in encoder):
        rule = f"has no image encoder with safetensors weights in {folder}"
        remedy = "set weights beside a folder image_encoder that has a config.json and a model.safetensors"
        issues.append(ValidationIssue(f"{PATH}.id", adapter.id, rule, remedy))
    if issues:
        raise UserError(issues)
    return [adapter.weights, *(folder + name for name in encoder)]


def _encoder_config(weights: str) -> str:
    return (PurePosixPath(weights).parent / ENCODER / "config.json").as_posix()


def _issue(value: str, rule: str, remedy: str) -> ValidationIssue:
    return ValidationIssue(f"{PATH}.weights", value, rule, remedy)
