"""Pivotal tuning: embeddings of new tokens, and low-rank adapters of the denoiser, trained together.

Roich et al. (2021) first invert and then tune. Here both learn in all steps, as in diffusers' advanced example.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dreambooth_trainer.methods.base import Learner, ParameterGroup, Result, Targets, Trainee
from dreambooth_trainer.methods.lora import Lora, add_adapters
from dreambooth_trainer.methods.textual_inversion import TextualInversion
from dreambooth_trainer.planning.plan import Plan


class PivotalTuning:
    """Trains adapters of the denoiser as `Lora`, and new tokens of the text encoders as `TextualInversion`."""

    def prepare(self, stage: Trainee, plan: Plan, targets: Targets) -> Learner:
        groups = list(TextualInversion().prepare(stage, plan, targets).groups)
        if (denoiser := stage.modules.get(stage.denoiser)) is not None:
            add_adapters(denoiser, plan.spec.training.adapters, targets[stage.denoiser])
            adapters = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
            groups.insert(0, ParameterGroup(adapters, plan.learning_rate))
        return Learner(stage.modules, groups)

    def result(self, stage: Trainee, plan: Plan, weights: Mapping[str, Mapping[str, Tensor]]) -> Result:
        adapters = {name: trained for name, trained in weights.items() if name == stage.denoiser}
        tokens = {name: trained for name, trained in weights.items() if name != stage.denoiser}
        tuned, inverted = Lora().result(stage, plan, adapters), TextualInversion().result(stage, plan, tokens)
        return Result({**tuned.modules, **inverted.modules}, tuned.adapters, inverted.embeddings)
