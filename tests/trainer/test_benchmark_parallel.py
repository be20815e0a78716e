"""Jobs of a benchmark that run at the same time."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from rich.console import Console

from dreambooth_api.errors import UserError
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.benchmark import execute
from dreambooth_trainer.benchmark.execute import check_parallel
from dreambooth_trainer.benchmark.parallel import in_parallel
from dreambooth_trainer.benchmark.progress import job_reporters
from dreambooth_trainer.benchmark.runs import RESULT
from dreambooth_trainer.cluster.hardware import Device, Hardware
from dreambooth_trainer.phases.base import Context

TIMEOUT_SECONDS = 30


def job_with(reportTo: Sequence[str] = (), **cluster: object) -> DreamBoothJob:
    subject = {"class": "dog", "images": {"uri": "./dog"}}
    spec = {"model": {"id": "builtin:sprites"}, "subject": subject, "cluster": cluster}
    spec["training"] = {"reportTo": reportTo} if reportTo else {}
    return DreamBoothJob.model_validate({
        "apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothJob", "metadata": {"name": "a"}, "spec": spec,
    })  # fmt: skip


class Worker:
    """Calls a function; remembers in which threads it was entered, called and left."""

    def __init__(self, function: Callable[[int], int]) -> None:
        self.function = function
        self.threads: set[int] = set()
        self.left = threading.Event()

    def __enter__(self) -> Callable[[int], int]:
        self.threads.add(threading.get_ident())
        return self.call

    def __exit__(self, *_: object) -> None:
        self.threads.add(threading.get_ident())
        self.left.set()

    def call(self, item: int) -> int:
        self.threads.add(threading.get_ident())
        return self.function(item)


def not_interrupted() -> None:
    pytest.fail("interrupted")


def test_each_worker_takes_the_next_item_when_it_is_free() -> None:
    together = threading.Barrier(3, timeout=TIMEOUT_SECONDS)

    def square(item: int) -> int:
        together.wait()
        return item * item

    workers = [Worker(square) for _ in range(3)]
    found = dict(in_parallel(range(9), workers, not_interrupted))
    assert found == {item: item * item for item in range(9)}
    assert [len(worker.threads) for worker in workers] == [1, 1, 1], "each worker has its own thread"
    assert len({threading.get_ident()}.union(*(worker.threads for worker in workers))) == 4
    assert all(worker.left.is_set() for worker in workers)


def test_one_worker_runs_on_the_thread_of_the_caller() -> None:
    """There, Ctrl-C and SIGTERM end a job in order."""
    worker = Worker(lambda item: -item)
    assert list(in_parallel([1, 2], [worker], not_interrupted)) == [(1, -1), (2, -2)]
    assert worker.threads == {threading.get_ident()}
    assert worker.left.is_set()


def test_after_an_error_what_runs_is_completed_and_nothing_else_begins() -> None:
    begun: list[int] = []
    both = threading.Barrier(2, timeout=TIMEOUT_SECONDS)

    def call(item: int) -> int:
        begun.append(item)
        both.wait()
        if item == 1:
            raise StopIteration("item 1")  # any error, also one that ends iterators
        while not any(worker.left.is_set() for worker in workers):  # until that of item 1 has been left
            time.sleep(0.01)
        return item

    workers = [Worker(call), Worker(call)]
    found: list[int] = []
    with pytest.raises(RuntimeError, match="StopIteration"):
        for _, result in in_parallel([0, 1, 2, 3], workers, not_interrupted):
            found.append(result)
    assert sorted(begun) == [0, 1]
    assert found == [0]


def test_a_caller_that_stops_interrupts_the_workers_and_waits_for_their_end() -> None:
    interrupted = threading.Event()

    def call(item: int) -> int:
        if item:
            assert interrupted.wait(TIMEOUT_SECONDS)
            raise KeyboardInterrupt
        return item

    workers = [Worker(call), Worker(call)]
    outcomes = in_parallel(range(5), workers, interrupted.set)
    assert next(outcomes) == (0, 0)
    outcomes.close()  # pyright: ignore[reportAttributeAccessIssue] - a generator
    assert all(worker.left.is_set() for worker in workers)


def test_a_caller_that_stops_does_not_wait_long_for_a_worker_that_hangs() -> None:
    never = threading.Event()
    workers = [Worker(lambda item: never.wait(TIMEOUT_SECONDS) if item else item) for _ in range(2)]
    outcomes = in_parallel(range(3), workers, lambda: None, grace_seconds=0.1)
    assert next(outcomes) == (0, 0)
    outcomes.close()  # pyright: ignore[reportAttributeAccessIssue] - a generator
    assert not any(worker.left.is_set() for worker in workers), "they still run"
    never.set()


@pytest.mark.parametrize(
    ("gpus", "cluster", "parallel", "message"),
    [
        (0, {"workers": 1}, 3, "--parallel: 3: needs 3 cores, 1 for each job, and this machine has 2; set at most 2"),
        (0, {"workers": 2}, 2, "needs 4 cores, 2 for each job, and this machine has 2; set at most 1"),
        (1, {"workers": 2}, 3, "needs 6 GPUs, 2 for each job, and this machine has 4; set at most 2"),
        (1, {"elastic": {"minWorkers": 1, "maxWorkers": 4}}, 2, "needs 8 GPUs, 4 for each job"),
    ],
)
def test_more_jobs_than_the_machine_has_room_for_are_rejected(
    monkeypatch: pytest.MonkeyPatch, gpus: int, cluster: dict[str, object], parallel: int, message: str
) -> None:
    """Ray would wait for GPUs or cores that never come."""
    monkeypatch.setattr(execute, "query_workers", lambda _: Hardware(gpus, "", None, bf16=True))
    monkeypatch.setattr(execute, "local_devices", lambda: ([Device("A100", 80, bf16=True)] * 4, ""))
    monkeypatch.setattr(execute, "machine_cores", lambda: 2)
    with pytest.raises(UserError) as caught:
        check_parallel(job_with(**cluster), parallel)
    assert message in str(caught.value)
    check_parallel(job_with(workers=1), 2)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_parallel(job_with(**cluster), parallel)


@pytest.mark.parametrize(("trackers", "names"), [(["wandb"], "wandb"), (["mlflow", "wandb"], "mlflow and wandb")])
def test_trackers_with_one_run_in_a_process_need_one_job_at_a_time(trackers: list[str], names: str) -> None:
    job = job_with(workers=1, reportTo=trackers)
    with pytest.raises(UserError, match=f"--parallel: 2: is not possible with {names}, which have one run"):
        check_parallel(job, 2)
    check_parallel(job, 1)


def report_phase(console: Console, parallel: int, while_running: Callable[[], object] = lambda: None) -> None:
    with job_reporters(console, parallel) as reporter_of, reporter_of("dog[red]6\x1b, Full") as reporter:
        with reporter.phase(TrainerPhase.TRAIN) as progress:
            progress.total(100)
            progress.done(7, loss=0.25)
            while_running()
        reporter.note("a warning")


def test_a_job_at_a_time_is_reported_as_by_run() -> None:
    text = io.StringIO()
    report_phase(Console(file=text, width=100), 1)
    assert text.getvalue().startswith("\ndog[red]6, Full\nTrain       7 in 0.0 s  loss 0.25\n")


def test_jobs_at_the_same_time_have_a_bar_each_and_messages_with_their_title() -> None:
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=True, color_system=None)
    bars_at: list[str] = []
    report_phase(console, 2, lambda: (time.sleep(0.5), bars_at.append(text.getvalue())))
    (shown,) = bars_at
    assert "\x1b, Full" not in shown, "names are shown without control codes"
    bar = shown.splitlines()[-1]
    assert all(part in bar for part in ("dog[red]6, Full", "Train", "7/100", "loss 0.25")), bar
    assert "dog[red]6, Full: a warning" in text.getvalue()
    lines = io.StringIO()
    report_phase(Console(file=lines, width=120), 2)
    assert lines.getvalue() == "dog[red]6, Full: a warning\n", "without a terminal there are no bars"


def test_the_errors_of_all_jobs_are_shown() -> None:
    text = io.StringIO()
    with job_reporters(Console(file=text, width=120), 2) as reporter_of:
        for title in ("a", "b"):
            with contextlib.suppress(ValueError), reporter_of(title):
                raise ValueError(f"of {title}")
    assert text.getvalue() == "a: failed: of a\nb: failed: of b\n"


RECORDS = {TrainerPhase.EVALUATE: {"encoderCommits": {"facebook/dino-vits16": "1234567"}}}


class FakePool:
    """Remembers with how many jobs it shares the machine, and whether it was stopped."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.freed, self.stopped = jobs, 0, False

    def free_memory(self, release_models: Callable[[], None]) -> None:
        del release_models
        self.freed += 1

    def stop(self) -> None:
        self.stopped = True


def replace_jobs(monkeypatch: pytest.MonkeyPatch, **replaced: Callable[..., Any]) -> dict[str, Any]:
    """Replace what plans and runs a job, by default with mocks, which are returned."""
    names = (
        "check_runs",
        "read_run",
        "Context",
        "collect_result",
        "atomic_write",
        "prepare_job",
        "worker_pool",
        "run_job",
    )
    used: dict[str, Any] = {name: Mock() for name in names}
    used["run_job"] = Mock(return_value=RECORDS)
    used |= {"machine_cores": lambda: 8, "ray_cluster": contextlib.nullcontext, **replaced}
    for name, value in used.items():
        monkeypatch.setattr(execute, name, value)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    return used


@pytest.mark.parametrize(("jobs", "parallel", "pools_expected"), [(6, 2, 2), (2, 8, 2), (3, 1, 1)])
def test_each_thread_of_jobs_has_one_pool_with_its_share_which_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jobs: int, parallel: int, pools_expected: int
) -> None:
    pools: list[FakePool] = []
    shares: list[int] = []
    together = threading.Barrier(pools_expected, timeout=TIMEOUT_SECONDS)

    def prepare(job: DreamBoothJob, share: int) -> Mock:
        del job
        shares.append(share)
        return Mock()

    def make_pool(prepared: Mock, share: int) -> FakePool:
        del prepared
        pools.append(FakePool(share))
        return pools[-1]

    def run_job(*_: object) -> object:
        together.wait()
        return RECORDS

    replace_jobs(monkeypatch, prepare_job=prepare, worker_pool=make_pool, run_job=run_job)
    runs: list[Any] = [Mock(title=str(number), root=tmp_path, job=job_with(workers=1)) for number in range(jobs)]
    finished: list[Any] = []
    threads: set[int] = set()

    def on_result(run: object, result: object) -> None:
        del result
        finished.append(run)
        threads.add(threading.get_ident())

    execute.run_all(
        Mock(), runs, tmp_path, Console(quiet=True), parallel=parallel, keep_models=True, on_result=on_result
    )
    assert sorted(map(id, finished)) == sorted(map(id, runs))
    assert threads == {threading.get_ident()}, "results are written by one thread"
    assert shares == [pools_expected] * jobs
    assert [pool.jobs for pool in pools] == [pools_expected] * pools_expected
    assert sum(pool.freed for pool in pools) == jobs - pools_expected, "before each job but the first"
    assert all(pool.stopped for pool in pools)


def run_one(run: object, store: Path) -> None:
    runs: list[Any] = [run]
    execute.run_all(Mock(), runs, store, Console(quiet=True), parallel=1, keep_models=True, on_result=lambda *_: None)


def test_an_interrupted_job_has_no_result_of_other_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its images are no longer in the folder."""
    replace_jobs(monkeypatch, run_job=Mock(side_effect=KeyboardInterrupt))
    (tmp_path / RESULT).write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        run_one(Mock(root=tmp_path, job=job_with(workers=1)), tmp_path)
    assert not (tmp_path / RESULT).exists()


def test_a_result_has_the_key_of_the_images_that_were_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    photo = tmp_path / "photo"
    photo.write_text("first")

    def run_job(*_: object) -> object:
        photo.write_text("edited")
        return RECORDS

    used = replace_jobs(monkeypatch, run_job=run_job)
    run_one(Mock(root=tmp_path, job=job_with(workers=1), key=photo.read_text), tmp_path)
    assert used["collect_result"].call_args.args[0] == "first"


def test_a_job_is_measured_with_the_encoders_of_its_evaluation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also if the Hub has a newer commit by then."""
    used = replace_jobs(monkeypatch, Context=Context)
    run_one(Mock(root=tmp_path, job=job_with(workers=1)), tmp_path)
    assert used["collect_result"].call_args.args[3].encoder_commits == {"facebook/dino-vits16": "1234567"}
