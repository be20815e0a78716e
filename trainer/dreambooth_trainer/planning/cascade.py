"""Facts about the super-resolution stage of DeepFloyd IF, which enlarges the images of the base model."""

from __future__ import annotations

# Name of the stage: the folder of its caches, its checkpoints and its model.
SUPER_RESOLUTION = "super_resolution"
SCALE = 4
"""Side length of its images, in side lengths of the base model's."""
# Noise level of the enlarged image, in timesteps of its noise schedule: the lowest one, because higher levels blur
# details of the subject (DreamBooth v1, section 4.4: 1e-5 instead of 1e-3 of the schedule). Used to sample as well.
NOISE_LEVEL = 0
# As in diffusers' pipeline.
GUIDANCE_SCALE = 4.0
MAX_STEPS = 50
# By method. It needs lower rates than the base model (diffusers' guide).
LEARNING_RATES = {"Full": 1e-8, "LoRA": 1e-6, "DoRA": 1e-6}
