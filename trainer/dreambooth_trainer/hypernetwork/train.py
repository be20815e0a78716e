"""Trains a HyperNetwork on finished jobs, and measures it on a tenth of them that it was not trained on.

As in HyperDreamBooth, the loss is the sum of the distance from the adapters of the jobs and of the
denoising loss of their images with the predicted adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from torch import Tensor

from dreambooth_trainer.hypernetwork.denoising import Denoising
from dreambooth_trainer.hypernetwork.files import NetworkConfig, write_network
from dreambooth_trainer.hypernetwork.jobs import Examples
from dreambooth_trainer.hypernetwork.network import AdapterNetwork, Adapters, constant_error, relative_error
from dreambooth_trainer.sprites.training import make_optimizer, progress, step_generator
from dreambooth_trainer.store.folder import atomic_directory

BATCH, RATE, MAX_NORM = 16, 1e-3, 1.0
DENOISING_WEIGHT = 100.0
"""Denoising losses are about 0.1, and differ by some hundredths. Was not tuned."""
MEASURED_STEPS = 8
"""Micro-batches of each held-out job in its denoising loss."""
_MEASURE_SEED = 1 << 20  # training uses smaller ones


@dataclass(frozen=True)
class Measured:
    """Means over the jobs that were held out.

    Attributes:
        jobs: number of jobs that were held out.
        network: relative error of the network.
        mean: relative error of the best constant, the same prediction for all subjects.
        denoising: denoising losses of the base model, and with the mean adapter, the predicted one and the job's own.
    """

    jobs: int
    network: float
    mean: float
    denoising: Mapping[str, float]

    def lines(self) -> Sequence[str]:
        """For the user."""
        ratio = self.network / self.mean
        held = f"{self.jobs} held-out job(s)"
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in self.denoising.items())
        return (
            f"relative error on {held}: {self.network:.4f}, mean adapter {self.mean:.4f}, ratio {ratio:.3f}",
            f"denoising loss on {held}: {losses}",
        )


def train_network(
    examples: Examples,
    denoising: Denoising,
    config: NetworkConfig,
    out: Path,
    *,
    steps: int,
    seed: int,
    console: Console,
) -> Measured | None:
    """Train a network and write it to `out`.

    Args:
        denoising: of the jobs in the order of `examples`.

    Returns:
        Its errors on the tenth of the jobs that is held out; None with fewer than ten jobs, of which none is.
    """
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    held, known = order.split([len(order) // 10, len(order) - len(order) // 10])
    network = _trained(examples, known, denoising, config, steps, seed, console)
    with atomic_directory(out) as draft:
        write_network(draft, config.model_copy(update={"jobs": len(known)}), network.state_dict())
    return _measure(network, examples, held, known, denoising) if len(held) else None


def _trained(
    examples: Examples,
    known: Tensor,
    denoising: Denoising,
    config: NetworkConfig,
    steps: int,
    seed: int,
    console: Console,
) -> AdapterNetwork:
    torch.manual_seed(seed)
    network = AdapterNetwork(config.features, config.layers)
    jobs = examples.select(known)
    network.start_from(jobs.adapters, jobs.means())
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer, schedule = make_optimizer(parameters, RATE, steps)
    with progress("hypernetwork", 0, steps, console) as report:
        for step in range(1, steps + 1):
            generator = step_generator(seed, step)
            rows = torch.randperm(len(known), generator=generator)[:BATCH]
            batch = jobs.select(rows)
            predicted = network(torch.stack([_some(one, generator) for one in batch.features]))
            error = relative_error(predicted, batch.adapters).mean()
            denoised = denoising.loss(int(known[rows[0]]), _one(predicted, 0), step, seed)
            optimizer.zero_grad()
            (error + DENOISING_WEIGHT * denoised).backward()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimizer.step()
            schedule.step()
            report(step, f"relative error {error.item():.4f} denoising loss {denoised.item():.4f}")
    return network


@torch.no_grad()
def _measure(
    network: AdapterNetwork, examples: Examples, held: Tensor, known: Tensor, denoising: Denoising
) -> Measured:
    own, jobs = examples.select(held), examples.select(known)
    predicted = network(own.means())
    mean = {name: (down.mean(0)[None], up.mean(0)[None]) for name, (down, up) in jobs.adapters.items()}
    none = {name: (down, torch.zeros_like(up)) for name, (down, up) in mean.items()}
    losses: dict[str, float] = {}
    for name, adapters in {"base model": none, "mean adapter": mean}.items():
        losses[name] = _denoising_loss(denoising, held, [_one(adapters, 0)] * len(held))
    for name, adapters in {"predicted adapter": predicted, "own adapter": own.adapters}.items():
        losses[name] = _denoising_loss(denoising, held, [_one(adapters, index) for index in range(len(held))])
    error = relative_error(predicted, own.adapters).mean().item()
    return Measured(len(held), error, constant_error(jobs.adapters, own.adapters).mean().item(), losses)


def _denoising_loss(
    denoising: Denoising, held: Tensor, adapters: Sequence[Mapping[str, tuple[Tensor, Tensor]]]
) -> float:
    return fmean(
        denoising.loss(int(job), adapter, step, _MEASURE_SEED).item()
        for job, adapter in zip(held, adapters, strict=True)
        for step in range(MEASURED_STEPS)
    )


def _one(adapters: Adapters, row: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The adapter of one subject: A [r, i] and B [o, r] of each layer."""
    return {name: (down[row], up[row]) for name, (down, up) in adapters.items()}


def _some(features: Tensor, generator: torch.Generator) -> Tensor:
    """The mean over a random choice of a subject's images, [images, D] -> [D], so that the network sees variations."""
    count = 1 + int(torch.randint(len(features), (), generator=generator))
    return features[torch.randperm(len(features), generator=generator)[:count]].mean(0)


def summary(measured: Measured | None, jobs: int) -> Sequence[str]:
    """Lines for the user after a training on a number of jobs."""
    if measured is None:
        return (f"trained on {jobs} job(s); at least 10 are required to hold out a tenth and measure the error",)
    return (f"trained on {jobs - measured.jobs} jobs", *measured.lines())
