"""Metrics of jobs: counted once, whoever leads, and with a bounded number of label values."""

from __future__ import annotations

import asyncio
import copy
import re
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import ClientSession
from prometheus_client import CollectorRegistry, generate_latest
from scenarios import fail, running, succeed
from simulation import RUNTIME, START, World, make_job

from dreambooth_api.localruntime import LocalRuntimeSpec
from dreambooth_api.status import Failure, JobStatus, TrainerPhase
from dreambooth_operator.controller.actions import Action, WriteStatus
from dreambooth_operator.controller.observed import CachedJob, Job, LocalRuntime, Runtime
from dreambooth_operator.controller.summary import JobSummary, summarize_job
from dreambooth_operator.machinery.metrics import Metrics
from dreambooth_operator.machinery.resources import Key
from dreambooth_operator.machinery.serving import health_app, serving
from dreambooth_operator.metrics.history import JobHistory
from dreambooth_operator.metrics.reasons import KNOWN
from dreambooth_operator.metrics.state import JobsCollector, RuntimeLabels

DOCS = Path(__file__).resolve().parents[2] / "docs"
TROUBLESHOOTING = DOCS / "troubleshooting.md"
MONITORING = DOCS / "operations" / "monitoring.md"
PLACE = {"namespace": "team", "runtime": "default"}


LOCAL = LocalRuntime("mine", LocalRuntimeSpec.model_validate({"parent": "default", "pods": {"worker": {"gpu": 3}}}))


def find(key: Key) -> Runtime | LocalRuntime | None:
    return {Key("", "default"): RUNTIME, Key("a", "mine"): LOCAL}.get(key)


def summary_of(job: Job) -> JobSummary:
    spec = job.spec.model_dump(mode="json", by_alias=True) if job.spec else {}
    status = job.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return summarize_job({"metadata": {"namespace": job.key.namespace}, "spec": spec, "status": status})


class ObservedWorld(World):
    """A world whose controller has metrics. `restart` replaces the process: its counters are lost."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.registries: list[CollectorRegistry] = []
        self.key = job.key
        self.restart()

    def restart(self) -> None:
        self.registries.append(CollectorRegistry())
        self.history = JobHistory(self.registries[-1], RuntimeLabels(find), lambda: self.now)

    def reconcile(self, max_actions: int | None = None) -> int:
        self.history.seen(self.key, summary_of(self.job) if self.job else None)
        return super().reconcile(max_actions) if self.job else 0

    def act(self, snapshot: object, action: Action, *, first: bool) -> None:
        before = self.job.status if self.job else JobStatus()
        super().act(snapshot, action, first=first)  # type: ignore[arg-type]
        if isinstance(action, WriteStatus) and self.job:
            self.history.written(self.key, before, self.job.status)

    def total(self, name: str, **labels: str) -> float:
        """The sum over all processes."""
        values = [registry.get_sample_value(name, {**PLACE, **labels}) for registry in self.registries]
        return sum(value or 0 for value in values)


def next_attempt(world: ObservedWorld) -> None:
    world.advance(60)
    world.reconcile()
    world.collect()
    world.reconcile()
    assert world.status.attempts == 2


@pytest.fixture
def world() -> ObservedWorld:
    world = ObservedWorld(make_job())
    world.reconcile()
    return world


@pytest.mark.parametrize("restarts", [False, True])
def test_a_job_is_counted_once_also_if_the_operator_restarts(world: ObservedWorld, restarts: bool) -> None:
    def happens(seconds: float) -> None:
        world.advance(seconds)
        if restarts:
            world.restart()
        world.reconcile()
        world.reconcile()

    world.advance(20)
    running(world)
    world.reconcile()
    world.report(TrainerPhase.ENCODE, class_images={"wanted": 5, "reused": 3, "generated": 2})
    happens(30)
    world.report(TrainerPhase.EVALUATE)
    happens(100)
    world.report_all()
    succeed(world)
    happens(40)
    assert world.total("dreambooth_jobs_finished_total", phase="Succeeded") == 1
    assert world.total("dreambooth_jobs_finished_total", phase="Failed") == 0
    assert world.total("dreambooth_job_phase_seconds_count", phase="Running") == 1
    assert world.total("dreambooth_job_phase_seconds_sum", phase="Running") == 170
    assert world.total("dreambooth_job_queue_seconds_sum") == 20
    assert world.total("dreambooth_gpu_seconds_total") == 170, "the runtime's default is one GPU"
    assert world.total("dreambooth_class_images_total", source="reused") == 3
    assert world.total("dreambooth_class_images_total", source="generated") == 2
    phases = {phase: world.total("dreambooth_job_trainer_phase_seconds_sum", phase=phase) for phase in TrainerPhase}
    assert (phases["ClassImages"], phases["Train"], phases["Evaluate"]) == (30, 100, 40)


def test_failed_attempts_are_counted_by_reason(world: ObservedWorld) -> None:
    running(world)
    world.reconcile()
    world.advance(10)
    fail(world)
    world.reconcile()
    assert world.total("dreambooth_attempt_failures_total", reason="AppFailed") == 1
    assert world.total("dreambooth_jobs_finished_total", phase="Failed") == 0
    next_attempt(world)
    running(world)
    world.report(failure=Failure(reason="RayTaskError(ZeroDivisionError)", message="x", retryable=False))
    fail(world)
    world.reconcile()
    assert world.total("dreambooth_attempt_failures_total", reason="Other") == 1
    assert world.total("dreambooth_jobs_finished_total", phase="Failed") == 1


def test_a_running_job_that_is_deleted_has_used_its_gpus(world: ObservedWorld) -> None:
    running(world)
    world.reconcile()
    world.reconcile()
    world.advance(60)
    world.delete()
    for _ in range(2):
        world.reconcile()
    assert world.total("dreambooth_gpu_seconds_total") == 60


def test_class_images_of_a_later_attempt_are_not_reused_from_other_jobs(world: ObservedWorld) -> None:
    running(world)
    fail(world)
    world.reconcile()
    next_attempt(world)
    running(world)
    world.report(TrainerPhase.ENCODE, class_images={"wanted": 5, "reused": 4, "generated": 1})
    world.reconcile()
    assert world.total("dreambooth_class_images_total", source="reused") == 0
    assert world.total("dreambooth_class_images_total", source="generated") == 1


def stored(name: str, phase: str, **status: object) -> dict[str, object]:
    """A job as the API server sends it."""
    return {
        "metadata": {"namespace": name},
        "spec": {"runtimeRef": {"name": "default"}, "cluster": {"workers": 2}},
        "status": {"phase": phase, **status},
    }


def scrape(*jobs: JobSummary) -> str:
    registry, labels = CollectorRegistry(), RuntimeLabels(find)
    cache = {Key("a", str(number)): CachedJob(b"", b"", job) for number, job in enumerate(jobs)}
    registry.register(JobsCollector(cache, labels))
    return generate_latest(registry).decode()


def test_gauges_show_the_jobs_as_they_are_now() -> None:
    speed = {"training": {"stepsPerSecond": 1.5, "worldSize": 7}}
    jobs = [stored("a", "Running", **speed), stored("a", "Running", **speed), stored("b", "Succeeded", **speed)]
    text = scrape(*map(summarize_job, jobs))
    assert 'dreambooth_jobs{namespace="a",phase="Running",runtime="default"} 2.0' in text
    assert 'dreambooth_jobs{namespace="b",phase="Succeeded",runtime="default"} 1.0' in text
    assert 'dreambooth_gpus{namespace="a",runtime="default"} 4.0' in text
    assert 'dreambooth_training_steps_per_second{namespace="a",runtime="default"} 3.0' in text
    assert text.count('namespace="b"') == 1


def test_an_elastic_job_uses_as_many_gpus_as_it_has_processes() -> None:
    job = stored("a", "Running", training={"worldSize": 3})
    job["spec"] = {"cluster": {"workers": 8, "elastic": {"minWorkers": 1, "maxWorkers": 4}}}
    assert summarize_job(job).gpus(1) == 3
    assert summarize_job(job).gpus(0) == 0
    waiting = copy.deepcopy(job)
    waiting["status"] = {}
    assert summarize_job(waiting).gpus(1) == 4


def test_a_name_of_a_user_is_no_label() -> None:
    made_up = {"spec": {"runtimeRef": {"name": "made-up"}}, "status": {"phase": "Rejected"}}
    gone = {"status": {"phase": "Failed", "startedWith": {"runtime": {"name": "gone"}}}}
    newer = {"status": {"phase": "Distilling"}}
    jobs = [{"metadata": {"namespace": "a", "name": "dog"}, **job} for job in (made_up, gone, newer)]
    text = scrape(*map(summarize_job, jobs))
    assert "made-up" not in text
    assert "dog" not in text
    assert 'phase="Rejected",runtime="Unknown"' in text
    assert 'runtime="gone"' in text
    assert 'phase="Unknown",runtime="default"' in text


def test_a_local_runtime_counts_as_its_parent() -> None:
    local = {"runtimeRef": {"kind": "LocalDreamBoothRuntime", "name": "mine"}, "cluster": {"workers": 2}}
    started = {"phase": "Running", "startedWith": {"runtime": {"name": "mine", "parent": "default"}}}
    waiting = {"metadata": {"namespace": "a"}, "spec": local, "status": {"phase": "Queued"}}
    elsewhere = {"metadata": {"namespace": "b"}, "spec": local, "status": {"phase": "Rejected"}}
    text = scrape(*map(summarize_job, [waiting, {**waiting, "status": started}, elsewhere]))
    assert "mine" not in text
    assert 'dreambooth_jobs{namespace="a",phase="Queued",runtime="default"} 1.0' in text
    assert 'dreambooth_jobs{namespace="b",phase="Rejected",runtime="Unknown"} 1.0' in text
    assert 'dreambooth_gpus{namespace="a",runtime="default"} 6.0' in text


def test_reasons_are_those_of_the_documentation() -> None:
    text = TROUBLESHOOTING.read_text()
    section = text[text.index("## Failed attempts and jobs") : text.index("## Reasons of other conditions")]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == KNOWN


def test_every_metric_of_jobs_is_documented() -> None:
    registry = CollectorRegistry()
    registry.register(JobsCollector({}, RuntimeLabels(find)))
    JobHistory(registry, RuntimeLabels(find), lambda: START)
    text = MONITORING.read_text()
    section = text[text.index("## Metrics of jobs") :]
    rows = re.findall(r"^\| `(dreambooth_\w+?)(?:_total)?(?:\{\w+\})?` \| (\w+) \|", section, re.MULTILINE)
    assert {(family.name, family.type) for family in registry.collect()} == set(rows)


async def test_a_scrape_does_not_occupy_the_event_loop() -> None:
    other_request_served, waited = threading.Event(), list[bool]()

    def read() -> float:
        waited.append(other_request_served.wait(10))
        return 1

    metrics = Metrics("test")
    metrics.gauge("slow", "A gauge that takes long to read.", read)
    async with serving(health_app(metrics, lambda: True), "127.0.0.1", 0) as port, ClientSession() as session:
        scraping = asyncio.ensure_future(session.get(f"http://127.0.0.1:{port}/metrics"))
        async with session.get(f"http://127.0.0.1:{port}/healthz") as response:
            assert response.status == 200
            other_request_served.set()
        assert "test_slow 1.0" in await (await scraping).text()
    assert waited == [True]


def test_no_series_are_spent_on_times_of_creation() -> None:
    registry = CollectorRegistry()
    JobHistory(registry, RuntimeLabels(find), lambda: START).seen(
        Key("a", "dog"), summarize_job(stored("a", "Running"))
    )
    assert "_created" not in generate_latest(registry).decode()


def test_series_of_a_namespace_without_jobs_end_after_a_day() -> None:
    """Namespaces of users and pull requests come and go."""
    registry, now = CollectorRegistry(), [START]
    history = JobHistory(registry, RuntimeLabels(find), lambda: now[0])
    job = summarize_job(stored("a", "Running"))
    history.seen(Key("a", "dog"), job)
    history.seen(Key("a", "dog"), job)
    history.seen(Key("a", "cat"), job)
    history.seen(Key("b", "dog"), summarize_job(stored("b", "Running")))

    def namespaces() -> set[str]:
        return set(re.findall(r'namespace="(\w+)"', generate_latest(registry).decode()))

    history.seen(Key("a", "dog"), None)
    now[0] += timedelta(days=2)
    history.seen(Key("b", "none"), None)
    assert namespaces() == {"a", "b"}, "a job is left"
    history.seen(Key("a", "cat"), None)
    now[0] += timedelta(hours=23)
    history.seen(Key("b", "none"), None)
    assert namespaces() == {"a", "b"}, "the last values can be scraped"
    now[0] += timedelta(hours=2)
    history.seen(Key("b", "none"), None)
    assert namespaces() == {"b"}
    history.seen(Key("a", "dog"), job)
    assert namespaces() == {"a", "b"}
    history.seen(Key("a", "dog"), None)
    history.seen(Key("a", "dog"), job)
    now[0] += timedelta(days=2)
    history.seen(Key("b", "none"), None)
    assert namespaces() == {"a", "b"}, "it has a job again"
