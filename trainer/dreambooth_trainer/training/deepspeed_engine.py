"""The engine of several training processes: DeepSpeed ZeRO partitions optimizer state, gradients and weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.batches import Batch
from dreambooth_trainer.training.checkpoint import TAG, convert_to_universal, read_metadata, save_trained_weights
from dreambooth_trainer.training.deepspeed_config import deepspeed_config
from dreambooth_trainer.training.model import build_lr_scheduler, build_module, build_optimizer, seek
from dreambooth_trainer.training.only_weights import only_weights
from dreambooth_trainer.training.snapshot import Snapshot, deepspeed_snapshot
from dreambooth_trainer.training.universal import EXCHANGE, STATE_FILE, UNIVERSAL, write_exchange

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class ZeroEngine:
    """An `Engine` for any world size."""

    def __init__(
        self, plan: Plan, world_size: int, checkpoint: Path | None, initial_adapter: Path | None = None
    ) -> None:
        self._plan = plan
        self.module = build_module(plan, initial_adapter)
        optimizer = build_optimizer(plan, self.module)
        self._lr_scheduler = build_lr_scheduler(plan, optimizer)
        self._engine = self._initialize(optimizer, world_size, checkpoint)
        self.device = cast("torch.device", self._engine.device)

    def _initialize(self, optimizer: Optimizer, world_size: int, checkpoint: Path | None) -> DeepSpeedEngine:
        import deepspeed
        from deepspeed.ops import __compatible_ops__

        from dreambooth_trainer.training.master_weights import set_master_weights

        # gloo suffices on CPUs; compiling DeepSpeed's shared-memory op on first use would take half a minute.
        __compatible_ops__["deepspeed_shm_comm"] = False
        trainable = [p for p in self.module.parameters() if p.requires_grad]
        # References, not copies: DeepSpeed's cast replaces the tensors. A checkpoint contains the master weights.
        originals = {p: p.data for p in trainable} if checkpoint is None else {}
        universal = checkpoint is not None and not (
            self._has_same_format(checkpoint) and read_metadata(checkpoint).world_size == world_size
        )
        count = sum(p.numel() for p in trainable)
        config = deepspeed_config(self._plan, world_size=world_size, trainable=count, universal=universal)
        scheduler: Any = self._lr_scheduler  # DeepSpeed's annotation names a base class that torch renamed
        engine, *_ = deepspeed.initialize(model=self.module, optimizer=optimizer, lr_scheduler=scheduler, config=config)
        set_master_weights(originals)
        if self._plan.zero_stage == 3:
            for module, weight in (*self.module.preservation.borrowed(), *_position_weights(self.module)):
                deepspeed.zero.register_external_parameter(module, weight)
        if checkpoint is not None:
            self._load(engine, checkpoint, universal=universal)
        return engine

    def _has_same_format(self, checkpoint: Path) -> bool:
        """Whether DeepSpeed saved the checkpoint, at the same ZeRO stage."""
        return read_metadata(checkpoint).zero_stage == self._plan.zero_stage and not (checkpoint / STATE_FILE).exists()

    def _load(self, engine: DeepSpeedEngine, checkpoint: Path, *, universal: bool) -> None:
        step, tag = read_metadata(checkpoint).step, TAG
        if universal and self._has_same_format(checkpoint):
            convert_to_universal(checkpoint)
            tag = UNIVERSAL
        elif universal:
            seek(self._lr_scheduler, step)
            groups = [{**group, "params": []} for group in self._lr_scheduler.optimizer.param_groups]
            write_exchange(checkpoint, self._lr_scheduler.state_dict(), groups)
            tag = EXCHANGE
        # Checkpoints do not contain frozen weights.
        strict = all(p.requires_grad for p in self.module.parameters())
        with only_weights():
            engine.load_checkpoint(str(checkpoint), tag=tag, load_module_strict=strict)
        # ZeRO-3 loads the learning rate and the step counter of the first group into all groups, as one object.
        seek(self._lr_scheduler, step)
        for parameter, state in self._lr_scheduler.optimizer.state.items():
            state["step"] = torch.tensor(float(state["step"]), device=parameter.device)

    @property
    def learning_rate(self) -> float:
        return float(self._lr_scheduler.get_last_lr()[0])

    def step(self, micro_batches: Iterable[Batch]) -> Tensor:
        sums = torch.zeros(3, device=self.device)
        for batch in micro_batches:
            losses = self._engine(batch)
            self._engine.backward(losses[0])
            self._engine.step()
            sums += losses.detach()
        return sums

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag=TAG, client_state={}, exclude_frozen_parameters=True)

    def snapshot(self) -> Snapshot:
        return deepspeed_snapshot(self._engine)

    def save_weights(self, folder: Path, rank: int) -> None:
        save_trained_weights(self.module, folder, rank)


def _position_weights(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """Modules that read the size of their position embeddings, as those of CLIP do, and these.

    DeepSpeed gathers the weights of a module when it is called, and learns which others it reads in the first step of
    the training. Validation calls the modules before.
    """
    for part in module.modules():
        positions = getattr(part, "position_embedding", None)
        if isinstance(positions, nn.Embedding):
            assert isinstance(positions.weight, nn.Parameter)
            yield part, positions.weight
