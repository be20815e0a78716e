"""Stage 6: trains the IP-Adapter (Ye et al. 2023): image features as a second prompt of the frozen base model.

Each example is a pair: its reference images and its target show one random subject in different scenes, so that only
what belongs to the subject helps. The caption describes the target's scene.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from rich.console import Console
from transformers import CLIPVisionModelWithProjection

from dreambooth_trainer.sprites.adapter_files import adapter_parameters, initial_adapter
from dreambooth_trainer.sprites.captions import caption, phrase
from dreambooth_trainer.sprites.randomness import seeded
from dreambooth_trainer.sprites.tokenizer import encode
from dreambooth_trainer.sprites.train_evaluator import SubjectViews
from dreambooth_trainer.sprites.train_image_encoder import to_pixel_values
from dreambooth_trainer.sprites.train_unet import denoising_loss, noise_settings
from dreambooth_trainer.sprites.train_vae import posterior_of, to_tensor
from dreambooth_trainer.sprites.training import Checkpoint, Stateful, make_optimizer, train
from dreambooth_trainer.sprites.world import Scene, Subject

CHUNK = 500
"""Images that are encoded at once."""


@dataclass(frozen=True)
class AdapterConfig:
    """Training settings of the adapter, and the random subjects that it and the image encoder are trained on."""

    subjects: int = 2_000
    views: int = 4
    """Images per subject, each in another scene: one target, up to three references."""
    steps: int = 1_500
    batch: int = 16
    rate: float = 1e-3
    text_dropout: float = 0.05
    image_dropout: float = 0.05
    both_dropout: float = 0.05
    """Shares of examples without the caption, without the images, and without both, for classifier-free guidance."""


@dataclass(frozen=True)
class Pairs:
    """Training data of the adapter, N subjects in V scenes."""

    mean: torch.Tensor
    """Latents of the images, float [N, V, 4, 16, 16]."""
    std: torch.Tensor
    features: torch.Tensor
    """Of the image encoder, float [N, V, D]."""
    tokens: torch.Tensor
    """int64 [N, V, captions, 16]"""
    empty: torch.Tensor
    """Tokens of the empty caption, int64 [16]."""

    def batch(
        self, config: AdapterConfig, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents [B, 4, 16, 16], tokens [B, 16], and features of one to V - 1 references [B, K, D]."""
        size, (count, views) = config.batch, self.mean.shape[:2]
        rows = torch.randint(count, (size,), generator=generator)
        order = torch.rand(size, views, generator=generator).argsort(dim=1)
        target = order[:, 0]
        references = order[:, 1 : 2 + int(torch.randint(views - 1, (), generator=generator))]
        mean = self.mean[rows, target]
        latents = mean + self.std[rows, target] * torch.randn(mean.shape, generator=generator)
        choice = torch.randint(self.tokens.shape[2], (size,), generator=generator)
        share = torch.rand(size, generator=generator)
        both, text = config.both_dropout, config.both_dropout + config.text_dropout
        tokens = torch.where((share < text)[:, None], self.empty, self.tokens[rows, target, choice])
        without_image = (share < both) | ((share >= text) & (share < text + config.image_dropout))
        features = self.features[rows[:, None], references].masked_fill(without_image[:, None, None], 0)
        return latents, tokens, features


def captions_of(subject: Subject, scene: Scene, seed: str) -> list[str]:
    """Three captions of an image. Most do not describe the subject, so that its images have to."""
    size = "" if scene.size == "medium" else scene.size
    return [
        phrase(subject.cls, size=size, background=scene.background),
        phrase(subject.cls, background=scene.background),
        caption(subject, scene, seeded(seed)),
    ]


@torch.no_grad()
def make_pairs(pipeline: StableDiffusionPipeline, encoder: CLIPVisionModelWithProjection, views: SubjectViews) -> Pairs:
    """Encode the images and captions of all subjects with the frozen models."""
    count, each = views.images.shape[:2]
    images = views.images.reshape(-1, *views.images.shape[2:])
    means, deviations, features = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
    for first in range(0, len(images), CHUNK):
        chunk = images[first : first + CHUNK]
        posterior = posterior_of(pipeline.vae, to_tensor(chunk))
        means.append(posterior.mean)
        deviations.append(posterior.std)
        features.append(encoder(to_pixel_values(chunk)).image_embeds)
    texts = [
        text
        for row, (subject, scenes) in enumerate(zip(views.subjects, views.scenes, strict=True))
        for column, scene in enumerate(scenes)
        for text in captions_of(subject, scene, f"adapter/{row}/{column}")
    ]
    return Pairs(
        mean=torch.cat(means).unflatten(0, (count, each)),
        std=torch.cat(deviations).unflatten(0, (count, each)),
        features=torch.cat(features).unflatten(0, (count, each)),
        tokens=encode(pipeline.tokenizer, texts).unflatten(0, (count, each, -1)),
        empty=encode(pipeline.tokenizer, [""])[0],
    )


def conditioned(
    pipeline: StableDiffusionPipeline, features: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The denoiser with reference images of features [B, K, D], as a function of noisy latents, timesteps, tokens."""

    def denoise(noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            states = pipeline.text_encoder(tokens).last_hidden_state
        prompt = {"image_embeds": [features]}
        return pipeline.unet(noisy, timesteps, states, added_cond_kwargs=cast("Any", prompt)).sample

    return denoise


def train_adapter(
    pipeline: StableDiffusionPipeline, pairs: Pairs, work: Path, config: AdapterConfig, seed: int, console: Console
) -> None:
    """Load an adapter into the UNet of `pipeline` and train it, resuming from `work/adapter.ckpt`."""
    torch.manual_seed(seed)
    unet = pipeline.unet.requires_grad_(False)
    state = initial_adapter(unet, pairs.features.shape[-1])
    unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)  # pyright: ignore[reportPrivateUsage]
    parameters = list(adapter_parameters(unet).values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer, schedule = make_optimizer(parameters, config.rate, config.steps)
    trained = torch.nn.ParameterList(parameters)
    checkpoint = Checkpoint(
        work / "adapter.ckpt", adapter=cast("Stateful", trained), optimizer=optimizer, schedule=schedule
    )
    scheduler = DDPMScheduler(**noise_settings())

    def loss_of(generator: torch.Generator) -> tuple[torch.Tensor, str]:
        latents, tokens, features = pairs.batch(config, generator)
        loss = denoising_loss(conditioned(pipeline, features), scheduler, latents, tokens, generator)
        return loss, f"loss {loss.item():.4f}"

    train("adapter", checkpoint, (optimizer, schedule), config.steps, seed, console, loss_of)
