"""What a base model is best trained with where the job file is silent."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_api.uris import BUILTIN_SPRITES


@dataclass(frozen=True)
class ModelDefaults:
    """Tuned defaults of one base model.

    Attributes:
        resolution: side of the training images, pixels.
        steps, learning_rate, batch_size: of fine-tuning; batch_size counts instance images of all workers.
        lora_learning_rate: of method LoRA in place of learning_rate.
        train_text_encoder: whether the text encoder learns as well.
        class_images_per_image, max_class_images: class images per subject image, and at most so many in all.
        prior_steps, prior_guidance: denoising steps and guidance for class images.
        sample_steps, sample_guidance: the same for pictures that people look at.
        sampling_batch_size: images that one worker draws at a time.
        dino, clip: encoders that judge fidelity.
    """

    resolution: int
    steps: int
    learning_rate: float
    lora_learning_rate: float
    batch_size: int
    train_text_encoder: bool
    class_images_per_image: int
    max_class_images: int
    prior_steps: int
    prior_guidance: float
    sample_steps: int
    sample_guidance: float
    sampling_batch_size: int
    dino: str
    clip: str


PAPER = ModelDefaults(
    resolution=512,
    steps=1000,
    learning_rate=5e-6,
    lora_learning_rate=1e-4,
    batch_size=1,
    train_text_encoder=False,
    class_images_per_image=200,
    max_class_images=1000,
    prior_steps=50,
    prior_guidance=7.5,
    sample_steps=50,
    sample_guidance=7.5,
    sampling_batch_size=4,
    dino="facebook/dino-vits16",
    clip="openai/clip-vit-base-patch32",
)
# A model of five million weights that saw 32-pixel drawings only: higher rates, fewer steps. Class images at low
# guidance, because guidance narrows the class (bench/preservation.py measures both).
# LoRA at 3e-3 learns the subject better than at 1e-3 and narrows the class less (rank 16, samples/sprites.yaml).
SPRITES = ModelDefaults(
    resolution=32,
    steps=400,
    learning_rate=1.5e-4,
    lora_learning_rate=3e-3,
    batch_size=4,
    train_text_encoder=True,
    class_images_per_image=50,
    max_class_images=200,
    prior_steps=20,
    prior_guidance=1.5,
    sample_steps=20,
    sample_guidance=3.0,
    sampling_batch_size=25,
    dino=BUILTIN_SPRITES,
    clip=BUILTIN_SPRITES,
)


def model_defaults(model_id: str) -> ModelDefaults:
    """The tuned defaults of the built-in base, the paper's for all else."""
    return SPRITES if model_id == BUILTIN_SPRITES else PAPER
