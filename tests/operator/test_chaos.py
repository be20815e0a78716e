"""Random failures of all components while jobs run: no job is lost or runs twice, and the status is correct.

`DREAMBOOTH_CHAOS_STEPS` and `DREAMBOOTH_CHAOS_JOBS` set the length; `DREAMBOOTH_SEED` repeats a run.
"""

from __future__ import annotations

import itertools
import os
import random
import time

from devcluster import ControlPlane, ProcessError
from fakeray import FakeRay
from operatorprocess import Operator, until
from test_e2e import Job

STEPS = int(os.environ.get("DREAMBOOTH_CHAOS_STEPS", "25"))
JOBS = int(os.environ.get("DREAMBOOTH_CHAOS_JOBS", "12"))
ENDS = ("Succeeded", "Failed")


def test_no_job_is_lost_or_runs_twice_under_random_failures(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    seed = int(os.environ.get("DREAMBOOTH_SEED", random.SystemRandom().randrange(2**31)))
    print(f"repeat with DREAMBOOTH_SEED={seed}")
    rng = random.Random(seed)
    operators = [operator, Operator(plane, "operator-2").start()]
    jobs = [Job(plane, ray, namespace, f"j{number}", backoffLimit=rng.randint(1, 5)) for number in range(JOBS)]
    ray.autopilot = random.Random(seed)
    try:
        done: dict[str, int] = {}
        for _ in range(STEPS):
            name = disturb(plane, rng, operators, jobs)
            done[name] = done.get(name, 0) + 1
            time.sleep(rng.uniform(0.1, 1.5))
        print(done)
        for job in jobs:
            job.patch({"suspend": False})
        for job in jobs:
            until(
                f"{job.name} finishes",
                lambda job=job: restart_exited(operators) or job.status.get("phase") in ENDS,
                240,
            )
    finally:
        ray.autopilot = None
        operators[1].process.kill()
    for job in jobs:
        check(ray, job)
    until("no pod is left", lambda: not plane.get("pods", "-n", namespace)["items"])
    # The operator that was just killed may have been the leader, with pending writes for its successor.
    until("the other operator leads", lambda: restart_exited([operator]) or operator.metric("dreambooth_leader") == 1)
    until("the operator stops writing", lambda: is_quiet(operator, plane, namespace), 60)


def is_quiet(operator: Operator, plane: ControlPlane, namespace: str, seconds: float = 5) -> bool:
    """Whether the operator writes neither events nor jobs for this time."""
    before = [operator.metric("dreambooth_events_total"), versions(plane, namespace)]
    time.sleep(seconds)
    return [operator.metric("dreambooth_events_total"), versions(plane, namespace)] == before


def restart_exited(operators: list[Operator]) -> None:
    """Restart exited operators, as a kubelet does: on an overloaded machine a leader loses its lease and exits."""
    for operator in operators:
        if operator.process.has_ended:
            operator.process.start()


def disturb(plane: ControlPlane, rng: random.Random, operators: list[Operator], jobs: list[Job]) -> str:
    """Cause a random failure and return its name."""
    what = rng.choices(
        ["operator", "rayjob", "pod", "suspend", "resume", "kuberay", "apiserver"], [6, 2, 2, 3, 3, 1, 1]
    )[0]
    job = rng.choice(jobs)
    match what:
        case "operator":
            victim = rng.choice(operators)
            victim.process.kill()
            victim.process.start()
        case "apiserver":
            plane.apiserver.kill()
            plane.start_apiserver()
        case "kuberay":
            plane.start_kuberay()
        case "suspend" | "resume":
            job.patch({"suspend": what == "suspend"})
        case _:
            victims = job.children(f"{what}s")
            if victims:
                name = rng.choice(victims)["metadata"]["name"]
                try:
                    plane.kubectl("delete", what, name, "-n", job.namespace, "--wait=false")
                except ProcessError as error:
                    assert "not found" in str(error)
    return what


def check(ray: FakeRay, job: Job) -> None:
    runs, status = ray.of(job.name), job.status
    names = [run.ray_job for run in runs]
    assert len(set(names)) == len(names), f"{job.name}: an attempt was submitted twice: {names}"
    for earlier, later in itertools.pairwise(runs):
        assert earlier.ended is not None
        assert earlier.ended <= later.started, f"{job.name}: {earlier} and {later} ran at the same time"
    assert status["attempts"] >= len(runs)
    succeeded = [run.status == "SUCCEEDED" for run in runs]
    if status["phase"] == "Succeeded":
        assert succeeded[-1], f"{job.name} is Succeeded, but its runs are {runs}"
    else:
        assert status["failures"] > 0
        # A run whose RayJob or head was deleted before KubeRay read its success counts as failed.
        reason = job.condition("Failed")["reason"]
        assert reason == "BackoffLimitExceeded", reason


def versions(plane: ControlPlane, namespace: str) -> list[str]:
    return [job["metadata"]["resourceVersion"] for job in plane.get("dbj", "-n", namespace)["items"]]
