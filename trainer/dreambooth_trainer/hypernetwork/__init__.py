"""HyperNetworks: networks that predict LoRA adapters from images of a subject."""

DEFAULT_STEPS = 1000
"""Optimizer steps of a network."""
