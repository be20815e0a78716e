"""Counts the memory of a plan's model on PyTorch's meta device, where tensors have a shape but no data.

The live bytes are tracked through the forward and the backward pass, so that recomputed activations and temporary
tensors count as well.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.families.base import Family, Stage, live_text_encoders, modules_in_training
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.planning.memory import ModelSize
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.batches import Batch
from dreambooth_trainer.training.meta_autocast import MetaAutocast
from dreambooth_trainer.training.module import DreamBoothModule, prepare_module
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
    dtype = DTYPES[plan.precision] if plan.gpus_per_worker else torch.float32  # CPUs generate images in fp32
    pipeline = dict(_count_pipeline(folder, plan.resolution, plan.sampling_batch_size, encoding_batch, dtype))
    del pipeline["denoiser"]
    training, text = plan.spec.training, plan.train_text_encoder
    key = (
        *(folder, text, training.method, training.adapters.rank, training.vectors, training.gradient_checkpointing),
        *(plan.resolution, images, plan.precision, _autocast_dtype(plan), plan.gpus_per_worker > 0),
        *(plan.spec.preservation, plan.needs_deepspeed(plan.world_sizes[0])),
    )
    if key not in _training_counts:
        _training_counts[key] = _count_training(plan, folder, images) if training.traits.trains else _NO_TRAINING
    shapes = open_family(folder).image_shapes(folder, plan.resolution).values()
    class_images = plan.num_class_images if plan.spec.uses_class_images else 0
    data = 4 * class_images * sum(math.prod(shape) for shape in shapes)
    return ModelSize(**_training_counts[key], **pipeline, data=data, **_count_validation(plan, folder))


def _count_validation(plan: Plan, folder: Path) -> dict[str, int]:
    """Bytes that a training process needs for validation, beyond the modules that it trains."""
    if plan.spec.training.validation is None or plan.stage:
        return {}
    one = _count_pipeline(folder, plan.resolution, 1, 1, DTYPES[plan.precision])
    # Text encoders that are trained count twice, because they are small.
    weights = one["pipeline"] - one["denoiser"]
    return {"validators": weights, "validation": weights + one["sampling"]}


_NO_TRAINING: dict[str, int] = dict.fromkeys(
    ("trainable", "frozen", "loaded", "assembled", "activations", "backward"), 0
)
_training_counts: dict[tuple[object, ...], dict[str, int]] = {}


def _autocast_dtype(plan: Plan) -> torch.dtype | None:
    """The dtype of a single process under autocast. DeepSpeed casts the whole model instead."""
    autocast = plan.precision != "fp32" and not plan.needs_deepspeed(plan.world_sizes[0])
    return DTYPES[plan.precision] if autocast else None


def _count_training(plan: Plan, folder: Path, images: int) -> dict[str, int]:
    family, low = open_family(folder), _autocast_dtype(plan)
    live = live_text_encoders(family, plan)
    with torch.device("meta"), fused_attention():
        stage = _open(family, folder)
        trained = modules_in_training(family, plan)
        others = sum(_weight_bytes(module) for name, module in stage.modules.items() if name not in trained)
        batch = _meta_batch(stage, family.image_shapes(folder, plan.resolution), images, live)
        module = prepare_module(plan, family, stage)
        loaded, copies = _weight_bytes(module), _weight_bytes(module.preservation)
        if low is not None:
            cast_frozen_matrices(module, low)
        else:
            module.to(DTYPES[plan.precision])
        parameters = list(module.parameters())
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        autocast = None if low is None else MetaAutocast(low, gpu=plan.gpus_per_worker > 0)
        with contextlib.nullcontext() if autocast is None else autocast.enabled():
            activations, peak = _count_passes(module, batch, autocast)
        gradients = sum(p.grad.nbytes for p in trainable if p.grad is not None)
    # The bound is the last in the forward pass, so its gradients exist, not partitioned, until those of the loss do.
    bound = plan.spec.preservation == "Bound" and plan.needs_deepspeed(plan.world_sizes[0])
    held = sum(parameter.nbytes for parameter in trainable) if bound else 0
    count, element = sum(parameter.numel() for parameter in trainable), DTYPES[plan.precision].itemsize
    return {
        "trainable": count,
        "frozen": (sum(p.nbytes for p in parameters) - sum(p.nbytes for p in trainable)) // element,
        "loaded": loaded,
        "assembled": loaded - copies + others,
        "activations": activations + held,
        "backward": max(0, peak - gradients) + held,
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


def _meta_batch(
    stage: Stage, image_shapes: Mapping[str, tuple[int, ...]], images: int, live: Collection[str] = ()
) -> Batch:
    examples = {name: torch.zeros(images, *shape) for name, shape in image_shapes.items()}
    examples |= stage.encode_prompts([""] * images, live)
    noise = {name: torch.zeros(images, *shape) for name, shape in stage.noise_shapes(examples).items()}
    return Batch(examples, noise, torch.zeros(images), num_instance_images=max(1, images // 2))


@functools.cache
def _count_pipeline(
    folder: Path, resolution: int, sampling_batch: int, encoding_batch: int, dtype: torch.dtype
) -> dict[str, int]:
    """Bytes of the weights of the pipeline, and of generating and of encoding a batch of images, beyond the weights."""
    family = open_family(folder)
    with torch.device("meta"), torch.no_grad(), fused_attention():
        stage = _open(family, folder)
        modules: dict[str, Any] = stage.modules
        encoders = sum(_weight_bytes(module) for name, module in modules.items() if name != stage.denoiser)
        weights = {name: _pipeline_bytes(family, name, module, dtype) for name, module in modules.items()}
        for name, module in modules.items():
            if name not in family.image_encoders:  # the autoencoder is in fp32, which most autoencoders need
                nn.Module.to(module, dtype)
        shapes = family.image_shapes(folder, resolution)
        # Classifier-free guidance doubles the batch.
        batch = _meta_batch(stage, shapes, 2 * sampling_batch)
        with LiveBytes(modules[stage.denoiser].parameters()) as denoising:
            stage.denoise(modules, batch.examples, batch.noise, batch.u).errors()
        decoding, encoding = 0, 0
        if (vae := modules.get("vae")) is not None:  # pixels are not decoded
            with LiveBytes(vae.parameters()) as memory:
                vae.decode(torch.zeros(sampling_batch, *next(iter(shapes.values()))))
            decoding = memory.peak
            with LiveBytes(vae.parameters()) as memory:
                vae.encode(torch.zeros(encoding_batch, 3, resolution, resolution))
            encoding = memory.peak
    return {
        "pipeline": sum(weights.values()),
        "denoiser": weights[stage.denoiser],
        "encoders": encoders,
        "sampling": max(denoising.peak, decoding),
        "encoding": encoding,
    }


def _weight_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _pipeline_bytes(family: Family, name: str, module: Any, dtype: torch.dtype) -> int:
    """Bytes of a module of `Family.pipeline` in a dtype.

    Args:
        module: as `Family.open` opens it.
    """
    stored = next(module.parameters()).dtype
    frozen = name in family.text_encoders and name not in family.trainable_text_encoders
    if name in family.image_encoders and module.config.force_upcast:
        dtype = torch.float32
    elif frozen and stored == torch.bfloat16:
        dtype = stored
    return dtype.itemsize * sum(parameter.numel() for parameter in module.parameters())


def _open(family: Family, folder: Path) -> Stage:
    """A stage without weights, in the number formats in which the weights would be loaded.

    Raises:
        UserError: a configuration file is missing or not valid.
    """
    names = (family.denoiser, *family.text_encoders, *family.image_encoders)
    try:
        return family.open(folder, names, empty=True)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        rule = f"has a module whose configuration is not valid: {str(error).partition(chr(10))[0]}"
        remedy = "set the folder of a complete diffusers model"
        raise UserError(ValidationIssue("spec.model.id", str(folder), rule, remedy)) from error


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
