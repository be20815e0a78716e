"""Trains a HyperNetwork on adapters, and measures it on a tenth of them that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from dreambooth_trainer.hypernetwork.files import NetworkConfig, write_network
from dreambooth_trainer.hypernetwork.jobs import Examples
from dreambooth_trainer.hypernetwork.network import AdapterNetwork, constant_error, relative_error
from dreambooth_trainer.sprites.training import make_optimizer, progress, step_generator
from dreambooth_trainer.store.folder import atomic_directory

BATCH, RATE, MAX_NORM = 16, 1e-3, 1.0


@dataclass(frozen=True)
class Measured:
    """Mean relative errors on the jobs that were held out.

    Attributes:
        jobs: number of jobs that were held out.
        network: error of the network.
        mean: error of the mean adapter, the same prediction for all subjects.
    """

    jobs: int
    network: float
    mean: float

    def __str__(self) -> str:
        ratio = self.network / self.mean
        held = f"{self.jobs} held-out job(s)"
        return f"relative error on {held}: {self.network:.4f}, mean adapter {self.mean:.4f}, ratio {ratio:.3f}"


def train_network(
    examples: Examples, config: NetworkConfig, out: Path, *, steps: int, seed: int, console: Console
) -> Measured | None:
    """Train a network and write it to `out`.

    Returns:
        Its error on the tenth of the jobs that is held out; None with fewer than ten jobs, of which none is.
    """
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    held, known = (examples.select(rows) for rows in order.split([len(order) // 10, len(order) - len(order) // 10]))
    network = _trained(known, config, steps, seed, console)
    with atomic_directory(out) as draft:
        write_network(draft, config.model_copy(update={"jobs": len(known)}), network.state_dict())
    if not len(held):
        return None
    with torch.no_grad():
        error = relative_error(network(held.means()), held.adapters)
    return Measured(len(held), error.mean().item(), constant_error(known.adapters, held.adapters).mean().item())


def _trained(known: Examples, config: NetworkConfig, steps: int, seed: int, console: Console) -> AdapterNetwork:
    torch.manual_seed(seed)
    network = AdapterNetwork(config.features, config.layers)
    network.start_from(known.adapters, known.means())
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer, schedule = make_optimizer(parameters, RATE, steps)
    with progress("hypernetwork", 0, steps, console) as report:
        for step in range(1, steps + 1):
            generator = step_generator(seed, step)
            batch = known.select(torch.randperm(len(known), generator=generator)[:BATCH])
            features = torch.stack([_some(one, generator) for one in batch.features])
            loss = relative_error(network(features), batch.adapters).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimizer.step()
            schedule.step()
            report(step, f"relative error {loss.item():.4f}")
    return network


def _some(features: Tensor, generator: torch.Generator) -> Tensor:
    """The mean over a random choice of a subject's images, [images, D] -> [D], so that the network sees variations."""
    count = 1 + int(torch.randint(len(features), (), generator=generator))
    return features[torch.randperm(len(features), generator=generator)[:count]].mean(0)


def summary(measured: Measured | None, jobs: int) -> Sequence[str]:
    """Lines for the user after a training on a number of jobs."""
    if measured is None:
        return (f"trained on {jobs} job(s); at least 10 are required to hold out a tenth and measure the error",)
    return (f"trained on {jobs - measured.jobs} jobs", str(measured))
