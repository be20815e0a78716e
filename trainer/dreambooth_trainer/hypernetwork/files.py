"""The files of a HyperNetwork: its configuration and its weights in one folder, and the image encoder that it needs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Strict
from dreambooth_api.hypernetwork import HyperNetwork
from dreambooth_api.imageprompt import IpAdapter
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.families.registry import on_disk
from dreambooth_trainer.models.files import model_files
from dreambooth_trainer.models.hub import Repository, fetch, open_repository
from dreambooth_trainer.planning.defaults import model_defaults
from dreambooth_trainer.sprites import WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

PATH = "spec.training.hyperNetwork.id"
CONFIG_FILE = "hypernetwork.json"
WEIGHTS_FILE = "hypernetwork.safetensors"
BUILTIN = WEIGHTS / "hypernetwork"
ENCODER = IpAdapter(id="h94/IP-Adapter", weights="models/ip-adapter_sd15.safetensors")
"""Its image encoder is used for base models without an IP-Adapter of their own."""


class LayerShape(Strict):
    """Shapes of the adapter of a layer: A [rank, inputs, ...] and B [outputs, rank, ...]."""

    down: tuple[int, ...]
    up: tuple[int, ...]


class NetworkConfig(Strict):
    """The content of hypernetwork.json: what the network predicts, and for which jobs.

    Attributes:
        base_model: ID of the base model, or the name of its folder.
        base_digest: of the base model's weights.
        identifier: of the subjects that it was trained on.
        encoder_digest: of the image encoder.
        features: numbers per image that the image encoder returns.
        layers: of the denoiser, by name.
        jobs: number of jobs that it was trained on.
    """

    base_model: str
    base_digest: str
    rank: int
    alpha: float
    identifier: str
    encoder_digest: str
    features: int
    layers: dict[str, LayerShape]
    jobs: int


def network_folder(network: HyperNetwork, *, weights: bool = True) -> Path:
    """The local folder of a HyperNetwork, downloaded from the Hub if needed.

    Args:
        weights: whether the weights are needed.

    Raises:
        UserError: it was not found, or lacks a file.
        TransientError: the Hub cannot be reached.
    """
    folder = BUILTIN if network.id == BUILTIN_SPRITES else on_disk(network)
    if folder is None:
        return fetch(network.id, network.revision, PATH, CONFIG_FILE, _all_files if weights else _only_config)
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise UserError(_incomplete(network.id, missing))
    return folder


def pinned_network(network: HyperNetwork) -> HyperNetwork:
    """The network with its commit as the revision, if it is on the Hub. Its weights are not downloaded.

    Raises:
        UserError, TransientError: as `network_folder`.
    """
    if network.id == BUILTIN_SPRITES or on_disk(network) is not None:
        network_folder(network)
        return network
    repository = open_repository(network.id, network.revision, PATH, CONFIG_FILE)
    _all_files(repository)
    return network.model_copy(update={"revision": repository.commit})


def network_digest(network: HyperNetwork) -> str:
    """What identifies the contents of a pinned network: its commit, or a SHA-256 of its files."""
    if network.id != BUILTIN_SPRITES and on_disk(network) is None:
        return f"{network.id}@{network.revision}"
    return _digest(network_folder(network), (CONFIG_FILE, WEIGHTS_FILE))


def read_config(network: HyperNetwork) -> NetworkConfig:
    """The configuration of a network.

    Raises:
        UserError: it cannot be read, or as `network_folder`.
    """
    folder = network_folder(network, weights=False)
    try:
        return NetworkConfig.model_validate_json((folder / CONFIG_FILE).read_text())
    except ValidationError as error:
        rule = f"has a {CONFIG_FILE} that was written by another version of dreambooth"
        raise UserError(ValidationIssue(PATH, network.id, rule, "train the network again")) from error


def write_network(folder: Path, config: NetworkConfig, weights: dict[str, Tensor]) -> None:
    """Write a network, its weights as float16."""
    from safetensors.torch import save_file

    halves = {name: value.detach().half().contiguous() for name, value in weights.items()}
    save_file(halves, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(config.model_dump_json(by_alias=True, indent=2) + "\n")


def encoder_of(model_id: str) -> IpAdapter:
    """The IP-Adapter whose image encoder is used for the subjects of a base model.

    It is not in the configuration, so that a network cannot name another repository on the Hub.
    """
    return model_defaults(model_id).ip_adapter or ENCODER


def encoder_digest(folder: Path) -> str:
    """SHA-256 of the files of an image encoder."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith("diffusion_pytorch_model")}
    return _digest(folder, model_files(names, lambda name: (folder / name).read_text()))


def _digest(folder: Path, names: tuple[str, ...] | list[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            digest.update(f"{name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _only_config(repository: Repository) -> list[str]:
    return [CONFIG_FILE] if _all_files(repository) else []


def _all_files(repository: Repository) -> list[str]:
    if WEIGHTS_FILE not in repository.names:
        raise UserError(_incomplete(repository.model_id, [WEIGHTS_FILE]))
    return [CONFIG_FILE, WEIGHTS_FILE]


def _incomplete(network_id: str, missing: list[str]) -> ValidationIssue:
    remedy = "set a folder that dreambooth hypernetwork train has written"
    return ValidationIssue(PATH, network_id, f"has no {' and no '.join(missing)}", remedy)
