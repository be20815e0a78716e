"""Features of a subject's images, and the adapter that a HyperNetwork predicts from them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.cluster.hardware import work_device
from dreambooth_trainer.families.ip_adapter import adapter_files
from dreambooth_trainer.hypernetwork.files import (
    PATH,
    WEIGHTS_FILE,
    encoder_digest,
    encoder_of,
    network_folder,
    read_config,
)
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.store.folder import JobFolder

# Heavy libraries are imported inside functions: the driver does not need them.
if TYPE_CHECKING:
    from torch import Tensor


def predict_initial_adapter(plan: Plan, folder: JobFolder) -> None:
    """Write the adapter that the training of a job starts from. Runs on one worker, so that all read the same.

    Raises:
        UserError: the image encoder is not the one that the network was trained with.
    """
    from safetensors.torch import load_file

    from dreambooth_trainer.hypernetwork.network import AdapterNetwork
    from dreambooth_trainer.sampling.generate import unload_models

    unload_models()  # the process may not have memory for two models
    assert plan.hyper_network is not None
    config = read_config(plan.hyper_network)
    encoder = adapter_files(encoder_of(plan.model.id)).encoder
    if encoder_digest(encoder) != config.encoder_digest:
        rule = f"was trained with another image encoder than {encoder_of(plan.model.id).id} has"
        raise UserError(ValidationIssue(PATH, plan.hyper_network.id, rule, "train the network again"))
    network = AdapterNetwork(config.features, config.layers)
    weights = load_file(network_folder(plan.hyper_network) / WEIGHTS_FILE)
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    images = [Image.open(path) for path in folder.prepared_of(0)]
    save_adapter_file(predict(network, image_features(encoder, images)), config.layers, folder.initial_adapter)


def predict(network: Any, features: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """A [r, i] and B [o, r] of each layer for one subject, from features [images, D]."""
    import torch

    with torch.no_grad():
        return {name: (down[0], up[0]) for name, (down, up) in network(features.mean(0)[None]).items()}


def image_features(encoder: Path, images: Sequence[Image.Image]) -> Tensor:
    """Features of images, [N, D], as diffusers computes them for an IP-Adapter.

    Args:
        encoder: folder of the image encoder.
    """
    import torch

    processor, model = _open_encoder(encoder, device := work_device())
    pixels: Any = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
    with torch.no_grad():
        return model(pixels.pixel_values.to(device)).image_embeds.float().cpu()


@functools.lru_cache(maxsize=1)
def _open_encoder(folder: Path, device: str) -> tuple[Any, Any]:
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    model: Any = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    side = model.config.image_size
    return CLIPImageProcessor(size=side, crop_size=side), model.eval().to(device)


def save_adapter_file(adapter: dict[str, tuple[Tensor, Tensor]], layers: Any, path: Path) -> None:
    """Write A and B of each layer with PEFT's names and shapes."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, (down, up) in adapter.items():
        tensors[f"{name}.lora_A.weight"] = down.reshape(layers[name].down).contiguous()
        tensors[f"{name}.lora_B.weight"] = up.reshape(layers[name].up).contiguous()
    draft = path.with_suffix(".draft")
    draft.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, draft)
    draft.chmod(0o644)  # safetensors (0.8) writes files that only their owner can read
    draft.replace(path)
