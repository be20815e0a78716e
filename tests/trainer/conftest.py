"""Fixtures shared by the trainer's tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubserver import Hub, run_hub
from jobtext import LoadText
from tinymodels import pixel_scheduler, tiny_pixel_unet, tiny_t5, tiny_text_config, tiny_vae

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
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from dreambooth_trainer.sprites import WEIGHTS

    def make(prediction_type: str = "epsilon", *, attention_in_vae: bool = False, like_sd2: bool = False) -> Path:
        torch.manual_seed(0)
        tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
        text = tiny_text_config(tokenizer, 32, "gelu" if like_sd2 else "quick_gelu", 2 if like_sd2 else 1)
        pipeline = StableDiffusionPipeline(
            vae=tiny_vae(mid_block_add_attention=attention_in_vae),
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
def tiny_xl_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pipeline of Stable Diffusion XL's architecture."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from dreambooth_trainer.sprites import WEIGHTS

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_vae(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(tiny_text_config(tokenizer, 16, "quick_gelu", 2)),
        text_encoder_2=CLIPTextModelWithProjection(tiny_text_config(tokenizer, 24, "gelu", 2)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=2,
            cross_attention_dim=40,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            norm_num_groups=8,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )
    folder = tmp_path_factory.mktemp("model-xl")
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def make_sd3_model(tmp_path_factory: pytest.TempPathFactory):
    """Build a random pipeline of Stable Diffusion 3's architecture."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    from dreambooth_trainer.sprites import WEIGHTS

    def make(*, t5: bool = True) -> Path:
        torch.manual_seed(0)
        tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
        encoder, t5_tokenizer = tiny_t5(48) if t5 else (None, None)
        pipeline = StableDiffusion3Pipeline(
            vae=tiny_vae(scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=CLIPTextModelWithProjection(tiny_text_config(tokenizer, 16, "quick_gelu", 2)),
            text_encoder_2=CLIPTextModelWithProjection(tiny_text_config(tokenizer, 24, "gelu", 2)),
            text_encoder_3=encoder,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            tokenizer_3=t5_tokenizer,
            transformer=SD3Transformer2DModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=48,
                caption_projection_dim=16,
                pooled_projection_dim=40,
                pos_embed_max_size=16,
                dual_attention_layers=(0,),
                qk_norm="rms_norm",
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
        folder = tmp_path_factory.mktemp("model-sd3")
        pipeline.save_pretrained(folder, safe_serialization=True)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_sd3_model(make_sd3_model) -> Path:
    """A random pipeline of Stable Diffusion 3's architecture, with all three text encoders."""
    return make_sd3_model()


@pytest.fixture(scope="session")
def tiny_sd3_model_without_t5(make_sd3_model) -> Path:
    """As `tiny_sd3_model`, without T5."""
    return make_sd3_model(t5=False)


@pytest.fixture(scope="session")
def make_flux_model(tmp_path_factory: pytest.TempPathFactory):
    """Build a random pipeline of FLUX.1's architecture: like dev, with a guidance scale as input, or like schnell."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from dreambooth_trainer.sprites import WEIGHTS

    def make(*, guidance: bool) -> Path:
        torch.manual_seed(0)
        tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
        encoder, t5_tokenizer = tiny_t5(32)
        pipeline = FluxPipeline(
            vae=tiny_vae(scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=CLIPTextModel(tiny_text_config(tokenizer, 16, "quick_gelu", 2)),
            text_encoder_2=encoder,
            tokenizer=tokenizer,
            tokenizer_2=t5_tokenizer,
            transformer=FluxTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=16,
                guidance_embeds=guidance,
                axes_dims_rope=(4, 4, 8),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance),
        )
        folder = tmp_path_factory.mktemp("model-flux")
        pipeline.save_pretrained(folder, safe_serialization=True)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_flux_model(make_flux_model) -> Path:
    """A random pipeline of the architecture of FLUX.1 dev."""
    return make_flux_model(guidance=True)


@pytest.fixture(scope="session")
def tiny_schnell_model(make_flux_model) -> Path:
    """A random pipeline of the architecture of FLUX.1 schnell."""
    return make_flux_model(guidance=False)


@pytest.fixture(scope="session")
def tiny_z_image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pipeline of Z-Image's architecture."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    symbols = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": symbols[-2:]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = Qwen3Config(
        vocab_size=len(symbols),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    pipeline = ZImagePipeline(
        vae=tiny_vae(scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=Qwen3Model(config),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    folder = tmp_path_factory.mktemp("model-z-image")
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_if_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pipeline of the architecture of DeepFloyd IF's base model, for images of 16 px."""
    import torch
    from diffusers import IFPipeline

    torch.manual_seed(0)
    encoder, tokenizer = tiny_t5(24)
    pipeline = IFPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        unet=tiny_pixel_unet(sample_size=16, in_channels=3),
        scheduler=pixel_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("model-if")
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_super_resolution_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pipeline of the architecture of DeepFloyd IF's super-resolution model, from 16 to 64 px.

    As on the Hub, it has a copy of T5.
    """
    import torch
    from diffusers import DDPMScheduler, IFSuperResolutionPipeline

    torch.manual_seed(1)
    encoder, tokenizer = tiny_t5(24)
    pipeline = IFSuperResolutionPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        unet=tiny_pixel_unet(sample_size=64, in_channels=6, class_embed_type="timestep"),
        scheduler=pixel_scheduler(),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("model-if-super-resolution")
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process uses, with an empty cache and without delays between retries."""
    from huggingface_hub import constants

    from dreambooth_trainer.models import hub as client

    with run_hub() as (server, url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        client._fetch_commit.cache_clear()
        yield server
    client._fetch_commit.cache_clear()


@pytest.fixture
def multi_format_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model as in a Hub repository: weights in several formats, and a safety checker."""
    folder = shutil.copytree(tiny_model, tmp_path / "multi-format-model")
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        weights = folder / part / f"{stem}.safetensors"
        for name in (f"{stem}.fp16.safetensors", f"{stem}.non_ema.safetensors", f"{stem}.bin", "flax_model.msgpack"):
            shutil.copy(weights, folder / part / name)
        shutil.copy(weights, folder / part / f"{stem}.fp16-00001-of-00001.safetensors")
        (folder / part / f"{stem}.safetensors.index.fp16.json").write_text('{"weight_map": {}}')
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    shutil.copy(folder / "text_encoder" / "model.safetensors", folder / "safety_checker")
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "v1-5-pruned.safetensors")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A random ViT as in a Hub repository, in two formats."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "pytorch_model.bin").write_bytes(b"x" * 1000)
    return tmp_path / "vit"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One PyTorch thread. On a loaded machine, threads that wait for each other take ten times as long."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def sigterm_handler() -> Iterator[None]:
    """SIGTERM is handled as in a run."""
    from dreambooth_trainer.cluster import interrupts

    before = signal.getsignal(signal.SIGTERM)
    interrupts.handle_sigterm()
    yield
    interrupts.handle_sigterm()  # forgets signals
    signal.signal(signal.SIGTERM, before)


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
