"""Selects the weights to publish with `output.select: Best`, while the workers train and afterwards.

Scores arrive late, and training may have gone on: the choice is a function of the scores of all validations that count
(`metrics.best_step`), never of the time at which they are known. If a score is missing for good, the weights of the
last step are published, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dreambooth_trainer.metrics.best_step import Standing, StepScores, explain, standing
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.sampling.validation_set import validated_steps
from dreambooth_trainer.store.candidates import Candidates
from dreambooth_trainer.store.validations import Validations

MAX_FAILURES = 3
"""Number of failures to score a step after which no weights are kept for a choice that cannot be made."""


@dataclass(frozen=True)
class Choice:
    """The step whose weights are published.

    Attributes:
        step: None for the last step, because no choice could be made.
        reason: why; one sentence for the user.
        weights: folder of the weights of `step`.
    """

    step: int | None
    reason: str
    weights: Path | None = None


class Selector:
    """Follows the scores of one training."""

    def __init__(self, plan: Plan, validations: Validations, candidates: Candidates) -> None:
        validation = plan.spec.training.validation
        assert validation is not None, "select: Best requires it"
        self._steps, self._patience = plan.steps, validation.patience
        self._validated = validated_steps(plan)
        self._validations, self.candidates = validations, candidates
        self._failures: dict[int, int] = {}

    def _standing(self, scores: StepScores) -> Standing:
        return standing(scores, self._validated, self._patience)

    def update(self) -> None:
        """Delete the weights of steps that cannot be selected any more, and stop the training if the choice is final.

        Nothing happens before the weights of the best step are there, which the workers write after its images.
        """
        now = self._standing(self._validations.scores())
        if now.best is None or not self.candidates.has(now.best):
            return
        self._discard_others(now)
        if now.decided and now.validated[-1] < self._steps:
            self.candidates.request_stop()

    def _discard_others(self, now: Standing) -> None:
        for step in self.candidates.steps():
            if step != now.best and (now.decided or step in now.validated):
                self.candidates.discard(step)

    def failed(self, step: int) -> None:
        """A step could not be scored. It is tried again with the next validation, and after training."""
        self._failures[step] = self._failures.get(step, 0) + 1
        if self._failures[step] >= MAX_FAILURES:
            self.candidates.give_up()

    def choose(self, score: Callable[[int], Mapping[str, float]]) -> Choice:
        """The choice after training.

        Args:
            score: scores a step, of those that were not scored during training.
        """
        if self.candidates.given_up():
            return self._last(f"a validation could not be scored {MAX_FAILURES} times")
        scores = self._validations.scores()
        for step in (0, *self._validated):
            if step not in scores and not self._standing(scores).decided:
                try:
                    scores[step] = dict(score(step))
                except Exception as error:
                    lines = str(error).strip().splitlines() or [type(error).__name__]
                    return self._last(f"the validation of step {step} could not be scored: {lines[-1]}")
        final = self._standing(scores)
        if final.best is None or not self.candidates.has(final.best):
            return self._last(f"the weights of step {final.best} do not exist any more")
        self._discard_others(final)
        return Choice(final.best, explain(scores, final, self._steps), self.candidates.folder(final.best))

    @staticmethod
    def _last(problem: str) -> Choice:
        return Choice(None, f"the weights of the last step are published, not those of the best one: {problem}")
