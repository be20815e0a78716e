"""Everything dies, at random, while jobs run: none is lost, none runs twice, and status tells the truth.

`DREAMBOOTH_CHAOS_STEPS`, `DREAMBOOTH_CHAOS_JOBS` make it longer; `DREAMBOOTH_SEED` chooses the dice.
"""

from __future__ import annotations

import itertools
import os
import random
import time

from conftest import Operator, until
from devcluster import ControlPlane, ProcessError
from fakeray import FakeRay
from test_e2e import Job

STEPS = int(os.environ.get("DREAMBOOTH_CHAOS_STEPS", "25"))
JOBS = int(os.environ.get("DREAMBOOTH_CHAOS_JOBS", "12"))
ENDS = ("Succeeded", "Failed")


def test_nothing_is_lost_and_nothing_runs_twice_while_everything_dies(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    seed = int(os.environ.get("DREAMBOOTH_SEED", random.SystemRandom().randrange(2**31)))
    print(f"again with DREAMBOOTH_SEED={seed}")
    dice = random.Random(seed)
    operators = [operator, Operator(plane, "operator-2").start()]
    jobs = [Job(plane, ray, namespace, f"j{number}", backoffLimit=dice.randint(1, 5)) for number in range(JOBS)]
    ray.autopilot = random.Random(seed)
    try:
        done: dict[str, int] = {}
        for _ in range(STEPS):
            name = disturb(plane, dice, operators, jobs)
            done[name] = done.get(name, 0) + 1
            time.sleep(dice.uniform(0.1, 1.5))
        print(done)
        for job in jobs:
            job.patch({"suspend": False})
        for job in jobs:
            until(f"{job.name} ends", lambda job=job: revive(operators) or job.status.get("phase") in ENDS, 240)
    finally:
        ray.autopilot = None
        operators[1].process.kill()
    for job in jobs:
        check(ray, job)
    until("nothing is left running", lambda: not plane.get("pods", "-n", namespace)["items"])
    # The leader may have been the operator that was just killed, with writes left for its successor to make.
    until("the other operator leads", lambda: revive([operator]) or operator.metric("dreambooth_leader") == 1)
    until("the operator has nothing left to write", lambda: is_quiet(operator, plane, namespace), 60)


def is_quiet(operator: Operator, plane: ControlPlane, namespace: str, seconds: float = 5) -> bool:
    """Whether the operator writes no event and no job for so many seconds."""
    before = [operator.metric("dreambooth_events_total"), versions(plane, namespace)]
    time.sleep(seconds)
    return [operator.metric("dreambooth_events_total"), versions(plane, namespace)] == before


def revive(operators: list[Operator]) -> None:
    """Start what ended by itself, as a kubelet would: on a starved machine a leader loses its lease, and leaves."""
    for operator in operators:
        if operator.process.has_ended:
            operator.process.start()


def disturb(plane: ControlPlane, dice: random.Random, operators: list[Operator], jobs: list[Job]) -> str:
    """Do something nasty; its name."""
    what = dice.choices(
        ["operator", "rayjob", "pod", "suspend", "resume", "kuberay", "apiserver"], [6, 2, 2, 3, 3, 1, 1]
    )[0]
    job = dice.choice(jobs)
    match what:
        case "operator":
            victim = dice.choice(operators)
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
                name = dice.choice(victims)["metadata"]["name"]
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
        assert earlier.ended <= later.started, f"{job.name}: {earlier} and {later} ran at once"
    assert status["attempts"] >= len(runs)
    won = [run.status == "SUCCEEDED" for run in runs]
    if status["phase"] == "Succeeded":
        assert won[-1], f"{job.name} says Succeeded; its runs: {runs}"
    else:
        assert status["failures"] > 0
        # A success that KubeRay never got to read, because its RayJob or head was deleted, is no success.
        reason = job.condition("Failed")["reason"]
        assert reason == "BackoffLimitExceeded", reason


def versions(plane: ControlPlane, namespace: str) -> list[str]:
    return [job["metadata"]["resourceVersion"] for job in plane.get("dbj", "-n", namespace)["items"]]
