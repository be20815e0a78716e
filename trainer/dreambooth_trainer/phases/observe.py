"""Scores validations and feeds experiment trackers during training, in a thread of the driver.

Errors are reported as warnings and do not fail the job.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.phases.base import Context
from dreambooth_trainer.phases.select import Choice, Selector
from dreambooth_trainer.phases.trackers import Trackers
from dreambooth_trainer.phases.validate import Scorer, draw_course
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.sampling.validation_set import validation_requests, validations_of
from dreambooth_trainer.store.candidates import Candidates, candidates_of
from dreambooth_trainer.store.validations import Validations
from dreambooth_trainer.training.messages import StepRecord

POLL_SECONDS = 1.0
COUNT_SECONDS = 15.0
# A tracker whose server does not respond must not keep the job from being published. Less than the least
# progressDeadlineSeconds, 300 s: meanwhile the trainer reports nothing.
CLOSE_SECONDS = 240.0
INTERRUPTED_SECONDS = 5.0


class Observer:
    """The observer of one training.

    Attributes:
        validations: where the workers write images; None without validation.
        selector: selects the weights to publish; None if they are those of the last step.
        warnings: sentences for the user.
    """

    def __init__(self, context: Context, progress_actor: Any, options: dict[str, Any]) -> None:
        self._context, self._actor, self._options = context, progress_actor, options
        plan, key = context.plan, context.keys[TrainerPhase.TRAIN]
        self.validations: Validations | None = None
        if plan.spec.training.validation is not None:
            self.validations = validations_of(plan, context.folder, key)
            self.validations.prepare()
        self.selector: Selector | None = None
        if self.validations is not None and plan.spec.output.select == "Best":
            self.selector = Selector(plan, self.validations, candidates_of(context.folder, key))
        self._seen, self._counted = self._num_images(), time.monotonic()
        self.warnings: list[str] = []
        self._closing, self._records = threading.Event(), list[StepRecord]()
        self._stop_scoring, self._storing = threading.Event(), threading.Lock()
        self._scorer: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def candidates(self) -> Candidates | None:
        """Where the workers write the weights of validated steps; None if they are not needed."""
        return self.selector and self.selector.candidates

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def progressed(self) -> bool:
        """Whether the workers have generated images since this was last true. They are counted at intervals."""
        if time.monotonic() - self._counted < COUNT_SECONDS:
            return False
        before, self._seen, self._counted = self._seen, self._num_images(), time.monotonic()
        return self._seen != before

    def _num_images(self) -> int:
        with contextlib.suppress(OSError):
            return self.validations.num_images() if self.validations else 0
        return 0

    def succeed(self, records: list[StepRecord]) -> None:
        """The training has reached its last step. Without this call, it counts as failed.

        Args:
            records: of all steps.
        """
        self._records = records

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait until everything is scored and logged, but not longer than some seconds.

        After that, no other step is scored.
        """
        self._closing.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._stop_scoring.set()
            self.warnings.append(f"scores or trackers were not complete {seconds:.0f} s after training ended")

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:
            first_line = str(error).partition("\n")[0]
            self.warnings.append(f"validation and trackers stopped: {type(error).__name__}: {first_line}")
        finally:
            self._kill_scorer()

    def _follow(self) -> None:
        plan = self._context.plan
        trackers = (
            Trackers(plan, self._context.folder, self._context.keys[TrainerPhase.TRAIN], self.warnings.append)
            if plan.spec.training.trackers
            else None
        )
        drawn, closing = list[int](), False
        try:
            while not closing:
                closing = self._closing.wait(POLL_SECONDS)
                if trackers is not None:
                    history = [] if closing else ray.get(self._actor.take_history.remote())
                    trackers.log_losses(self._records if closing else history)
                if self.validations is not None:
                    with self._warned():
                        drawn = self._validate(plan, self.validations, trackers, drawn)
                if self.selector is not None:
                    with self._warned():
                        self.selector.update()
            if self.validations is not None and len(self._records) == plan.steps and plan.steps not in drawn:
                self.warnings.append("the images of the last step are not complete, because a worker was stopped")
        finally:
            if trackers is not None:
                trackers.close(succeeded=bool(self._records))

    def _validate(self, plan: Plan, validations: Validations, trackers: Trackers | None, drawn: list[int]) -> list[int]:
        """Score and log the steps that are complete; returns those in the grid."""
        steps = validations.steps()
        if steps == drawn:
            return steps
        scores = validations.scores()
        for step in steps:
            if plan.spec.evaluation.enabled and step not in scores and not self._stop_scoring.is_set():
                with self._warned():
                    scores[step] = self._score(validations, step)
            if trackers is not None:
                prompts = [request.prompt for request in validation_requests(plan)]
                files = [(prompt, validations.image(step, number)) for number, prompt in enumerate(prompts)]
                trackers.log_validation(step, files, scores.get(step, {}))
        with self._warned():
            draw_course(plan, validations)
        return steps

    def _score(self, validations: Validations, step: int) -> dict[str, float]:
        """Score a step, and store the scores."""
        if self._scorer is None:
            self._scorer = self._open_scorer()
        try:
            scores: dict[str, float] = ray.get(self._scorer.score.remote(validations.images(step)))
        except Exception:
            self._kill_scorer()  # the next try gets a process of its own
            if self.selector is not None and not self._stop_scoring.is_set():
                self.selector.failed(step)
            raise
        with self._storing:
            validations.add_scores(step, scores)
        return scores

    def _open_scorer(self) -> Any:
        arguments = self._context.plan, self._context.folder, self._context.encoder_commits
        return ray.remote(**self._options)(Scorer).remote(*arguments)

    def _kill_scorer(self) -> None:
        # Without a session, for example after Ctrl-C, `ray.kill` would start one.
        if self._scorer is not None and ray.is_initialized():
            ray.kill(self._scorer)
        self._scorer = None

    def choose(self, progressed: Callable[[], object]) -> Choice | None:
        """The weights to publish, after `close`; None if they are those of the last step, as the job asks for.

        What was not scored during training is scored now, however long it takes: the choice must not depend on that.
        If `close` did not wait long enough, the thread ends the score that it computes, and computes no others.

        Args:
            progressed: called after each step that was scored.
        """
        validations, selector = self.validations, self.selector
        if validations is None or selector is None:
            return None
        self._stop_scoring.set()
        scorer = self._open_scorer()

        def score(step: int) -> dict[str, float]:
            scores: dict[str, float] = ray.get(scorer.score.remote(validations.images(step)))
            with self._storing:
                validations.add_scores(step, scores)
            progressed()
            return scores

        try:
            choice = selector.choose(score)
        finally:
            ray.kill(scorer)
        with self._warned():
            draw_course(self._context.plan, validations, choice.step)
        if choice.step is None:
            self.warnings.append(choice.reason)
        return choice

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            warning = f"a validation could not be scored or drawn: {lines[-1]}"
            if warning not in self.warnings:
                self.warnings.append(warning)


@contextlib.contextmanager
def observing(context: Context, plan: Plan, progress_actor: Any, options: dict[str, Any]) -> Iterator[Observer | None]:
    """Follow the training of a stage; None if there is nothing to score or to log.

    Args:
        options: of actors on the driver's node.
    """
    training = plan.spec.training
    if plan.stage or (training.validation is None and not training.trackers):
        yield None
        return
    observer = Observer(context, progress_actor, options)
    observer.start()
    try:
        yield observer
    except Exception:
        observer.close()
        raise
    except BaseException:  # the process is about to be killed
        observer.close(INTERRUPTED_SECONDS)
        raise
    observer.close()
