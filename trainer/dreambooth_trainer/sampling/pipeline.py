"""Generates images with one pipeline, in this process.

The noise of an image depends on its own seed only, not on the other images of its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_api.subject import NoiseScheduler
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.models.files import ADAPTER_FILE, IMAGE_EMBEDS_FILE, IP_ADAPTER_FILE
from dreambooth_trainer.planning.cascade import SCALE, SUPER_RESOLUTION
from dreambooth_trainer.planning.plan import SamplerSettings
from dreambooth_trainer.sampling.image_prompts import SubjectImages, load_subject_images

if TYPE_CHECKING:
    from PIL import Image

    from dreambooth_trainer.families.base import Embeddings, Family


@dataclass(frozen=True)
class ImageRequest:
    """One image to generate: its name in the image store, its prompt, and the seed of its noise."""

    name: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of image generation.

    Attributes:
        resolution: side of the square images, pixels.
        precision: number format of the weights on a GPU, "bf16", "fp16" or "fp32". CPUs use fp32.
        batch_size: maximum number of images per pipeline call.
    """

    sampler: SamplerSettings
    resolution: int
    precision: str
    batch_size: int


def noise_seed(*parts: str | int) -> int:
    """A 63-bit seed derived from everything that identifies an image."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


@dataclass
class LoadedPipeline:
    """A pipeline on a device, and the text embeddings of the prompts that it has encoded.

    Attributes:
        default_scheduler: the noise scheduler of the model's configuration.
        embeddings: arguments of the pipeline's call by prompt, each of a batch of one.
        super_resolution: enlarges the images of this pipeline.
        subject_images: of a pipeline with an image-prompt adapter.
    """

    pipeline: Any
    family: Family
    default_scheduler: Any
    embeddings: dict[str, dict[str, Embeddings]] = field(default_factory=dict[str, "dict[str, Embeddings]"])
    super_resolution: LoadedPipeline | None = None
    subject_images: SubjectImages | None = None

    def embed(self, prompts: Sequence[str]) -> dict[str, Embeddings]:
        """The arguments of a pipeline call for a batch of prompts. A prompt is encoded once."""
        if new := sorted(set(prompts) - self.embeddings.keys()):
            encoded = self.family.embed_prompts(self.pipeline, new)
            rows = {name: [value[n : n + 1] for n in range(len(new))] for name, value in encoded.items()}
            self.embeddings |= {
                prompt: {name: row[index] for name, row in rows.items()} for index, prompt in enumerate(new)
            }
        batch = [self.embeddings[prompt] for prompt in prompts]
        return {name: _joined([row[name] for row in batch]) for name in batch[0]}

    def use_scheduler(self, name: NoiseScheduler) -> None:
        """Select the noise scheduler of the next calls. Both use the model's noise schedule."""
        from diffusers import DPMSolverMultistepScheduler

        if self.super_resolution is not None:
            self.super_resolution.use_scheduler(name)
        if name == "Default":
            self.pipeline.scheduler = self.default_scheduler
            return
        # With builtin:sprites, images of ten steps with Karras sigmas are closer to those of 100 steps of DDIM than
        # images of 25 steps of DDIM, or of 25 steps without these sigmas.
        config = self.default_scheduler.config
        self.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True)


def _joined(parts: Sequence[Embeddings]) -> Embeddings:
    import torch

    if isinstance(parts[0], torch.Tensor):
        return torch.cat([part for part in parts if isinstance(part, torch.Tensor)])
    return [row for part in parts for row in part]


def load_pipeline(
    folder: Path, precision: str, device: str, adapter: Path | None = None, super_resolution: Path | None = None
) -> LoadedPipeline:
    """The pipeline of a diffusers folder on a device, without a progress bar.

    Args:
        adapter: folder of an adapter, of new tokens, or of images as prompts, to load into the pipeline.
        super_resolution: diffusers folder of the model that enlarges the images.
    """
    loaded = _load_stage(folder, precision, device, adapter)
    if super_resolution is not None:
        second = None if adapter is None else adapter / SUPER_RESOLUTION
        loaded.super_resolution = _load_stage(super_resolution, precision, device, second)
    return loaded


def _load_stage(folder: Path, precision: str, device: str, adapter: Path | None) -> LoadedPipeline:
    import torch

    from dreambooth_trainer.families.base import FineTunedScheduler, ImagePrompts
    from dreambooth_trainer.families.embeddings import load_embeddings

    gpu = torch.device(device).type == "cuda"
    low = {"bf16": torch.bfloat16, "fp16": torch.float16} if gpu else {}
    dtype = low.get(precision, torch.float32)
    family = open_family(folder)
    pipeline: Any = family.pipeline(folder, dtype)
    if adapter is not None:
        load_embeddings(pipeline, adapter)
    if adapter is not None and (adapter / ADAPTER_FILE).exists():
        pipeline.load_lora_weights(adapter, weight_name=ADAPTER_FILE, local_files_only=True)
        if isinstance(family, FineTunedScheduler):
            pipeline.scheduler = family.fine_tuned_scheduler(pipeline.scheduler)
    subject_images = None
    if adapter is not None and (adapter / IMAGE_EMBEDS_FILE).exists():
        assert isinstance(family, ImagePrompts), "the plan was checked"
        family.load_ip_adapter(pipeline, adapter / IP_ADAPTER_FILE, encoder=False)
        subject_images = load_subject_images(adapter)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return LoadedPipeline(pipeline, family, pipeline.scheduler, subject_images=subject_images)


def sample_batch(loaded: LoadedPipeline, config: SamplingConfig, requests: Sequence[ImageRequest]) -> list[Image.Image]:
    """Generate a batch in one pipeline call, or in one for all prompts with the same subjects if images are prompts.

    Each image is generated from its own noise.
    """
    prompts = loaded.subject_images
    if prompts is None:
        return _call(loaded, config, requests, {})
    subjects, images = [prompts.subjects_of(request.prompt) for request in requests], dict[int, Any]()
    for names in dict.fromkeys(subjects):
        indices = [index for index, own in enumerate(subjects) if own == names]
        group = [replace(requests[index], prompt=prompts.text_of(requests[index].prompt)) for index in indices]
        extra = prompts.use(loaded.pipeline, names, guided=config.sampler.guidance_scale > 1)
        images |= zip(indices, _call(loaded, config, group, extra), strict=True)
    return [images[index] for index in range(len(requests))]


def _call(
    loaded: LoadedPipeline, config: SamplingConfig, requests: Sequence[ImageRequest], extra: Mapping[str, Any]
) -> list[Image.Image]:
    """Generate a batch in one pipeline call.

    Args:
        extra: arguments of the call.
    """
    import torch

    from dreambooth_trainer.families.base import GuidanceScale, SuperResolution

    scale = config.sampler.guidance_scale
    loaded.use_scheduler(config.sampler.scheduler)
    embeddings, second = loaded.embed([request.prompt for request in requests]), loaded.super_resolution
    generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
    side = config.resolution if second is None else config.resolution // SCALE
    images = loaded.pipeline(
        **embeddings,
        num_inference_steps=config.sampler.steps,
        guidance_scale=loaded.family.guidance_argument(scale) if isinstance(loaded.family, GuidanceScale) else scale,
        height=side,
        width=side,
        generator=generators,
        **extra,
        **({} if second is None else {"output_type": "pt"}),
    ).images
    if second is None:
        return images
    assert isinstance(second.family, SuperResolution)
    return second.family.upscale(second.pipeline, images, embeddings, config.sampler.steps, generators)
