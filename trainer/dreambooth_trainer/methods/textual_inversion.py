"""Textual Inversion (Gal et al. 2023): only the embeddings of new tokens are trained, and the model stays as it is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dreambooth_trainer.methods.base import Learner, ParameterGroup, Result, Targets, Trainee
from dreambooth_trainer.methods.tokens import extend, merge_tokens
from dreambooth_trainer.planning.plan import Plan


class TextualInversion:
    """Trains the embeddings of new tokens, in each text encoder that can get them."""

    def prepare(self, stage: Trainee, plan: Plan, targets: Targets) -> Learner:
        del targets
        for module in stage.modules.values():
            module.requires_grad_(False)
        rows = extend(stage, plan)
        return Learner(stage.modules, [ParameterGroup(rows, plan.text_encoder_learning_rate)])

    def result(self, stage: Trainee, plan: Plan, weights: Mapping[str, Mapping[str, Tensor]]) -> Result:
        embeddings: dict[str, dict[str, Tensor]] = {}
        for slot in stage.text:
            if slot.module in weights:
                (rows,) = weights[slot.module].values()
                vectors = merge_tokens(stage.modules[slot.module], rows, len(slot.tokenizer))
                split = vectors.split(plan.spec.training.vectors)
                embeddings[slot.module] = dict(zip(plan.new_tokens, split, strict=True))
        return Result({name: stage.modules[name] for name in weights}, embeddings=embeddings)
