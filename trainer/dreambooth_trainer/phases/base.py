"""The interface of a phase, and the context that a phase runs in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.cluster.pool import WorkerPool
from dreambooth_trainer.families.registry import base_digest
from dreambooth_trainer.images.sources import RawImage
from dreambooth_trainer.planning.plan import Plan, SamplerSettings
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.sampling.pipeline import SamplingConfig
from dreambooth_trainer.store.folder import JobFolder


@dataclass(frozen=True)
class Context:
    """Inputs of all phases of one run.

    Attributes:
        images: of each subject, before preprocessing.
        store: URL of the folder in which jobs share class images.
        keys: digest of the inputs of each phase, by phase. All keys are known before the first phase runs.
        pool: worker processes that generate, encode and score images.
        class_images: the job's own ones, before preprocessing, at most as many as the plan uses.
        encoder_commits: commits of encoders from the Hub, by ID. Empty before the first phase runs.
    """

    plan: Plan
    folder: JobFolder
    images: tuple[tuple[RawImage, ...], ...]
    store: str
    keys: Mapping[TrainerPhase, str]
    pool: WorkerPool
    encoder_commits: Mapping[str, str] = field(default_factory=dict[str, str])
    class_images: tuple[RawImage, ...] = ()

    @functools.cached_property
    def base_digest(self) -> str:
        """Digest of the base model's weights and configuration. The driver does not download the weights for it."""
        return base_digest(self.plan.model)

    def sampling_config(self, sampler: SamplerSettings) -> SamplingConfig:
        """Sampling settings of this job for the sampler of class images or of the evaluation."""
        return SamplingConfig(sampler, self.plan.resolution, self.plan.precision, self.plan.sampling_batch_size)


@dataclass(frozen=True)
class Phase:
    """One step of a job.

    Attributes:
        inputs: everything that the output depends on, except the code. A finished phase with equal inputs is skipped.
        complete: whether the output of a finished phase still exists. If not, the phase runs again.
        run: runs the phase. It can be interrupted and restarted at any point. The result is kept in the completion
            record of the phase.
    """

    name: TrainerPhase
    inputs: Callable[[Context], JsonValue]
    complete: Callable[[Context], bool]
    run: Callable[[Context, PhaseProgress], dict[str, JsonValue]]
