"""Counts the memory of a plan's model on PyTorch's meta device, where tensors have a shape but no data.

The live bytes are tracked through the forward and the backward pass, so that recomputed activations and temporary
tensors count as well.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.families.base import PARTS, Family, Part
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.planning.memory import ModelSize
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.meta_autocast import MetaAutocast
from dreambooth_trainer.training.module import Batch, DreamBoothModule, prepare_module
from dreambooth_trainer.training.plain_engine import cast_frozen_matrices

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class LiveBytes(TorchDispatchMode):
    """Tracks the bytes of all tensors that operators create, until they are freed.

    Attributes:
        live, peak: bytes of the storages that exist now, and their maximum.
    """

    def __init__(self, existing: Iterator[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages = {tensor.untyped_storage()._cdata: 0 for tensor in existing}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key: int = storage._cdata
        if key not in self._storages:
            self._storages[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._storages.pop(key, 0)


def count_size(plan: Plan, folder: Path, images: int, encoding_batch: int) -> ModelSize:
    """Parameters of a plan's model, and bytes of its activations.

    Args:
        folder: local diffusers folder of the base model. Only configuration files are read.
        images: images per micro-batch of one process, including class images.
        encoding_batch: images per forward pass of the autoencoder.
    """
    pipeline = _count_pipeline(folder, plan.resolution, plan.sampling_batch_size, encoding_batch, plan.precision)
    training, parts = plan.spec.training, plan.trained_parts
    rank = training.lora.rank if training.method == "LoRA" else None
    key = (
        *(folder, parts, rank, plan.resolution, images, plan.precision, training.gradient_checkpointing),
        *(_autocast_dtype(plan), plan.gpus_per_worker > 0),
    )
    if key not in _training_counts:
        _training_counts[key] = _count_training(plan, folder, images)
    return ModelSize(**_training_counts[key], **pipeline)


_training_counts: dict[tuple[object, ...], dict[str, int]] = {}


def _autocast_dtype(plan: Plan) -> torch.dtype | None:
    """The dtype of a single process under autocast. DeepSpeed casts the whole model instead."""
    autocast = plan.precision != "fp32" and not plan.needs_deepspeed(plan.world_sizes[0])
    return DTYPES[plan.precision] if autocast else None


def _count_training(plan: Plan, folder: Path, images: int) -> dict[str, int]:
    family, low = open_family(folder), _autocast_dtype(plan)
    scheduler = DDPMScheduler()
    with torch.device("meta"), fused_attention():
        modules = _build(family, folder, DTYPES[plan.precision] if low is None else torch.float32)
        batch = _meta_batch(plan, family, modules, images)
        module = prepare_module(plan, family, {part: modules[part] for part in plan.trained_parts}, scheduler)
        if low is not None:
            cast_frozen_matrices(module, low)
        parameters = list(module.parameters())
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        autocast = None if low is None else MetaAutocast(low, gpu=plan.gpus_per_worker > 0)
        with contextlib.nullcontext() if autocast is None else autocast.enabled():
            activations, peak = _count_passes(module, batch, autocast)
        gradients = sum(p.grad.nbytes for p in trainable if p.grad is not None)
    count = sum(parameter.numel() for parameter in trainable)
    return {
        "trainable": count,
        "frozen": sum(parameter.numel() for parameter in parameters) - count,
        "activations": activations,
        "backward": max(0, peak - gradients),
    }


def _count_passes(module: DreamBoothModule, batch: Batch, autocast: MetaAutocast | None) -> tuple[int, int]:
    """Bytes after the forward pass, and at the peak of both passes including gradients."""
    with LiveBytes(module.parameters()) as memory:
        losses = module(batch)
        if autocast is not None:
            autocast.end_forward()
        activations = memory.live
        losses[0].backward()
        return activations, memory.peak


def _meta_batch(plan: Plan, family: Family, modules: Mapping[Part, Any], images: int) -> Batch:
    side = plan.resolution // _pixels_per_latent(modules["vae"])
    token_ids = torch.zeros(images, modules["text_encoder"].config.max_position_embeddings, dtype=torch.long)
    with torch.no_grad():
        conditioning = family.encode_prompts(modules["text_encoder"], token_ids)
    latents = torch.zeros(images, modules["denoiser"].config.in_channels, side, side)
    timesteps = torch.zeros(images, dtype=torch.long)
    encoded = None if plan.train_text_encoder else conditioning
    return Batch(latents, latents, timesteps, token_ids, encoded, num_instance_images=max(1, images // 2))


@functools.cache
def _count_pipeline(
    folder: Path, resolution: int, sampling_batch: int, encoding_batch: int, precision: str
) -> dict[str, int]:
    """Parameters of the pipeline, and bytes of generating and of encoding a batch of images, beyond the weights."""
    family = open_family(folder)
    with torch.device("meta"), torch.no_grad(), fused_attention():
        modules: dict[Part, Any] = _build(family, folder, DTYPES[precision])
        denoiser, text_encoder, vae = (modules[part] for part in PARTS)
        side = resolution // _pixels_per_latent(vae)
        batch = 2 * sampling_batch  # classifier-free guidance doubles the batch
        tokens = torch.zeros(batch, text_encoder.config.max_position_embeddings, dtype=torch.long)
        conditioning = family.encode_prompts(text_encoder, tokens)
        noisy = torch.zeros(batch, denoiser.config.in_channels, side, side, dtype=DTYPES[precision])
        with LiveBytes(denoiser.parameters()) as denoising:
            family.predict(denoiser, noisy, torch.zeros(batch, dtype=torch.long), conditioning)
        with LiveBytes(vae.parameters()) as decoding:
            vae.decode(torch.zeros(sampling_batch, vae.config.latent_channels, side, side))
        with LiveBytes(vae.parameters()) as encoding:
            vae.encode(torch.zeros(encoding_batch, 3, resolution, resolution))
    sizes = [sum(p.numel() for p in module.parameters()) for module in (denoiser, text_encoder, vae)]
    return {
        "total": sum(sizes),
        "encoders": sum(sizes[1:]),
        "sampling": max(denoising.peak, decoding.peak),
        "encoding": encoding.peak,
    }


def _build(family: Family, folder: Path, dtype: torch.dtype) -> dict[Part, nn.Module]:
    """All modules. The autoencoder is in fp32, which most autoencoders need.

    Raises:
        UserError: a configuration file is missing or not valid.
    """
    try:
        modules: dict[Part, nn.Module] = {part: family.build(folder, part) for part in PARTS}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        rule = f"has a module whose configuration is not valid: {str(error).partition(chr(10))[0]}"
        remedy = "set the folder of a complete diffusers model"
        raise UserError(ValidationIssue("spec.model.id", str(folder), rule, remedy)) from error
    for part in ("denoiser", "text_encoder"):
        nn.Module.to(modules[part], dtype)  # diffusers' own method logs a warning
    return modules


def _pixels_per_latent(vae: Any) -> int:
    return 2 ** (len(vae.config.block_out_channels) - 1)


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Attention that does not store its scores, as on CPUs and GPUs. The meta device has no such kernel of its own."""
    original = functional.scaled_dot_product_attention

    def fused(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *arguments: Any, **options: Any
    ) -> Tensor:
        del arguments, options
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=attn_mask)[0]

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original
