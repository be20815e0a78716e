"""`dreambooth run`: runs a job on this machine, or on the Ray cluster at RAY_ADDRESS."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from dreambooth_api.environment import BELOW_THRESHOLDS, INVALID_INPUT, OUT_OF_MEMORY, STORE
from dreambooth_api.errors import ThresholdError, UserError
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.uris import hub_repository, is_url
from dreambooth_trainer.cli import options
from dreambooth_trainer.cluster.memory_errors import InsufficientMemoryError
from dreambooth_trainer.jobfile.fromphotos import save_job
from dreambooth_trainer.progress.console import Reporter, choose_reporter
from dreambooth_trainer.progress.forwarding import ForwardingReporter
from dreambooth_trainer.progress.http import OperatorReporter, operator_from_environment
from dreambooth_trainer.progress.log import LogReporter
from dreambooth_trainer.store.attempt_log import AttemptLog
from dreambooth_trainer.store.claim import claim_output
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.status_file import StatusReporter


@click.command()
@options.job_source
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the job. Defaults to spec.output.uri if it is local, else out/<name>.",
)
@click.option(
    "--store", help=f"Folder or URL of shared class images. Defaults to {STORE}, else the user's cache folder."
)
@options.save
def run(job: options.JobSource, out: Path | None, store: str | None, save: Path | None) -> None:
    """Run a job: generate class images, train, evaluate and publish.

    JOB is a job file, or photos with --class: a folder, or a URI as in subject.images.uri.
    """
    start, log = time.monotonic(), AttemptLog()
    # The outer one ends last: when the status says that the job has ended, its log is complete.
    with contextlib.ExitStack() as outer, contextlib.ExitStack() as stack:
        stack.enter_context(log.recording())
        operator = operator_from_environment()
        reporter: Reporter = LogReporter(choose_reporter(Console()), log.write)
        if operator is not None:
            reporter = stack.enter_context(reporting(OperatorReporter(reporter, operator)))
        loaded = job.read()
        if save:
            save_job(loaded, save)
        folder = JobFolder((out or default_folder(loaded)).resolve())
        claim_output(loaded, folder)
        if operator is None:
            outer.enter_context(folder.locked())
        uri = loaded.spec.output.uri
        # Not to the Hub, where each change is a commit that remains.
        uploaded = uri is not None and is_url(uri) and hub_repository(uri) is None
        log.open(folder.root, uri if uploaded else None)
        if operator is None:  # after the log, so that a running attempt has one
            reporter = outer.enter_context(reporting(StatusReporter(reporter, folder, loaded)))
        # Imported here, so that errors in the file are reported at once: importing torch and Ray takes seconds.
        from dreambooth_trainer.cluster.capacity import wait_for_capacity
        from dreambooth_trainer.cluster.session import has_address, ray_cluster
        from dreambooth_trainer.planning.describe import describe
        from dreambooth_trainer.runner import prepare_job, run_job, run_phases

        if has_address():
            stack.enter_context(ray_cluster())
            wait_for_capacity(loaded.spec.cluster, reporter.note)
        prepared = prepare_job(loaded)
        if isinstance(reporter, ForwardingReporter):
            reporter.pinned(prepared.plan.model)
        store_folder, warning = options.store_url(store)
        warnings = [*prepared.warnings, *([warning] if warning else [])]
        reporter.note("\n".join([describe(prepared.planned), *(f"note: {warning}" for warning in warnings)]))
        try:
            # Until the pod of an earlier attempt has ended, it may hold the lock.
            (run_phases if operator is None else run_job)(prepared, folder, store_folder, reporter)
        except ThresholdError:
            _note_verdict(reporter, folder)
            raise
        _note_verdict(reporter, folder)
        reporter.note(f"\nReport  {folder.report}\nModel   {folder.model}\nTime    {time.monotonic() - start:.0f} s")


def _note_verdict(reporter: Reporter, folder: JobFolder) -> None:
    from dreambooth_trainer.report.scores import read_verdict
    from dreambooth_trainer.report.verdict import verdict_lines

    if found := read_verdict(folder):
        reporter.note("\n".join(("", *verdict_lines(found))))


@contextlib.contextmanager
def reporting(reporter: OperatorReporter | StatusReporter) -> Iterator[ForwardingReporter]:
    """Report until the block ends. The last message has the reason of a failure."""
    with reporter:
        try:
            yield reporter
        except ThresholdError as error:
            reporter.failed(BELOW_THRESHOLDS, str(error), retryable=False)
            raise
        except InsufficientMemoryError as error:
            reporter.failed(OUT_OF_MEMORY, str(error), retryable=False)
            raise
        except UserError as error:
            reporter.failed(INVALID_INPUT, str(error), retryable=False)
            raise
        except Exception as error:
            cause = getattr(error, "cause", None) or error  # errors of Ray workers are wrapped
            reporter.failed(type(cause).__name__, str(cause), retryable=True)
            raise


def default_folder(job: DreamBoothJob) -> Path:
    """The folder of a job without --out: its output if it is local, else out/<name>."""
    uri = job.spec.output.uri
    if uri is not None and not is_url(uri):
        return Path(uri)
    return Path("out") / job.metadata.name
