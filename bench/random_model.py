"""Stable Diffusion 1.5 with random weights, at its real size or tiny: `python bench/random_model.py FOLDER [--tiny]`.

The real size has two gigabytes in fp16. It is good for measuring time and memory; its images are noise. The vocabulary
is that of the embedded base model, which is small and needs no download; the embedding table has CLIP's size.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth_trainer.sprites import WEIGHTS

CLIP_TOKENS, CLIP_VOCABULARY = 77, 49_408


def make_pipeline(*, tiny: bool) -> StableDiffusionPipeline:
    """A pipeline of Stable Diffusion 1.5's architecture. Tiny: the same blocks with few channels."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer", model_max_length=CLIP_TOKENS)
    width = 32 if tiny else 768
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=CLIP_VOCABULARY,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=2 if tiny else 12,
            num_attention_heads=2 if tiny else 12,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16) if tiny else (128, 256, 512, 512),
        norm_num_groups=4 if tiny else 32,
        layers_per_block=1 if tiny else 2,
    )
    unet = UNet2DConditionModel(
        sample_size=8 if tiny else 64,
        block_out_channels=(16, 32, 32, 32) if tiny else (320, 640, 1280, 1280),
        norm_num_groups=8 if tiny else 32,
        cross_attention_dim=width,
        attention_head_dim=4 if tiny else 8,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_model(folder: Path, *, tiny: bool) -> None:
    """Write the model as a diffusers folder in fp16, unless it exists."""
    if not (folder / "model_index.json").exists():
        make_pipeline(tiny=tiny).to(torch.float16).save_pretrained(folder, safe_serialization=True)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tiny", is_flag=True)
def main(folder: Path, tiny: bool) -> None:
    write_model(folder, tiny=tiny)


if __name__ == "__main__":
    main()
