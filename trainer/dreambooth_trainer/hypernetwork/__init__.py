"""HyperNetworks: networks that predict LoRA adapters from images of a subject."""

DEFAULT_STEPS = 10_000
"""Optimizer steps of a network."""
MAX_SEED = (1 << 20) - 1
"""Of a network's training. The held-out jobs are measured with another one."""
