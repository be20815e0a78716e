"""The engine of a single training process: PyTorch without DeepSpeed, because there is nothing to partition.

Weights, gradients and optimizer state are fp32; with precision bf16 or fp16, the forward pass runs under autocast.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.batches import Batch
from dreambooth_trainer.training.checkpoint import WEIGHTS_FILE
from dreambooth_trainer.training.engine import AUTOCAST
from dreambooth_trainer.training.model import build_lr_scheduler, build_module, build_optimizer, seek
from dreambooth_trainer.training.snapshot import Snapshot, copy_to_host, write_snapshot
from dreambooth_trainer.training.universal import MOMENTS, STATE_FILE, TrainingState, load_state


class PlainEngine:
    """An `Engine` for world size 1."""

    def __init__(self, plan: Plan, checkpoint: Path | None, initial_adapter: Path | None = None) -> None:
        training = plan.spec.training
        self._accumulation, self._max_grad_norm = training.gradient_accumulation_steps, training.max_grad_norm
        self.device = torch.device("cuda" if plan.gpus_per_worker else "cpu")
        self._dtype = AUTOCAST.get(plan.precision)
        self.module = build_module(plan, initial_adapter)
        self._place(plan)
        self._parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self._optimizer = build_optimizer(plan, self.module)
        self._lr_scheduler = build_lr_scheduler(plan, self._optimizer)
        # fp16 has a small range: the loss is scaled so that gradients do not underflow. Disabled, it does nothing.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=plan.precision == "fp16")
        if checkpoint is not None:
            self._load(load_state(checkpoint))

    def _place(self, plan: Plan) -> None:
        """Move the model to its device, in the memory format and number formats that are fast there."""
        if self._dtype is not None:
            cast_frozen_matrices(self.module, self._dtype)
        self.module.to(self.device)
        if self.device.type == "cuda":
            self.module.denoiser.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            if plan.precision == "fp32":
                torch.set_float32_matmul_precision("high")  # TF32
            if plan.compiled:
                self.module.denoiser.compile()

    @property
    def learning_rate(self) -> float:
        return float(self._lr_scheduler.get_last_lr()[0])

    def step(self, micro_batches: Iterable[Batch]) -> Tensor:
        sums = torch.zeros(3, device=self.device)
        for batch in micro_batches:
            with torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
                losses = self.module(batch)
            self._scaler.scale(losses[0] / self._accumulation).backward()
            sums += losses.detach()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._parameters.values(), self._max_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        seek(self._lr_scheduler, self._lr_scheduler.last_epoch + 1)
        return sums

    def _state(self) -> dict[str, Any]:
        """The fields of a `TrainingState`."""
        weights = {name: parameter.detach() for name, parameter in self._parameters.items()}
        by_index: dict[int, Any] = self._optimizer.state_dict()["state"]
        optimizer = {name: by_index[index] for index, name in enumerate(weights) if index in by_index}
        step, scaler = self._lr_scheduler.last_epoch, self._scaler.state_dict()
        return vars(TrainingState(step, weights, optimizer, scaler))

    def save(self, folder: Path) -> None:
        write_snapshot({STATE_FILE: self._state()}, folder)

    def snapshot(self) -> Snapshot:
        return {STATE_FILE: copy_to_host(self._state())}

    def _load(self, saved: TrainingState) -> None:
        moments: dict[int, dict[str, Any]] = {}
        for index, (name, parameter) in enumerate(self._parameters.items()):
            parameter.data.copy_(saved.weights[name].view(parameter.shape))
            moments[index] = {
                key: value.view(parameter.shape) if key in MOMENTS else value
                for key, value in saved.optimizer.get(name, {}).items()
            }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if saved.scaler:
            self._scaler.load_state_dict(dict(saved.scaler))
        seek(self._lr_scheduler, saved.step)

    def save_weights(self, folder: Path, rank: int) -> None:
        del rank
        weights = {name: parameter.detach().cpu().contiguous() for name, parameter in self._parameters.items()}
        save_file(weights, folder / WEIGHTS_FILE)


def cast_frozen_matrices(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the frozen weights of linear and convolution layers, which autocast would cast at every step.

    Norms stay in fp32, because autocast computes them in fp32.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for parameter in layer.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)
