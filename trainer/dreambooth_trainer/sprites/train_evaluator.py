"""Stage 4: trains the evaluator, on other images than the base model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy, normalize, pad

from dreambooth_trainer.sprites.captions import caption
from dreambooth_trainer.sprites.evaluator import EvaluatorConfig, EvaluatorNet, SpritesEvaluator, bag_of_words
from dreambooth_trainer.sprites.randomness import seeded
from dreambooth_trainer.sprites.train_vae import to_tensor
from dreambooth_trainer.sprites.training import Checkpoint, make_optimizer, train
from dreambooth_trainer.sprites.world import SIZE, Scene, Subject, random_scene, random_subject, render

TEMPERATURE = 0.1
"""Temperature of the subject loss."""


@dataclass(frozen=True)
class EvaluatorTraining:
    """Training settings of the evaluator."""

    subjects: int = 4_000
    views: int = 4
    """Images per subject, each in another scene."""
    steps: int = 1_200
    batch: int = 64
    """Subjects per step, with two views each."""
    rate: float = 2e-3


@dataclass(frozen=True)
class SubjectViews:
    """`images` uint8 [subjects, views, 32, 32, 3], with the subject and the scene of each image."""

    images: np.ndarray
    subjects: list[Subject]
    scenes: list[list[Scene]]


def make_subject_views(count: int, views: int, seed: int) -> SubjectViews:
    """Render random subjects in `views` scenes each. Subjects 2k and 2k + 1 share their class: hard negatives."""
    rng = seeded(f"album/{seed}")
    subjects: list[Subject] = []
    scenes: list[list[Scene]] = []
    for index in range(count):
        cls = subjects[-1].cls if index % 2 else None
        subjects.append(random_subject(rng, cls))
        scenes.append([random_scene(rng) for _ in range(views)])
    pairs = zip(subjects, scenes, strict=True)
    images = np.stack([[render(subject, scene) for scene in row] for subject, row in pairs])
    return SubjectViews(images, subjects, scenes)


def train_evaluator(work: Path, training: EvaluatorTraining, seed: int, console: Console) -> SpritesEvaluator:
    """Train both heads and their shared trunk, resuming from `work/evaluator.ckpt`."""
    dataset = make_subject_views(training.subjects, training.views, seed)
    torch.manual_seed(seed)
    net = EvaluatorNet(EvaluatorConfig()).train()
    optimizer, schedule = make_optimizer(list(net.parameters()), training.rate, training.steps, weight_decay=1e-2)
    checkpoint = Checkpoint(work / "evaluator.ckpt", net=net, optimizer=optimizer, schedule=schedule)

    def loss_of(generator: torch.Generator) -> tuple[torch.Tensor, str]:
        subject_loss, joint_loss = evaluator_losses(net, dataset, training.batch, generator)
        return subject_loss + joint_loss, f"subject {subject_loss.item():.3f} caption {joint_loss.item():.3f}"

    train("evaluator", checkpoint, (optimizer, schedule), training.steps, seed, console, loss_of, clip=None)
    center_features(net.eval(), dataset, seed)
    return SpritesEvaluator(net)


def evaluator_losses(
    net: EvaluatorNet, dataset: SubjectViews, batch: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Contrastive losses of one batch: between two views of a subject, and between an image and its caption."""
    # Adjacent subjects, so that every batch has hard negatives.
    pairs = torch.randint(len(dataset.subjects) // 2, (batch // 2,), generator=generator)
    subjects = torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten().tolist()
    views = [torch.randperm(dataset.images.shape[1], generator=generator)[:2].tolist() for _ in subjects]
    rng = seeded(str(torch.randint(2**31, (1,), generator=generator).item()))
    images = np.concatenate([[dataset.images[p, v[k]] for p, v in zip(subjects, views, strict=True)] for k in (0, 1)])
    texts = [
        caption(dataset.subjects[p], dataset.scenes[p][v[k]], rng)
        for k in (0, 1)
        for p, v in zip(subjects, views, strict=True)
    ]
    pixels = to_tensor(images)
    pixels = torch.cat([augment(half, generator) for half in pixels.chunk(2)])
    hidden = net.trunk(pixels)
    subject_loss = same_subject_loss(normalize(net.subject(hidden), dim=1), torch.tensor(subjects * 2))
    counts = bag_of_words(texts, net.config.words)
    joint_loss = caption_loss(
        normalize(net.joint(hidden), dim=1), normalize(net.text(counts), dim=1), net.log_scale.exp(), counts
    )
    return subject_loss, joint_loss


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift [N, 3, 32, 32] by up to two pixels and add noise: generated sprites are less exact than rendered ones."""
    down, right = torch.randint(0, 5, (2,), generator=generator).tolist()
    shifted = pad(pixels, (2, 2, 2, 2), mode="replicate")[:, :, down : down + SIZE, right : right + SIZE]
    strength = 0.08 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return shifted + strength * torch.randn(pixels.shape, generator=generator)


def same_subject_loss(features: torch.Tensor, subjects: torch.Tensor) -> torch.Tensor:
    """Supervised contrastive loss (Khosla et al. 2020) over features [N, D] of `subjects` [N]."""
    itself = torch.eye(len(subjects), dtype=torch.bool)
    same = (subjects[:, None] == subjects[None, :]) & ~itself
    logits = (features @ features.T / TEMPERATURE).masked_fill(itself, float("-inf"))
    log_probability = logits - logits.logsumexp(dim=1, keepdim=True)
    return -(log_probability.masked_fill(~same, 0).sum(dim=1) / same.sum(dim=1)).mean()


def caption_loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE loss, [N, D] x [N, D]. Captions with equal words share the target probability."""
    equal = (counts[:, None] == counts[None, :]).all(dim=2).float()
    targets = equal / equal.sum(dim=1, keepdim=True)
    logits = scale.clamp(max=50) * images @ texts.T
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


@torch.no_grad()
def center_features(net: EvaluatorNet, dataset: SubjectViews, seed: int) -> None:
    """Store the mean features, which inference subtracts so that unrelated pairs have a cosine near zero."""
    rng = seeded(f"centre/{seed}")
    rows = range(min(2000, len(dataset.subjects)))
    hidden = net.trunk(to_tensor(dataset.images[list(rows), 0]))
    texts = [caption(dataset.subjects[row], dataset.scenes[row][0], rng) for row in rows]
    net.subject_centre.copy_(normalize(net.subject(hidden), dim=1).mean(dim=0))
    net.joint_centre.copy_(normalize(net.joint(hidden), dim=1).mean(dim=0))
    net.text_centre.copy_(normalize(net.text(bag_of_words(texts, net.config.words)), dim=1).mean(dim=0))
