"""Generates images during training, with the current weights. They change neither weights nor losses.

The workers share the images of a step. Under ZeRO-3 each forward pass gathers the weights from all workers, so that all
of them generate every image and rank 0 writes it. The workers wait for each other after each image, not after all of
them: a collective operation must not wait longer than its timeout.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from dreambooth_trainer.families.base import Family, FineTunedScheduler
from dreambooth_trainer.families.registry import local_folder, open_family
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.sampling.pipeline import ImageRequest, LoadedPipeline, SamplingConfig, sample_batch
from dreambooth_trainer.sampling.validation_set import is_due, validation_requests
from dreambooth_trainer.store.validations import Validations
from dreambooth_trainer.training.engine import AUTOCAST, Engine

AnyRank = Callable[[tuple[bool, ...]], list[bool]]
"""Each flag, true if it is true on any rank. All ranks must call it."""


class Validator:
    """Writes the images of the steps that are due.

    Args:
        any_rank: agrees on flags with the other workers, and waits for them.
    """

    def __init__(
        self, plan: Plan, engine: Engine, store: Validations, rank: int, world_size: int, any_rank: AnyRank
    ) -> None:
        self._plan, self._engine, self._store, self._any_rank = plan, engine, store, any_rank
        partitioned = plan.needs_deepspeed(world_size) and plan.zero_stage == 3
        # Of the images that are missing, every how many this worker generates, and from which one.
        self._first, self._stride = (0, 1) if partitioned else (rank, world_size)
        self._writes = rank == 0 or not partitioned
        self._cast = not plan.needs_deepspeed(world_size)
        self._loaded: LoadedPipeline | None = None

    def due(self, step: int) -> bool:
        """Whether `run` has to be called after this step."""
        return is_due(self._plan, step)

    def run(self, step: int, stop_requested: Callable[[], bool]) -> bool:
        """Generate the images of a step that do not exist yet. All ranks must call this after the same step.

        Args:
            stop_requested: whether this worker will be stopped soon. Then the rest of the images is not generated.

        Returns:
            False if a worker will be stopped soon, the same on all ranks.
        """
        requests = validation_requests(self._plan)
        exists = [self._store.image(step, int(request.name)).exists() for request in requests]
        # On a network, one worker may see a file earlier than another.
        missing = self._any_rank(tuple(not found for found in exists))
        wanted = [request for request, needed in zip(requests, missing, strict=True) if needed]
        if not wanted:
            return True
        with self._sampling() as loaded:
            for first in range(0, len(wanted), self._stride):
                own = first + self._first
                if own < len(wanted):
                    self._write(loaded, step, wanted[own])
                if self._any_rank((stop_requested(),))[0]:
                    return False
        return True

    def _write(self, loaded: LoadedPipeline, step: int, request: ImageRequest) -> None:
        config = SamplingConfig(self._plan.sampler, self._plan.resolution, self._plan.precision, batch_size=1)
        (image,) = sample_batch(loaded, config, [request])
        if self._writes:
            self._store.put(step, int(request.name), image)

    @contextlib.contextmanager
    def _sampling(self) -> Iterator[LoadedPipeline]:
        """The pipeline with the live modules, on the device. Afterwards all is as before, also random generators."""
        module, device = self._engine.module, self._engine.device
        modes = [(one, one.training) for one in module.modules()]
        with torch.random.fork_rng(), torch.no_grad(), contextlib.ExitStack() as stack:
            stack.callback(_restore_modes, modes)
            module.eval()
            for live in module.trained.values():
                stack.enter_context(_eager(live))
                if self._cast and (dtype := AUTOCAST.get(self._plan.precision)) is not None:
                    stack.enter_context(_autocast(live, device.type, dtype))
            loaded = self._loaded = self._loaded or self._load()
            others = _others(loaded.pipeline, module)
            for other in others.values():
                nn.Module.to(other, device)
            self._embed(loaded)
            yield loaded
            # Between validations, training has the memory of the device.
            for other in others.values():
                nn.Module.to(other, "cpu")

    def _load(self) -> LoadedPipeline:
        """The pipeline of the base model, with the modules that are trained in place of those of the base model."""
        folder = local_folder(self._plan.model)
        family: Family = open_family(folder)
        live: dict[str, Any] = dict(self._engine.module.trained.items())
        pipeline: Any = family.pipeline(folder, AUTOCAST.get(self._plan.precision, torch.float32), **live)
        if self._plan.new_tokens:
            for slot in self._engine.module.stage.text:
                setattr(pipeline, slot.folder, slot.tokenizer)
        if isinstance(family, FineTunedScheduler):
            pipeline.scheduler = family.fine_tuned_scheduler(pipeline.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return LoadedPipeline(pipeline, family, pipeline.scheduler)

    def _embed(self, loaded: LoadedPipeline) -> None:
        """Encode all prompts. Text encoders that do not change are freed afterwards."""
        live = self._plan.live_text_encoders
        if live:
            loaded.embeddings.clear()
        if loaded.embeddings:
            return
        loaded.embed([request.prompt for request in validation_requests(self._plan)])
        if not live:
            for name in loaded.family.text_encoders:
                setattr(loaded.pipeline, name, None)
            gc.collect()


def _others(pipeline: Any, module: nn.Module) -> dict[str, nn.Module]:
    """The modules of a pipeline that are not trained."""
    trained = set(map(id, module.modules()))
    parts: dict[str, Any] = pipeline.components
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module) and id(part) not in trained}


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


@contextlib.contextmanager
def _eager(module: Any) -> Iterator[None]:
    """Run a compiled module without its compiled code, which would be compiled again for another batch size."""
    compiled = module._compiled_call_impl
    module._compiled_call_impl = None
    try:
        yield
    finally:
        module._compiled_call_impl = compiled


@contextlib.contextmanager
def _autocast(module: Any, device: str, dtype: torch.dtype) -> Iterator[None]:
    """Run the forward passes of a module under autocast, as training does; not those of the rest of a pipeline."""
    original = module.forward
    module.forward = torch.autocast(device, dtype)(original)
    try:
        yield
    finally:
        module.forward = original
