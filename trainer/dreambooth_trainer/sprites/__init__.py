"""`builtin:sprites`: a small base model with Stable Diffusion's architecture, its training data, and its training.

Importing this package does not import torch. Only the modules that train or sample do.
"""

from pathlib import Path

WEIGHTS: Path = Path(__file__).parent / "weights"
"""The embedded base model, a diffusers folder in the package. `WEIGHTS / "evaluator"` contains the evaluator."""

EVALUATOR_WEIGHTS: Path = WEIGHTS / "evaluator"
