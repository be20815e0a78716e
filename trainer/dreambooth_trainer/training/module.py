"""The trained modules and the loss in one `nn.Module`, so that one DeepSpeed engine shards all parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_trainer.families.base import Family, Prediction, Stage, Tensors, modules_in_training
from dreambooth_trainer.methods.base import Learner
from dreambooth_trainer.methods.registry import open_method
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.batches import Batch, BatchSample, DeterministicSampler, noise
from dreambooth_trainer.training.cache import EncodedImages, TrainingData
from dreambooth_trainer.training.preservation import Preservation, frozen_copies, open_preservation


class DreamBoothModule(nn.Module):
    """The modules of a learner, and the DreamBooth loss.

    Attributes:
        groups: the trainable parameters with their learning rates.
    """

    def __init__(
        self,
        stage: Stage,
        learner: Learner,
        preservation: Preservation,
        prior_loss_weight: float,
        min_snr_gamma: float | None = None,
    ) -> None:
        super().__init__()
        self.stage, self.trained, self.groups = stage, nn.ModuleDict(learner.modules), learner.groups
        self.preservation = preservation
        self.prior_loss_weight, self.min_snr_gamma = prior_loss_weight, min_snr_gamma

    @property
    def denoiser(self) -> nn.Module:
        return self.trained[self.stage.denoiser]

    def forward(self, batch: Batch) -> Tensor:
        """Losses of a micro-batch, [3]: total, instance, prior.

        total = instance + weight x prior (paper, equation 2). Errors of predictions have min-SNR weights if set. The
        prior loss is that of the strategy of preservation. The result is one tensor, because ZeRO-3
        registers hooks on returned tensors and does not support dataclasses.
        """
        trained: Any = self.trained  # a mapping in all but name
        instance, prior = self.preservation.losses(self._denoise, trained, batch)
        return torch.stack([instance + self.prior_loss_weight * prior, instance, prior])

    def _denoise(self, modules: Mapping[str, nn.Module], batch: Batch) -> Prediction:
        return self.stage.denoise(modules, batch.examples, batch.noise, batch.u, self.min_snr_gamma)


def prepare_module(plan: Plan, family: Family, stage: Stage) -> DreamBoothModule:
    """Prepare the modules that a plan trains with its fine-tuning method.

    Args:
        stage: with the denoiser, and the text encoders that are trained. Other modules are dropped.
    """
    names = modules_in_training(family, plan)
    stage.modules = {name: stage.modules[name].train() for name in names}
    copies = frozen_copies(plan, stage.modules)
    learner = open_method(plan.spec.training.method).prepare(stage, plan, family.lora_target_modules())
    for name in names:
        module: Any = learner.modules[name]
        set_training_dtypes(module, plan.precision)
        if copies is not None:
            set_training_dtypes(copies[name], plan.precision)
        if plan.spec.training.gradient_checkpointing and name == family.denoiser:
            module.enable_gradient_checkpointing()
        elif plan.spec.training.gradient_checkpointing:
            module.gradient_checkpointing_enable()  # text encoders are models of transformers
    preservation, weight = open_preservation(plan, learner.modules, copies), plan.spec.prior_loss_weight or 0.0
    return DreamBoothModule(stage, learner, preservation, weight, plan.spec.training.min_snr_gamma)


def set_training_dtypes(module: nn.Module, precision: str) -> None:
    """Cast trainable weights to fp32, and frozen ones too unless the module is stored and trained in bf16."""
    for parameter in module.parameters():
        if parameter.requires_grad or precision != "bf16":
            parameter.data = parameter.data.float()


def make_batch(
    stage: Stage,
    data: TrainingData,
    samplers: tuple[DeterministicSampler, DeterministicSampler | None],
    step: int,
    micro_batch: int,
    num_micro_batches: int,
) -> Batch:
    """Assemble one micro-batch of an optimizer step, on the device of the data.

    Noise is generated on the CPU: the generators of GPUs give other numbers.

    Args:
        samplers: of the instance images, and of the class images.
        micro_batch: index in [0, num_micro_batches).
    """
    samples = [
        (encoded, sampler.sample(step, micro_batch, num_micro_batches))
        for encoded, sampler in zip((data.instance_images, data.class_images), samplers, strict=True)
        if encoded is not None and sampler is not None
    ]
    return assemble_batch(stage, samples)


def assemble_batch(stage: Stage, samples: Sequence[tuple[EncodedImages, BatchSample]]) -> Batch:
    """A micro-batch of the instance images that were sampled, and of the class examples if there are any."""
    examples, noises, u = list[Tensors](), list[Tensors](), list[Tensor]()
    for encoded, sample in samples:
        device = encoded.prompt_indices.device
        rows = encoded.examples(_to_device(sample.indices, device))
        random = noise(sample.noise_seeds, stage.noise_shapes(rows))
        examples.append(rows)
        noises.append({name: _to_device(tensor, device) for name, tensor in random.items()})
        u.append(_to_device(sample.u, device))
    return Batch(_cat(examples), _cat(noises), torch.cat(u), num_instance_images=len(u[0]))


def _cat(parts: list[Tensors]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    # A copy from pageable memory would wait for the GPU.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
