"""HyperNetworks: networks that predict LoRA adapters from images of a subject."""

DEFAULT_STEPS = 10_000
"""Optimizer steps of a network."""
