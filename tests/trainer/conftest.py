"""Fixtures shared by the trainer's tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobtext import LoadText

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@pytest.fixture
def load_text(tmp_path: Path) -> LoadText:
    """Load a job from the text of a job file, with overrides."""
    from dreambooth_api.job import DreamBoothJob
    from dreambooth_trainer.jobfile import load_job

    def load(text: str | bytes, *sets: str) -> DreamBoothJob:
        file = tmp_path / "job.yaml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_job(file, sets)

    return load


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory):
    """Build a random pipeline of Stable Diffusion's architecture, small enough for a step in milliseconds."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from dreambooth_trainer.sprites import WEIGHTS

    def make(prediction_type: str = "epsilon", *, attention_in_vae: bool = False, like_sd2: bool = False) -> Path:
        torch.manual_seed(0)
        tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2 if like_sd2 else 1,
            hidden_act="gelu" if like_sd2 else "quick_gelu",
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                block_out_channels=(8, 8, 8),
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=4,
                mid_block_add_attention=attention_in_vae,
            ),
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=8,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                block_out_channels=(16, 32),
                layers_per_block=2,
                cross_attention_dim=32,
                attention_head_dim=(2, 4) if like_sd2 else 8,
                use_linear_projection=like_sd2,
                norm_num_groups=8,
            ),
            scheduler=DDIMScheduler(prediction_type=prediction_type, clip_sample=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        folder = tmp_path_factory.mktemp(f"model-{prediction_type}")
        pipeline.save_pretrained(folder, safe_serialization=True)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model) -> Path:
    """A random epsilon-prediction pipeline."""
    return make_model()


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """A local Ray cluster, shared by all tests that do not need a separate process."""
    from dreambooth_trainer.cluster.session import ray_cluster

    with ray_cluster():
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB: enough for images and latents, too small for a checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.call(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)]):
        pytest.skip("requires root to mount a small file system")
    yield disk
    subprocess.check_call(["umount", "--lazy", str(disk)])
