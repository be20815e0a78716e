"""Tuned defaults of base models, for the fields that a job does not set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from dreambooth_api.imageprompt import IpAdapter
from dreambooth_api.job import DEFAULT_CLIP, DEFAULT_DINO
from dreambooth_api.subject import MAX_DEFAULT_CLASS_IMAGES
from dreambooth_api.training import DEFAULT_STEPS
from dreambooth_api.uris import BUILTIN_SPRITES


@dataclass(frozen=True)
class ModelDefaults:
    """Tuned defaults of one base model.

    Attributes:
        resolution: side length of the training images in pixels, if the model's configuration has no sample size.
        learning_rates: by method.
        batch_size: instance images per optimizer step, across all workers.
        train_text_encoder: whether methods without adapters train the text encoder.
        class_images_per_image: class images per subject image, up to max_class_images in total.
        class_image_steps, class_image_guidance_scale: sampling settings for class images.
        sampling_steps, sampling_guidance_scale: sampling settings for the evaluation and the published model.
        sampling_batch_size: images per batch of one process on CPUs, or on GPUs whose memory is not known.
        dino, clip: encoders used for scoring.
        ip_adapter: adapter of method None; None if a job has to set it.
    """

    resolution: int
    steps: int
    learning_rates: Mapping[str, float]
    batch_size: int
    train_text_encoder: bool
    class_images_per_image: int
    max_class_images: int
    class_image_steps: int
    class_image_guidance_scale: float
    sampling_steps: int
    sampling_guidance_scale: float
    sampling_batch_size: int
    dino: str
    clip: str
    ip_adapter: IpAdapter | None = None

    def with_sampling(self, steps: int, guidance_scale: float) -> Self:
        """These defaults with other sampling settings, for class images and for the evaluation."""
        return replace(
            self,
            class_image_steps=steps,
            class_image_guidance_scale=guidance_scale,
            sampling_steps=steps,
            sampling_guidance_scale=guidance_scale,
        )


PAPER = ModelDefaults(
    resolution=512,
    steps=DEFAULT_STEPS,
    learning_rates={"Full": 5e-6, "LoRA": 1e-4, "DoRA": 1e-4, "TextualInversion": 5e-3, "PivotalTuning": 1e-4},
    batch_size=1,
    train_text_encoder=False,
    class_images_per_image=200,
    max_class_images=MAX_DEFAULT_CLASS_IMAGES,
    class_image_steps=50,
    class_image_guidance_scale=7.5,
    sampling_steps=50,
    sampling_guidance_scale=7.5,
    sampling_batch_size=4,
    dino=DEFAULT_DINO,
    clip=DEFAULT_CLIP,
)
# The embedded model has five million weights and was trained on 32-pixel images: it needs higher learning rates and
# fewer steps. Class images use low guidance, because guidance reduces their diversity (bench/preservation.py).
# With LoRA, 3e-3 has higher subject fidelity and more diverse class images than 1e-3 (rank 16, samples/sprites.yaml).
SPRITES = ModelDefaults(
    resolution=32,
    steps=400,
    learning_rates={"Full": 1.5e-4, "LoRA": 3e-3, "DoRA": 3e-3, "TextualInversion": 0.1, "PivotalTuning": 3e-3},
    batch_size=4,
    train_text_encoder=True,
    class_images_per_image=50,
    max_class_images=200,
    class_image_steps=20,
    class_image_guidance_scale=1.5,
    sampling_steps=20,
    sampling_guidance_scale=3.0,
    sampling_batch_size=25,
    dino=BUILTIN_SPRITES,
    clip=BUILTIN_SPRITES,
    ip_adapter=IpAdapter(id=BUILTIN_SPRITES, weights="ip_adapter/ip_adapter.safetensors"),
)

# DPM-Solver++ (Lu et al. 2022, section 6) needs 15 to 20 steps where DDIM needs 50; more with a high guidance scale.
DPM_SOLVER_STEPS = 25


# Models with flow matching are sampled in fewer steps and with a lower scale: the values for Stable Diffusion 3.5 Large
# and FLUX.1 dev. For FLUX.1, the scale is an input of the transformer.
FLOW_MATCHING = replace(PAPER, resolution=1024).with_sampling(28, 3.5)

# DeepFloyd IF: the learning rates of diffusers' DreamBooth guide, which says that higher ones degrade the model, and
# the default steps and scale of its pipeline. https://github.com/huggingface/diffusers/blob/58eb52c0803e/examples/dreambooth/README.md#if
PIXEL_SPACE = replace(
    PAPER,
    resolution=64,
    learning_rates={**PAPER.learning_rates, "Full": 1e-7, "LoRA": 5e-6, "DoRA": 5e-6},
    class_image_steps=100,
    class_image_guidance_scale=7.0,
    sampling_steps=100,
    sampling_guidance_scale=7.0,
)


def model_defaults(
    model_id: str,
    *,
    flow_matching: bool = False,
    pixel_space: bool = False,
    sampling: tuple[int, float] | None = None,
) -> ModelDefaults:
    """`SPRITES` for the embedded base model, otherwise `FLOW_MATCHING`, `PIXEL_SPACE` or `PAPER`.

    Args:
        sampling: other steps and guidance scale.
    """
    if model_id == BUILTIN_SPRITES:
        return SPRITES
    defaults = PIXEL_SPACE if pixel_space else FLOW_MATCHING if flow_matching else PAPER
    return defaults if sampling is None else defaults.with_sampling(*sampling)
