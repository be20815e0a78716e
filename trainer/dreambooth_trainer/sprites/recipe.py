"""`dreambooth sprites train`: from nothing to a published base model and its evaluator.

Five stages, each a function of the stages before it. A stage whose output exists is skipped; the training
stages also resume inside. Interrupt it anywhere and run the same command again.
"""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline
from rich.console import Console

from dreambooth_trainer.sprites.data import SpriteSet, load_sprites, make_sprites, save_sprites
from dreambooth_trainer.sprites.publish import publish_pipeline
from dreambooth_trainer.sprites.tokenizer import build_tokenizer, encode
from dreambooth_trainer.sprites.train_evaluator import EvaluatorTraining, train_evaluator
from dreambooth_trainer.sprites.train_unet import Examples, UnetConfig, train_unet
from dreambooth_trainer.sprites.train_vae import VaeConfig, encode_all, load_latents, reconstruction_psnr, train_vae

HELD_OUT = 500
"""Images at the end of the set that the autoencoder never trains on: they measure it."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, but the seed."""

    images: int = 30_000
    captions_per_image: int = 5
    vae: VaeConfig = field(default_factory=VaeConfig)
    evaluator: EvaluatorTraining = field(default_factory=EvaluatorTraining)
    unet: UnetConfig = field(default_factory=UnetConfig)


FULL = Recipe()
TOY = Recipe(
    images=600,
    captions_per_image=2,
    vae=replace(FULL.vae, channels=(8, 16), steps=4, batch=8),
    evaluator=replace(FULL.evaluator, subjects=16, steps=4, batch=8),
    unet=replace(FULL.unet, channels=(16, 16, 16), text_width=16, steps=6, batch=8, snapshot_every=2),
)
"""Seconds long and useless, but the same code: for tests."""


@dataclass(frozen=True)
class Workspace:
    """Where a run keeps what it has made so far."""

    root: Path

    @property
    def sprites(self) -> Path:
        """Rendered images and their captions."""
        return self.root / "sprites.npz"

    @property
    def vae(self) -> Path:
        """The finished autoencoder."""
        return self.root / "vae"

    @property
    def latents(self) -> Path:
        """Every image's posterior."""
        return self.root / "latents.safetensors"

    @property
    def evaluator(self) -> Path:
        """The finished evaluator."""
        return self.root / "evaluator"


def train_sprites(
    out: Path, seed: int = 0, recipe: Recipe = FULL, work: Path | None = None, console: Console | None = None
) -> Path:
    """Train the base model and the evaluator; publish them to `out`, a diffusers folder of float16 safetensors.

    `work` (default: `<out>.work`) keeps intermediate results and may be deleted afterwards.
    """
    console = console or Console()
    space = Workspace(work or out.with_name(out.name + ".work"))
    space.root.mkdir(parents=True, exist_ok=True)
    sprites = sprites_stage(space, recipe, seed, console)
    vae_stage(space, recipe, sprites, seed, console)
    pipeline = unet_stage(space, recipe, sprites, seed, console)
    evaluator_stage(space, recipe, seed, console)
    publish_pipeline(pipeline, out, space.evaluator)
    console.print(f"published {out}")
    return out


def sprites_stage(space: Workspace, recipe: Recipe, seed: int, console: Console) -> SpriteSet:
    """Render the training set."""
    if not space.sprites.exists():
        console.print(f"rendering {recipe.images} sprites")
        save_sprites(make_sprites(recipe.images, recipe.captions_per_image, seed + 1000), space.sprites)
    return load_sprites(space.sprites)


def vae_stage(space: Workspace, recipe: Recipe, sprites: SpriteSet, seed: int, console: Console) -> None:
    """Train the autoencoder, then encode the whole set once."""
    if not space.vae.exists():
        vae = train_vae(sprites.images[:-HELD_OUT], space.root, recipe.vae, seed, console)
        psnr = reconstruction_psnr(vae, sprites.images[-HELD_OUT:])
        console.print(f"autoencoder: {psnr:.2f} dB on {HELD_OUT} held-out sprites")
        partial = space.root / "vae.partial"
        vae.save_pretrained(partial)
        partial.rename(space.vae)
    if not space.latents.exists():
        console.print("encoding all sprites")
        encode_all(AutoencoderKL.from_pretrained(space.vae), sprites.images, space.latents)


def unet_stage(
    space: Workspace, recipe: Recipe, sprites: SpriteSet, seed: int, console: Console
) -> StableDiffusionPipeline:
    """Train text encoder and UNet on the cached latents."""
    tokenizer, vae = build_tokenizer(), AutoencoderKL.from_pretrained(space.vae)
    mean, std = load_latents(space.latents)
    flat = encode(tokenizer, [text for texts in sprites.captions for text in texts])
    tokens = flat.view(len(sprites.captions), recipe.captions_per_image, -1)
    examples = Examples(mean, std, tokens, encode(tokenizer, [""])[0])
    return train_unet(examples, vae, tokenizer, space.root, recipe.unet, seed, console)


def evaluator_stage(space: Workspace, recipe: Recipe, seed: int, console: Console) -> None:
    """Train the judge, on other seeds than the model it will judge."""
    if not space.evaluator.exists():
        evaluator = train_evaluator(space.root, recipe.evaluator, seed + 2000, console)
        partial = space.root / "evaluator.partial"
        shutil.rmtree(partial, ignore_errors=True)
        evaluator.save(partial)
        partial.rename(space.evaluator)


def main() -> None:
    """`python -m dreambooth_trainer.sprites.recipe OUT`, for work on the recipe itself; users have the CLI."""
    import argparse

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train_sprites(arguments.out, arguments.seed, work=arguments.work)


if __name__ == "__main__":
    main()
