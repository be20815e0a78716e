"""Modes of prior preservation: the instance loss and the prior loss of a micro-batch.

Each mode is a module, so that engines place, cast and partition its copies of the base model's weights as they do with
the trained modules. The copies are frozen and made from the base model at each start; checkpoints do not contain them.
Legend: B instance images, and the same number of class examples, per micro-batch.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dreambooth_trainer.families.base import Prediction
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.batches import Batch
from dreambooth_trainer.training.distance import Distance, Norm, Offset

Modules: TypeAlias = "Mapping[str, nn.Module]"
Denoise: TypeAlias = Callable[[Modules, Batch], Prediction]
"""Predicts for the examples of a batch with some modules."""


class Preservation(nn.Module):
    """A mode. This base class has no prior loss: it is zero."""

    def losses(self, denoise: Denoise, trained: Modules, batch: Batch) -> tuple[Tensor, Tensor]:
        """Instance loss and prior loss of a micro-batch, scalars."""
        instance = denoise(trained, batch).errors()[: batch.num_instance_images].mean()
        return instance, torch.zeros_like(instance)

    def borrowed(self) -> Iterator[tuple[nn.Module, nn.Parameter]]:
        """Modules with trained weights of others that their forward pass uses."""
        yield from ()


class ClassImages(Preservation):
    """The loss of class images (paper, equation 2). The batch contains B of them."""

    def losses(self, denoise: Denoise, trained: Modules, batch: Batch) -> tuple[Tensor, Tensor]:
        errors = denoise(trained, batch).errors()
        return errors[: batch.num_instance_images].mean(), errors[batch.num_instance_images :].mean()


class BasePrediction(Preservation):
    """The difference from the base model's predictions for the same B noisy examples with the class prompt.

    The base model is the teacher, as in learning without forgetting (Li and Hoiem 2016).
    """

    def __init__(self, teacher: nn.ModuleDict | None) -> None:
        """Make the mode.

        Args:
            teacher: frozen copies of the trained modules; None if these are the base model's with adapters.
        """
        super().__init__()
        self.teacher = teacher

    def losses(self, denoise: Denoise, trained: Modules, batch: Batch) -> tuple[Tensor, Tensor]:
        count = batch.num_instance_images
        with torch.no_grad(), self._base_model(trained) as base:
            known = denoise(base, batch.rows(count, None)).output
        learned = denoise(trained, batch)
        kept = replace(learned.rows(count, None), target=known)
        return learned.rows(0, count).errors().mean(), kept.errors().mean()

    def _base_model(self, trained: Modules) -> AbstractContextManager[Modules]:
        if self.teacher is None:
            from dreambooth_trainer.methods.lora import without_adapters

            return without_adapters(trained)
        frozen: Any = self.teacher  # a mapping in all but name
        return contextlib.nullcontext(frozen)


class WeightBound(Preservation):
    """The squared distance of the weights from the base model's: the sum of the squared changes of all weights.

    As the L2-SP penalty (Li et al. 2018), without its factor 1/2. It does not depend on the batch.
    """

    def __init__(self, distances: Iterable[Distance]) -> None:
        super().__init__()
        self.distances = nn.ModuleList(distances)

    def losses(self, denoise: Denoise, trained: Modules, batch: Batch) -> tuple[Tensor, Tensor]:
        instance = denoise(trained, batch).errors()[: batch.num_instance_images].mean()
        # ZeRO-3 frees the weights of a module in the backward pass when its inputs have gradients.
        distance = torch.zeros((), device=instance.device, requires_grad=True)
        for part in self.distances:
            distance = part(distance)
        return instance, distance

    def borrowed(self) -> Iterator[tuple[nn.Module, nn.Parameter]]:
        for part in self.distances:
            assert isinstance(part, Distance)
            yield from ((part, weight) for weight in part.weights)


def frozen_copies(plan: Plan, modules: Modules) -> nn.ModuleDict | None:
    """Copies of the base model's modules for `open_preservation`, to be made before a method prepares them."""
    if plan.spec.preservation != "Prediction" or not plan.spec.training.traits.weights:
        return None
    return nn.ModuleDict({name: copy.deepcopy(module).requires_grad_(False) for name, module in modules.items()})


def open_preservation(plan: Plan, modules: Modules, copies: nn.ModuleDict | None) -> Preservation:
    """The mode of a plan.

    Args:
        modules: that a method has prepared, with the base model's weights.
        copies: result of `frozen_copies`.
    """
    match plan.spec.preservation:
        case "Images":
            return ClassImages()
        case "Prediction":
            return BasePrediction(copies)
        case "Bound" if plan.spec.training.traits.weights:
            return WeightBound(Offset(p) for module in modules.values() for p in module.parameters() if p.requires_grad)
        case "Bound":
            # PEFT, which only adapters need, takes each process seconds to import.
            from dreambooth_trainer.methods.lora import magnitudes, products

            parts = [
                [*(Norm(*product) for product in products(module)), *map(Offset, magnitudes(module))]
                for module in modules.values()
            ]
            return WeightBound(part for own in parts for part in own)
        case "None":
            return Preservation()
