"""Trains a HyperNetwork on the images of finished jobs, and measures it on jobs that it was not trained on.

Each step predicts the adapters of some jobs from a part of their images, and takes the denoising loss of other images
of the same jobs, so that what belongs to one image does not help. HyperDreamBooth also compares the prediction with the
weights of trained jobs. Here this was left out: adapters of different subjects were measured to be nearly
orthogonal.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from torch import Tensor

from dreambooth_trainer.hypernetwork import MAX_SEED
from dreambooth_trainer.hypernetwork.denoising import Denoising
from dreambooth_trainer.hypernetwork.files import NetworkConfig, write_network
from dreambooth_trainer.hypernetwork.network import AdapterNetwork, Adapters
from dreambooth_trainer.sprites.training import Checkpoint, make_optimizer, step_generator, train
from dreambooth_trainer.store.folder import atomic_directory

RATE = 1e-3
JOBS_PER_STEP, IMAGES_PER_JOB = 4, 4
PRIOR_JOBS_PER_STEP, PRIOR_LOSS_WEIGHT = 1, 0.25
"""Of the jobs of a step, those with a prior loss, which takes longer than the instance loss; and its weight."""
MAX_HELD_SUBJECTS = 50
MEASURED_STEPS = 8
"""Micro-batches of each held-out job in its denoising loss."""
_MEASURE_SEED = MAX_SEED + 1


@dataclass(frozen=True)
class Example:
    """A job that a network is trained on.

    Attributes:
        features: of its images, [images, D].
        subject: the same for jobs with the same subject, which are held out together.
        digest: of what the job trains on.
    """

    features: Tensor
    subject: str
    digest: str


@dataclass(frozen=True)
class Measured:
    """Means over the jobs that were held out.

    Attributes:
        jobs: number of jobs that were held out.
        losses: denoising losses of the base model, and with the adapter that the network predicts for the mean
            features of the jobs that it was trained on, and for the job's own.
    """

    jobs: int
    losses: Mapping[str, float]

    def line(self) -> str:
        """For the user."""
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in self.losses.items())
        return f"denoising loss on {self.jobs} held-out job(s): {losses}"


def train_network(
    examples: Sequence[Example],
    denoising: Denoising,
    config: NetworkConfig,
    out: Path,
    *,
    steps: int,
    seed: int,
    work: Path,
    console: Console,
) -> Measured | None:
    """Train a network and write it to `out`.

    Args:
        denoising: of the same jobs.
        work: folder for the state. An interrupted training with the same arguments continues from it.

    Returns:
        Losses of the jobs of a tenth of the subjects, at most `MAX_HELD_SUBJECTS`, which are held out; None with fewer
        than ten subjects, of which none is.
    """
    held, known = _divide(examples, seed)
    features = [one.features for one in examples]
    torch.manual_seed(seed)
    network = AdapterNetwork(config.features, config.layers)
    network.start_from(denoising.initial_adapter(), torch.cat([features[job] for job in known]))
    optimizer, schedule = make_optimizer([one for one in network.parameters() if one.requires_grad], RATE, steps)
    work.mkdir(parents=True, exist_ok=True)
    state = work / f"network-{_digest(examples, config, steps, seed)}.ckpt"
    checkpoint = Checkpoint(state, network=network, optimizer=optimizer, schedule=schedule)
    loss_of = _training_loss(network, features, known, denoising)
    train("hypernetwork", checkpoint, (optimizer, schedule), steps, seed, console, loss_of)
    with atomic_directory(out) as draft:
        write_network(draft, config.model_copy(update={"jobs": len(known)}), network.state_dict())
    return _measure(network, features, held, denoising) if held else None


def _divide(examples: Sequence[Example], seed: int) -> tuple[list[int], list[int]]:
    """Indices of the jobs that are held out, and of the others."""
    subjects = sorted({one.subject for one in examples})
    order = torch.randperm(len(subjects), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {subjects[index] for index in order[: min(len(subjects) // 10, MAX_HELD_SUBJECTS)]}
    rows = range(len(examples))
    return [row for row in rows if examples[row].subject in held], [
        row for row in rows if examples[row].subject not in held
    ]


def _training_loss(
    network: AdapterNetwork, features: Sequence[Tensor], known: Sequence[int], denoising: Denoising
) -> Callable[[torch.Generator], tuple[Tensor, str]]:
    instance, priors = deque[float](maxlen=400), deque[float](maxlen=100)

    def loss_of(generator: torch.Generator) -> tuple[Tensor, str]:
        jobs = [known[row] for row in torch.randperm(len(known), generator=generator)[:JOBS_PER_STEP].tolist()]
        splits = [_split(len(features[job]), generator) for job in jobs]
        predicted = network(
            torch.stack([features[job][seen].mean(0) for job, (seen, _) in zip(jobs, splits, strict=True)])
        )
        # One job at a time: the activations of one are in memory, and the network's backward pass runs once for all.
        leaves = {name: [value.detach().requires_grad_() for value in pair] for name, pair in predicted.items()}
        for row, (job, (_, unseen)) in enumerate(zip(jobs, splits, strict=True)):
            prior = row < PRIOR_JOBS_PER_STEP
            losses = denoising.losses(job, _one(leaves, row), unseen, generator, prior=prior)
            (losses[0] / len(jobs) + PRIOR_LOSS_WEIGHT * losses[1] / PRIOR_JOBS_PER_STEP).backward()
            instance.append(losses[0].item())
            if prior:
                priors.append(losses[1].item())
        pairs = [
            (value, leaf) for name, pair in predicted.items() for value, leaf in zip(pair, leaves[name], strict=True)
        ]
        surrogate = torch.stack([(value * leaf.grad).sum() for value, leaf in pairs]).sum()
        return surrogate, f"instance loss {fmean(instance):.4f} prior loss {fmean(priors):.4f}"

    return loss_of


def _split(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the images whose features are used, and of `IMAGES_PER_JOB` others, with repetition."""
    order = torch.randperm(count, generator=generator)
    if count == 1:
        return order, order.repeat(IMAGES_PER_JOB)
    seen, others = order.tensor_split([1 + int(torch.randint(count - 1, (), generator=generator))])
    return seen, others[torch.randint(len(others), (IMAGES_PER_JOB,), generator=generator)]


@torch.no_grad()
def _measure(
    network: AdapterNetwork, features: Sequence[Tensor], held: Sequence[int], denoising: Denoising
) -> Measured:
    common = _one(network(network.offset[None]), 0)
    none = {name: (down, torch.zeros_like(up)) for name, (down, up) in common.items()}
    losses: dict[str, list[float]] = {"base model": [], "mean features": [], "own features": []}
    for number in range(len(held) * MEASURED_STEPS):
        job, one = held[number % len(held)], step_generator(_MEASURE_SEED, number)
        seen, unseen = _split(len(features[job]), one)
        own = _one(network(features[job][seen].mean(0)[None]), 0)
        state = one.get_state()
        for values, adapter in zip(losses.values(), (none, common, own), strict=True):
            one.set_state(state)  # the same noise for all
            values.append(denoising.losses(job, adapter, unseen, one)[0].item())
    return Measured(len(held), {name: fmean(values) for name, values in losses.items()})


def _one(adapters: Adapters | Mapping[str, Sequence[Tensor]], row: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The adapter of one subject: A [r, i] and B [o, r] of each layer."""
    return {name: (down[row], up[row]) for name, (down, up) in adapters.items()}


def _digest(examples: Sequence[Example], config: NetworkConfig, steps: int, seed: int) -> str:
    parts = [config.model_dump_json(), steps, seed, *(one.digest for one in examples)]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def summary(measured: Measured | None, jobs: int) -> Sequence[str]:
    """Lines for the user after a training on a number of jobs."""
    if measured is None:
        return (f"trained on {jobs} job(s); at least 10 subjects are required to measure the loss on a tenth",)
    return (f"trained on {jobs - measured.jobs} jobs", measured.line())
