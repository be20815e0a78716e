"""The denoising loss of jobs with predicted adapters: that of a training step, with its adapter replaced.

The prior loss is that of mode Prediction: class examples are to be predicted as by the base model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from dreambooth_trainer.cluster.hardware import work_device
from dreambooth_trainer.families.registry import local_folder
from dreambooth_trainer.hypernetwork.files import LayerShape
from dreambooth_trainer.methods.lora import named_products
from dreambooth_trainer.planning.model_facts import is_flow_matching
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.batches import BatchSample
from dreambooth_trainer.training.cache import EncodedImages, TrainingData
from dreambooth_trainer.training.model import build_module
from dreambooth_trainer.training.module import assemble_batch
from dreambooth_trainer.training.preservation import BasePrediction, Preservation

MIN_SNR_GAMMA = 1.0
"""Most of the unweighted loss is at low noise levels, where the noisy image itself shows the subject."""


class Denoising:
    """Computes the loss for jobs with the same base model and settings of adapters.

    Args:
        plan: of one of the jobs.
        data: returns the encoded images of each job, on a device.
    """

    def __init__(
        self, plan: Plan, layers: Mapping[str, LayerShape], data: Sequence[Callable[[str], TrainingData]]
    ) -> None:
        self._device = work_device()
        torch.manual_seed(plan.spec.training.seed)
        self._module = build_module(plan).requires_grad_(False).to(self._device)
        denoiser: Any = self._module.denoiser
        # The backward pass would compute activations again when `functional_call` has put the own weights back.
        denoiser.disable_gradient_checkpointing()
        self._module.min_snr_gamma = None if is_flow_matching(local_folder(plan.model)) else MIN_SNR_GAMMA
        self._layers, self._data = layers, data

    def initial_adapter(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The adapter that a job starts from: a random A [r, i] and a B [o, r] of zeros for each layer."""
        return {
            name: (down.detach().flatten(1).cpu(), up.detach().flatten(1).cpu())
            for name, down, up, _ in named_products(self._module.denoiser)
        }

    def losses(
        self,
        job: int,
        adapter: Mapping[str, tuple[Tensor, Tensor]],
        images: Tensor,
        generator: torch.Generator,
        *,
        prior: bool = False,
    ) -> Tensor:
        """Instance loss and prior loss of a micro-batch, [2].

        Args:
            adapter: A [r, i] and B [o, r] of each layer.
            images: indices of instance images, [B].
            generator: draws variants of images, class examples, noise and positions in the noise schedule.
            prior: draw B class examples too, if the job has any. Otherwise the prior loss is zero.
        """
        data, stage = self._data[job](self._device), self._module.stage
        samples = [(data.instance_images, _sample(_variants(data.instance_images, images, generator), generator))]
        self._module.preservation = Preservation()
        if prior and (examples := data.class_images) is not None:
            chosen = torch.randint(len(examples.prompt_indices), (len(images),), generator=generator)
            samples.append((examples, _sample(chosen, generator)))
            self._module.preservation = BasePrediction(None)
        weights: dict[str, Tensor] = {}
        for name, (down, up) in adapter.items():
            layer, shape = f"trained.{stage.denoiser}.{name}", self._layers[name]
            weights[f"{layer}.lora_A.default.weight"] = down.reshape(shape.down).to(self._device)
            weights[f"{layer}.lora_B.default.weight"] = up.reshape(shape.up).to(self._device)
        return functional_call(self._module, weights, (assemble_batch(stage, samples),))[1:].cpu()


def _variants(encoded: EncodedImages, images: Tensor, generator: torch.Generator) -> Tensor:
    """Indices of random variants of images. Jobs with augmentation have several of each image."""
    count = len(encoded.prompt_indices) // len(encoded.weights)
    return images * count + torch.randint(count, images.shape, generator=generator)


def _sample(indices: Tensor, generator: torch.Generator) -> BatchSample:
    u = torch.rand(len(indices), generator=generator)
    return BatchSample(indices, u, torch.randint(0, 2**62, (len(indices),), generator=generator))
