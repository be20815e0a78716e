"""`builtin:sprites`: a tiny Stable-Diffusion-shaped base model, the world it knows, and the recipe that trains it.

Importing this package is cheap: torch is loaded only by the modules that train or sample.
"""

from pathlib import Path

WEIGHTS: Path = Path(__file__).parent / "weights"
"""A diffusers pipeline folder that ships with the package; `WEIGHTS / "evaluator"` holds the evaluator."""

EVALUATOR_WEIGHTS: Path = WEIGHTS / "evaluator"
