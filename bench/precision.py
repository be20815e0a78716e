"""Which number formats keep the updates of full fine-tuning: `python bench/precision.py`.

Fine-tunes the built-in base model with fp32, with fp32 weights under bf16 autocast, with bf16 weights and fp32 master
weights, and with bf16 weights and stochastic rounding, from the same noise and timesteps. Prints for each recipe:

- seen: the share of the update that the weights of the forward pass contain (regression of their change on the update
  of the stored weights; 1 is best).
- error: distance of the final weights from those of fp32, relative to the length of the fp32 update.
- loss: the loss in fp32 on noise that training does not use, before and after.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import click
import torch
from PIL import Image
from torch import Tensor, nn

from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.methods.base import Learner
from dreambooth_trainer.sprites import WEIGHTS
from dreambooth_trainer.sprites.examples import example_images
from dreambooth_trainer.training.batches import Batch, DeterministicSampler
from dreambooth_trainer.training.cache import EncodedImages, TrainingData
from dreambooth_trainer.training.module import DreamBoothModule, make_batch
from dreambooth_trainer.training.preservation import ClassImages

BATCH_SIZE = 4
RECIPES = ("fp32", "fp32 weights, autocast", "bf16 weights, fp32 masters", "bf16 weights, stochastic rounding")


def stochastic_bf16(values: Tensor) -> Tensor:
    """Round to one of the two neighbors in bf16, with probabilities that keep the mean."""
    bits = values.view(torch.int32) + torch.randint(0, 2**16, values.shape, dtype=torch.int32)
    return (bits & -(2**16)).view(torch.float32).bfloat16()


def load_data() -> tuple[DreamBoothModule, TrainingData]:
    """The built-in model with two built-in subjects: one as the subject, one in place of class images."""
    stage = open_family(WEIGHTS).open(WEIGHTS, ("unet", "text_encoder", "vae"))
    kinds: list[EncodedImages] = []
    for subject, prompt in (("dog-pink-blue", "a sks dog"), ("dog-teal-magenta", "a dog")):
        images = [Image.fromarray(image) for image in example_images(subject)]
        ranges, prompts = torch.tensor([[0, len(images)]]), torch.zeros(len(images), dtype=torch.long)
        encoded, weights = stage.encode_images(images), torch.ones_like(prompts)
        kinds.append(EncodedImages(encoded, stage.encode_prompts([prompt]), ranges, prompts, weights))
    learner = Learner({"unet": stage.modules["unet"]}, [])  # the optimizers are made here
    return DreamBoothModule(stage, learner, ClassImages(), 1.0), TrainingData(*kinds)


def batches(module: DreamBoothModule, data: TrainingData, seed: int) -> Callable[[int], Batch]:
    assert data.class_images is not None
    first, second = (
        DeterministicSampler(kind.indices, BATCH_SIZE, seed + index)
        for index, kind in enumerate((data.instance_images, data.class_images))
    )
    return lambda step: make_batch(module.stage, data, (first, second), step, 0, 1)


def train(recipe: str, module: nn.Module, batch: Callable[[int], Batch], steps: int, rate: float) -> list[Tensor]:
    """Train `module` in place; returns the stored weights, fp32 where the recipe has them."""
    forward = [p for p in module.parameters() if p.requires_grad]
    stored = forward
    if recipe.startswith("bf16"):
        stored = [nn.Parameter(p.detach().clone()) for p in forward]
        module.bfloat16()
    optimizer = torch.optim.AdamW(stored, lr=rate, fused=True)
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in recipe):
            loss = module(batch(step))[0]
        loss.backward()
        if stored is not forward:
            for master, weight in zip(stored, forward, strict=True):
                assert weight.grad is not None
                master.grad, weight.grad = weight.grad.float(), None
        nn.utils.clip_grad_norm_(stored, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if stored is not forward:
            for master, weight in zip(stored, forward, strict=True):
                rounded = stochastic_bf16(master.data) if "stochastic" in recipe else master.data.bfloat16()
                weight.data.copy_(rounded)
                if "stochastic" in recipe:  # without master weights
                    master.data.copy_(rounded)
    return [p.detach() for p in stored]


def seen(recipe: str, start: list[Tensor], end: list[Tensor], exact_end: list[Tensor]) -> float:
    """The share of the update that is in the weights of the forward pass."""
    matrices = [index for index, weight in enumerate(start) if weight.ndim > 1 or recipe.startswith("bf16")]
    change, update = [], []
    for index in range(len(start)):
        low = index in matrices and recipe != "fp32"
        before, after = (w[index].bfloat16().float() if low else w[index] for w in (start, end))
        reference = exact_end if "stochastic" in recipe else end
        change.append((after - before).flatten())
        update.append((reference[index] - start[index]).flatten())
    all_changes, all_updates = torch.cat(change), torch.cat(update)
    return float(all_changes @ all_updates / (all_updates @ all_updates))


@click.command(help=__doc__)
@click.option("--steps", default=200, show_default=True)
@click.option("--learning-rate", default=5e-6, show_default=True)
@click.option("--on-grid", is_flag=True, help="Round the base model to bf16 first.")
def main(steps: int, learning_rate: float, on_grid: bool) -> None:
    torch.manual_seed(0)
    base, data = load_data()
    if on_grid:
        base.bfloat16().float()
    start = [p.detach().clone() for p in base.parameters()]
    held_out = [batches(base, data, seed=1000)(step) for step in range(32)]

    def loss(weights: list[Tensor]) -> float:
        probe = copy.deepcopy(base).requires_grad_(False)
        for parameter, weight in zip(probe.parameters(), weights, strict=True):
            parameter.copy_(weight)
        return sum(float(probe(batch)[0]) for batch in held_out) / len(held_out)

    before, exact = loss(start), list[Tensor]()
    for recipe in RECIPES:
        end = [p.float() for p in train(recipe, copy.deepcopy(base), batches(base, data, seed=0), steps, learning_rate)]
        exact = exact or end
        length = sum(float((a - b).square().sum()) for a, b in zip(exact, start, strict=True)) ** 0.5
        error = sum(float((a - b).square().sum()) for a, b in zip(end, exact, strict=True)) ** 0.5 / length
        share = seen(recipe, start, end, exact)
        print(f"{recipe:36} seen {share:6.1%}  error {error:6.1%}  loss {before:.4f} -> {loss(end):.4f}", flush=True)


if __name__ == "__main__":
    main()
