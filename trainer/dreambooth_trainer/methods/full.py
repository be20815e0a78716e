"""Full fine-tuning: all weights are trained, as in the paper."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dreambooth_trainer.methods.base import Learner, Result, Targets, Trainee, groups_by_module, load_trained
from dreambooth_trainer.planning.plan import Plan


class Full:
    """Trains all weights of the modules."""

    def prepare(self, stage: Trainee, plan: Plan, targets: Targets) -> Learner:
        del targets
        for module in stage.modules.values():
            module.requires_grad_(True)
        return Learner(stage.modules, groups_by_module(stage, plan))

    def result(self, stage: Trainee, plan: Plan, weights: Mapping[str, Mapping[str, Tensor]]) -> Result:
        del plan
        for name, trained in weights.items():
            load_trained(stage.modules[name], trained)
        return Result({name: stage.modules[name] for name in weights})
