"""The shape that all phases share, and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from dreambooth_trainer.cluster.pool import WorkerPool
from dreambooth_trainer.families.registry import local_folder, weights_digest
from dreambooth_trainer.images.sources import RawImage
from dreambooth_trainer.planning.plan import Plan, SamplerSettings
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.sampling.generate import SamplingConfig
from dreambooth_trainer.store.folder import JobFolder


@dataclass(frozen=True)
class Context:
    """One run: what to do, where, with what.

    Attributes:
        images: the subject's images as they were given.
        store: URL of the folder that jobs share class images in.
        keys: by phase, what its output depends on. All are known before the first phase runs.
        pool: the processes that draw, encode and score.
    """

    plan: Plan
    folder: JobFolder
    images: tuple[RawImage, ...]
    store: str
    keys: Mapping[str, str]
    pool: WorkerPool

    @property
    def base(self) -> Path:
        """The base model's folder on this machine."""
        return local_folder(self.plan.model)

    @property
    def base_digest(self) -> str:
        return weights_digest(self.base)

    def style(self, sampler: SamplerSettings) -> SamplingConfig:
        """How this job's pictures are drawn, with one of its samplers."""
        return SamplingConfig(sampler, self.plan.resolution, self.plan.precision, self.plan.sampling_batch_size)


@dataclass(frozen=True)
class Phase:
    """One step of a job.

    Attributes:
        inputs: everything that the output depends on besides the code; equal inputs, no second run.
        complete: whether what a finished phase has left is still there; if not, it runs again.
        run: do it; restartable at any point. What it returns is kept in the phase's marker.
    """

    name: str
    inputs: Callable[[Context], JsonValue]
    complete: Callable[[Context], bool]
    run: Callable[[Context, PhaseProgress], dict[str, JsonValue]]
