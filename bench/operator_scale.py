"""Scalability of the operator, with the target beside each number, compared with an equivalent kopf operator.

Run `python bench/operator_scale.py [--jobs 10000] [--kopf PYTHON]` with `tests/cluster` on PYTHONPATH. On a real API
server it creates running jobs, each with its RayJob, RayCluster, head and worker pod, then starts an operator with the
credentials of a pod and measures:

- adoption: seconds until all jobs are reconciled, the slowest response to a request meanwhile (the latency of the event
  loop), memory, and writes until then and during the following minute. Beside it, how long a client takes that receives
  the same objects and discards them;
- applies: how soon each of many jobs, which are created at a constant rate, has its RayJob. Then the same number of
  jobs again for `bench/bare_client.py` in place of the operator, which makes the same writes and decides nothing: an
  estimate of the best that this API server allows on this machine.

The API server, etcd and this program share the machine with the operator. With the Python of an environment that has
kopf (`pip install kopf`), it also runs `bench/operator_kopf.py` on the same jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import bare_client
from devcluster import ControlPlane
from devcluster.plane import free_ports
from scale_jobs import ROOT, fill, job_object, prepare

from dreambooth_operator.machinery.client import Api
from dreambooth_operator.resources import JOBS, RAY_JOBS

HEALTH_PORT = free_ports(1)[0]
CONCURRENCY = 64
# A measurement without progress for so long has failed.
STALLED_SECONDS = 120
PRINT_SECONDS = 5
MAX_ADOPT_SECONDS, MAX_MIB = 5, 95
MIN_RAY_JOBS_PER_SECOND, MAX_P99_SECONDS = 100, 2
# The operator as in a pod: the token and the CA certificate of a service account, in the folder of the first argument.
IN_CLUSTER = """
import pathlib, sys
from dreambooth_operator.machinery import connection
connection._ACCOUNT = pathlib.Path(sys.argv.pop(1))
from dreambooth_operator.app import main
sys.exit(main())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000, help="running jobs to adopt")
    parser.add_argument("--applies", type=int, default=1000, help="jobs to create while the operator runs; 0: none")
    parser.add_argument("--per-second", type=float, default=MIN_RAY_JOBS_PER_SECOND, help="rate of these creations")
    parser.add_argument("--quiet-seconds", type=int, default=60, help="period in which writes are counted")
    parser.add_argument("--kopf", metavar="PYTHON", help="also measure the kopf operator, with this Python")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, end)
    with ControlPlane() as plane:
        prepare(plane)
        fill(plane, given.jobs)
        started = time.monotonic()
        asyncio.run(bare_client.read(str(plane.kubeconfig)))
        read_seconds = time.monotonic() - started
        before = writes(plane)
        with operator(plane) as process:
            ours = adopt(plane, "ours", process, our_count, given.jobs, given.quiet_seconds, before)
            report(adoption_rows(*ours))
            print(f"operator / bare client, {read_seconds:.1f} s: {ours[0] / read_seconds:.2f} x the time", flush=True)
            if given.applies:
                per_second, p99 = asyncio.run(apply_jobs(plane, process, "new-", given.applies, given.per_second))
                report(apply_rows(per_second, p99))
        if given.applies:
            command = [sys.executable, str(ROOT / "bench" / "bare_client.py"), str(plane.kubeconfig), "bare-"]
            with running(plane, "bare client", command, stdout=subprocess.PIPE) as process:
                print_first_line(process)
                bare = asyncio.run(apply_jobs(plane, process, "bare-", given.applies, given.per_second))
            print(
                f"operator / bare client: {per_second / bare[0]:.2f} x the RayJobs per second, "
                f"{p99 / bare[1]:.2f} x the p99",
                flush=True,
            )
        if given.kopf:
            script = ROOT / "bench" / "operator_kopf.py"
            command = [given.kopf, str(script), str(plane.kubeconfig), str(HEALTH_PORT)]
            before = writes(plane)
            with running(plane, "kopf", command) as process:
                kopf = adopt(plane, "kopf", process, kopf_count, given.jobs, given.quiet_seconds, before)
            print(
                f"kopf / ours: {kopf[0] / ours[0]:.1f} x the time, {kopf[1] / ours[1]:.1f} x the memory, "
                f"{kopf[2]:.0f} writes against {ours[2]:.0f}"
            )


def end(*_: object) -> NoReturn:
    """SIGTERM, for example of `timeout`, ends the processes of this run as well, and is reported."""
    sys.exit("operator_scale.py: ended by SIGTERM before it was done")


Row = tuple[str, float, float, float]


def adoption_rows(seconds: float, mib: float, written: float) -> list[Row]:
    return [
        ("adoption, s", seconds, MAX_ADOPT_SECONDS, seconds / MAX_ADOPT_SECONDS),
        ("memory, MiB", mib, MAX_MIB, mib / MAX_MIB),
        ("writes", written, 0, written),
    ]


def apply_rows(per_second: float, p99: float) -> list[Row]:
    return [
        ("RayJobs / s", per_second, MIN_RAY_JOBS_PER_SECOND, MIN_RAY_JOBS_PER_SECOND / per_second),
        ("apply to RayJob, p99, s", p99, MAX_P99_SECONDS, p99 / MAX_P99_SECONDS),
    ]


def report(rows: list[Row]) -> None:
    """Print each number beside its target. A ratio above 1 misses the target."""
    print(f"{'':<26}{'measured':>10}{'target':>10}{'ratio':>8}")
    for name, measured, target, ratio in rows:
        print(f"{name:<26}{measured:>10.2f}{target:>10}{ratio:>8.2f}", flush=True)


class Progress:
    """Progress of a measurement: prints it every few seconds, and raises TimeoutError if it stalls.

    `process` is the operator, without which there is no progress; its log is printed if it has ended.
    """

    def __init__(self, what: str, total: int, process: Operator) -> None:
        self._what, self._total, self._process = what, total, process
        self._started = self._changed = self._printed = time.monotonic()
        self._done = 0.0

    def update(self, done: float) -> None:
        now = time.monotonic()
        if self._process.poll() is not None:
            sys.exit(f"{self._what}: the operator exited ({self._process.returncode}):\n{self._process.log_tail()}")
        if done != self._done:
            self._done, self._changed = done, now
        if now - self._changed > STALLED_SECONDS:
            text = f"{self._what}: {done:.0f} of {self._total}, none in {STALLED_SECONDS} s"
            raise TimeoutError(f"{text}; the operator's log ends:\n{self._process.log_tail()}")
        if now - self._printed > PRINT_SECONDS:
            self._printed = now
            print(f"  {self._what}: {done:.0f} of {self._total} after {now - self._started:.0f} s", flush=True)


class Operator(subprocess.Popen[bytes]):
    """An operator process and its log."""

    def __init__(
        self,
        command: list[str],
        log: Path,
        env: dict[str, str] | None,
        stdin: int | None = None,
        stdout: int | None = None,
    ) -> None:
        self._log = log
        with log.open("wb") as stderr:
            super().__init__(command, stdin=stdin, stdout=stdout, stderr=stderr, env=env)

    def log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


async def concurrently(count: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Call `work` with each number below `count`."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))


def print_first_line(process: Operator) -> None:
    """Wait until a process has printed a line, which says that it is ready, and print the line."""
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        sys.exit(f"{process.args} exited:\n{process.log_tail()}")
    print(line.decode(), end="", flush=True)


@contextmanager
def running(
    plane: ControlPlane, name: str, command: list[str], env: dict[str, str] | None = None, stdout: int | None = None
) -> Iterator[Operator]:
    """A process that is killed at the end."""
    with Operator(command, plane.folder / f"{name}.log", env, stdout=stdout) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def operator(plane: ControlPlane) -> Iterator[Operator]:
    """The operator, with the credentials of a pod."""
    account = plane.folder / "account"
    account.mkdir(exist_ok=True)
    (account / "ca.crt").write_bytes(plane.authority.ca.read_bytes())
    (account / "token").write_text(plane.kubectl("create", "token", "default", "-n", "default", "--duration=8h"))
    url = urlsplit(plane.url)
    env = {**os.environ, "KUBERNETES_SERVICE_HOST": str(url.hostname), "KUBERNETES_SERVICE_PORT": str(url.port)}
    command = [
        sys.executable, "-c", IN_CLUSTER, str(account), "--namespace=", "--host=127.0.0.1",
        f"--health-port={HEALTH_PORT}", "--progress-port=0", "--log-level=WARNING",
    ]  # fmt: skip
    with running(plane, "ours", command, {**env, "HOME": str(plane.folder), "KUBECONFIG": ""}) as process:
        yield process


async def apply_jobs(
    plane: ControlPlane, process: Operator, prefix: str, count: int, per_second: float
) -> tuple[float, float]:
    """RayJobs per second, and the 99th percentile of the seconds from a job's creation to its RayJob.

    `prefix` begins the names of the jobs.
    """
    created, seconds = dict[str, float](), dict[str, float]()
    progress = Progress(f"applies of {prefix}*", count, process)
    async with await Api.connect(str(plane.kubeconfig)) as api:
        watching = asyncio.create_task(watch_ray_jobs(api, created, seconds))
        await asyncio.sleep(1)
        started = time.monotonic()

        async def create(number: int) -> None:
            await asyncio.sleep(started + number / per_second - time.monotonic())
            name = f"{prefix}{number}"
            created[name] = time.monotonic()
            await api.create(JOBS, job_object(name, number))

        await concurrently(count, create)
        created_seconds = time.monotonic() - started
        while len(seconds) < count:
            if watching.done():  # raises its error
                watching.result()
                raise ConnectionError("the watch of RayJobs ended")
            progress.update(len(seconds))
            await asyncio.sleep(0.01)
        total = time.monotonic() - started
        watching.cancel()
    values = sorted(seconds.values())
    p99 = values[min(len(values) - 1, len(values) * 99 // 100)]
    print(
        f"{count} applies of {prefix}* in {created_seconds:.1f} s: {count / total:.0f} RayJobs/s, "
        f"from apply to RayJob {statistics.median(values):.2f} s, p99 {p99:.2f} s"
    )
    return count / total, p99


async def watch_ray_jobs(api: Api, created: dict[str, float], seconds: dict[str, float]) -> None:
    """Record how long after its job each RayJob was created."""
    listed = await api.request("GET", RAY_JOBS.path(), query={"limit": "1"})
    query = {"watch": "true", "resourceVersion": listed["metadata"]["resourceVersion"]}
    async for line in api.lines(RAY_JOBS.path(), query):
        event = json.loads(line)
        name = event["object"]["metadata"]["labels"]["dreambooth.dev/job"]
        if event["type"] == "ADDED" and name in created:
            seconds[name] = time.monotonic() - created[name]


def our_count() -> float:
    found = re.findall(r'^dreambooth_reconciles_total\{result="ok"\} (\S+)', fetch("/metrics"), re.MULTILINE)
    return float(found[0]) if found else 0


def kopf_count() -> float:
    return float(fetch("/") or 0)


def fetch(path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{HEALTH_PORT}{path}", timeout=10) as response:
            return response.read().decode()
    except OSError:
        return ""


def adopt(
    plane: ControlPlane,
    name: str,
    process: Operator,
    count: Callable[[], float],
    jobs: int,
    quiet_seconds: int,
    before: float,
) -> tuple[float, float, float]:
    """Seconds until all jobs are reconciled, resident memory in MiB, and writes from the start to the end.

    `process` has just been started; `before` is the number of writes before that.
    """
    started = time.monotonic()
    done, slowest_seconds = 0.0, 0.0
    progress = Progress(f"{name}: reconciled", jobs, process)
    while done < jobs:
        progress.update(done)
        requested = time.monotonic()
        done = count()
        if done:  # from now on the response time includes the latency of the event loop
            slowest_seconds = max(slowest_seconds, time.monotonic() - requested)
        time.sleep(0.05)
    seconds, cpu = time.monotonic() - started, cpu_seconds(process.pid)
    adopted = writes(plane)
    time.sleep(quiet_seconds)
    memory, quiet = resident_mib(process.pid), writes(plane) - adopted
    print(
        f"{name}: {jobs} jobs reconciled in {seconds:.1f} s, of which {cpu:.1f} s CPU, {memory:.0f} MiB, "
        f"{adopted - before:.0f} writes to adopt them, {quiet:.0f} in {quiet_seconds} s after, "
        f"slowest response meanwhile {slowest_seconds * 1000:.0f} ms",
        flush=True,
    )
    return seconds, memory, adopted - before + quiet


def writes(plane: ControlPlane) -> float:
    """Writes to jobs and RayJobs that the API server has counted."""
    lines = plane.kubectl("get", "--raw", "/metrics").splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("apiserver_request_total{")
        and re.search(r'group="(dreambooth.dev|ray.io)"', line)
        and re.search(r'verb="(PATCH|APPLY|POST|PUT|DELETE)"', line)
    )


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, which depends little on what else runs on the machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
