"""`dreambooth sprites train`: trains the base model, its evaluator and its IP-Adapter from scratch.

There are seven stages. A stage whose output exists is skipped, and the training stages resume from their checkpoints.
After an interruption, the same command continues.
"""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline
from rich.console import Console

from dreambooth_trainer.sprites.adapter_files import save_adapter
from dreambooth_trainer.sprites.check import load_pipeline
from dreambooth_trainer.sprites.data import SpriteSet, load_sprites, make_sprites, save_sprites
from dreambooth_trainer.sprites.publish import publish_folder, publish_pipeline
from dreambooth_trainer.sprites.tokenizer import build_tokenizer, encode
from dreambooth_trainer.sprites.train_adapter import AdapterConfig, make_pairs, train_adapter
from dreambooth_trainer.sprites.train_evaluator import EvaluatorTraining, make_subject_views, train_evaluator
from dreambooth_trainer.sprites.train_image_encoder import ImageEncoderConfig, train_image_encoder
from dreambooth_trainer.sprites.train_unet import Examples, UnetConfig, train_unet
from dreambooth_trainer.sprites.train_vae import VaeConfig, encode_all, load_latents, reconstruction_psnr, train_vae

HELD_OUT = 500
"""Images at the end of the set that are held out to measure the autoencoder."""


@dataclass(frozen=True)
class Recipe:
    """All settings that affect the weights, except the seed."""

    images: int = 30_000
    captions_per_image: int = 5
    vae: VaeConfig = field(default_factory=VaeConfig)
    evaluator: EvaluatorTraining = field(default_factory=EvaluatorTraining)
    unet: UnetConfig = field(default_factory=UnetConfig)
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)


FULL = Recipe()
TOY = Recipe(
    images=600,
    captions_per_image=2,
    vae=replace(FULL.vae, channels=(8, 16), steps=4, batch=8),
    evaluator=replace(FULL.evaluator, subjects=16, steps=4, batch=8),
    unet=replace(FULL.unet, channels=(16, 16, 16), text_width=16, steps=6, batch=8, snapshot_every=2),
    image_encoder=replace(FULL.image_encoder, width=16, layers=2, projection=8, steps=3, batch=8),
    adapter=replace(FULL.adapter, subjects=8, steps=3, batch=4),
)
"""Takes seconds and gives useless weights; for tests."""


@dataclass(frozen=True)
class Workspace:
    """Paths of the intermediate results of a run."""

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
        """Mean and standard deviation of each image's posterior."""
        return self.root / "latents.safetensors"

    @property
    def evaluator(self) -> Path:
        """The finished evaluator."""
        return self.root / "evaluator"

    @property
    def base(self) -> Path:
        """The finished base model with the evaluator, as it is published."""
        return self.root / "base"

    @property
    def ip_adapter(self) -> Path:
        """The finished IP-Adapter with its image encoder."""
        return self.root / "ip_adapter"


def train_sprites(
    out: Path, seed: int = 0, recipe: Recipe = FULL, work: Path | None = None, console: Console | None = None
) -> Path:
    """Train the base model, the evaluator and the IP-Adapter, and write them to `out`.

    That is a diffusers folder of float16 safetensors.

    Args:
        work: folder for intermediate results, which can be deleted afterwards. Defaults to `<out>.work`.
    """
    console = console or Console()
    workspace = Workspace(work or out.with_name(out.name + ".work"))
    workspace.root.mkdir(parents=True, exist_ok=True)
    sprites = sprites_stage(workspace, recipe, seed, console)
    vae_stage(workspace, recipe, sprites, seed, console)
    pipeline = unet_stage(workspace, recipe, sprites, seed, console)
    evaluator_stage(workspace, recipe, seed, console)
    publish_pipeline(pipeline, workspace.base, workspace.evaluator)
    adapter_stage(workspace, recipe, workspace.base, seed, console)
    publish_folder(out, workspace.base, workspace.ip_adapter)
    console.print(f"published {out}")
    return out


def sprites_stage(workspace: Workspace, recipe: Recipe, seed: int, console: Console) -> SpriteSet:
    """Render the training set, unless it exists."""
    if not workspace.sprites.exists():
        console.print(f"rendering {recipe.images} sprites")
        save_sprites(make_sprites(recipe.images, recipe.captions_per_image, seed + 1000), workspace.sprites)
    return load_sprites(workspace.sprites)


def vae_stage(workspace: Workspace, recipe: Recipe, sprites: SpriteSet, seed: int, console: Console) -> None:
    """Train the autoencoder, then encode all images."""
    if not workspace.vae.exists():
        vae = train_vae(sprites.images[:-HELD_OUT], workspace.root, recipe.vae, seed, console)
        psnr = reconstruction_psnr(vae, sprites.images[-HELD_OUT:])
        console.print(f"autoencoder: {psnr:.2f} dB on {HELD_OUT} held-out sprites")
        partial = workspace.root / "vae.partial"
        vae.save_pretrained(partial)
        partial.rename(workspace.vae)
    if not workspace.latents.exists():
        console.print("encoding all sprites")
        encode_all(AutoencoderKL.from_pretrained(workspace.vae), sprites.images, workspace.latents)


def unet_stage(
    workspace: Workspace, recipe: Recipe, sprites: SpriteSet, seed: int, console: Console
) -> StableDiffusionPipeline:
    """Train the text encoder and the UNet on the cached latents."""
    tokenizer, vae = build_tokenizer(), AutoencoderKL.from_pretrained(workspace.vae)
    mean, std = load_latents(workspace.latents)
    flat = encode(tokenizer, [text for texts in sprites.captions for text in texts])
    tokens = flat.view(len(sprites.captions), recipe.captions_per_image, -1)
    examples = Examples(mean, std, tokens, encode(tokenizer, [""])[0])
    return train_unet(examples, vae, tokenizer, workspace.root, recipe.unet, seed, console)


def evaluator_stage(workspace: Workspace, recipe: Recipe, seed: int, console: Console) -> None:
    """Train the evaluator, on images from other seeds than the training set of the base model."""
    if not workspace.evaluator.exists():
        evaluator = train_evaluator(workspace.root, recipe.evaluator, seed + 2000, console)
        partial = workspace.root / "evaluator.partial"
        shutil.rmtree(partial, ignore_errors=True)
        evaluator.save(partial)
        partial.rename(workspace.evaluator)


def adapter_stage(workspace: Workspace, recipe: Recipe, base: Path, seed: int, console: Console) -> None:
    """Train the image encoder and the IP-Adapter of a base model, on subjects from other seeds than all before.

    Args:
        base: diffusers folder of the base model.
    """
    if workspace.ip_adapter.exists():
        return
    config = recipe.adapter
    console.print(f"rendering {config.subjects} subjects")
    views = make_subject_views(config.subjects, config.views, seed + 3000)
    encoder = train_image_encoder(views, workspace.root, recipe.image_encoder, seed + 3000, console)
    pipeline = load_pipeline(base)
    train_adapter(pipeline, make_pairs(pipeline, encoder, views), workspace.root, config, seed + 3000, console)
    partial = workspace.root / "ip_adapter.partial"
    shutil.rmtree(partial, ignore_errors=True)
    save_adapter(pipeline.unet, encoder, partial)
    partial.rename(workspace.ip_adapter)


def train_sprites_adapter(
    out: Path, base: Path, seed: int = 0, recipe: Recipe = FULL, work: Path | None = None
) -> Path:
    """Train only the IP-Adapter, of a base model that exists, and write it to `out` as float16 safetensors.

    Args:
        base: diffusers folder of the base model.
        work: folder for intermediate results, which can be deleted afterwards. Defaults to `<out>.work`.
    """
    workspace, console = Workspace(work or out.with_name(out.name + ".work")), Console()
    workspace.root.mkdir(parents=True, exist_ok=True)
    adapter_stage(workspace, recipe, base, seed, console)
    publish_folder(out, workspace.ip_adapter)
    console.print(f"published {out}")
    return out


def main() -> None:
    """`python -m dreambooth_trainer.sprites.recipe OUT`, for development. Users have `dreambooth sprites train`."""
    import argparse

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train_sprites(arguments.out, arguments.seed, work=arguments.work)


if __name__ == "__main__":
    main()
