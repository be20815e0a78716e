"""Gauges of the jobs as they are now, counted from the cache at each scrape. A restart does not change them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dreambooth_api.status import Phase
from dreambooth_operator.controller.observed import CachedJob, LocalRuntime, Runtime
from dreambooth_operator.controller.summary import JobSummary
from dreambooth_operator.machinery.resources import Key

# No runtime and no phase has this name.
UNKNOWN = "Unknown"


class RuntimeLabels:
    """Label values that depend on runtimes. `find` returns a runtime by its key."""

    def __init__(self, find: Callable[[Key], Runtime | LocalRuntime | None]) -> None:
        self._find = find

    def name(self, job: JobSummary) -> str:
        """The DreamBoothRuntime of a job: of a LocalDreamBoothRuntime, which users create, the parent.

        "Unknown" if it has never existed, because a job can name anything.
        """
        if job.started_runtime:
            return job.started_runtime
        runtime = self._find(job.runtime)
        if isinstance(runtime, LocalRuntime):
            runtime = self._find(Key("", runtime.spec.parent)) if runtime.spec else None
        return runtime.name if runtime else UNKNOWN

    def gpus(self, job: JobSummary) -> int:
        """Number of GPUs of all workers of a job."""
        runtime, per_worker = self._find(job.runtime), None
        if isinstance(runtime, LocalRuntime) and runtime.spec:
            per_worker = runtime.spec.pods.worker.gpu
            runtime = self._find(Key("", runtime.spec.parent))
        if per_worker is None:
            per_worker = runtime.spec.pods.worker.gpu if isinstance(runtime, Runtime) and runtime.spec else 0
        return job.gpus(per_worker)


class JobsCollector(Collector):
    """Counts cached jobs. Register it once the process leads."""

    def __init__(self, jobs: Mapping[Key, CachedJob], labels: RuntimeLabels) -> None:
        self._jobs = jobs
        self._labels = labels

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The gauges. It is called in a thread."""
        jobs: Counter[tuple[str, str, str]] = Counter()
        gpus: Counter[tuple[str, str]] = Counter()
        speed: dict[tuple[str, str], float] = {}
        for cached in list(self._jobs.values()):  # copied in one step, whatever the event loop does
            job = cached.summary
            runtime = self._labels.name(job)
            jobs[job.namespace, job.phase or UNKNOWN, runtime] += 1
            if job.phase is Phase.RUNNING:
                gpus[job.namespace, runtime] += self._labels.gpus(job)
            if job.steps_per_second is not None:
                key = (job.namespace, runtime)
                speed[key] = speed.get(key, 0.0) + job.steps_per_second
        yield _gauge("dreambooth_jobs", "Number of DreamBoothJobs.", ("namespace", "phase", "runtime"), jobs)
        place = ("namespace", "runtime")
        yield _gauge("dreambooth_gpus", "Number of GPUs of the workers of running jobs.", place, gpus)
        help_text = "Optimizer steps per second, summed over the jobs that train."
        yield _gauge("dreambooth_training_steps_per_second", help_text, place, speed)


def _gauge(
    name: str, help_text: str, labels: tuple[str, ...], values: Counter[tuple[str, ...]] | dict[tuple[str, str], float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
