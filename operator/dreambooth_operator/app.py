"""`python -m dreambooth_operator`: put the pieces together and run them until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dreambooth_operator.controller.reconciler import Reconciler
from dreambooth_operator.controller.settings import AUDIENCE, Settings
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.lease import Lease, LeaseLostError
from dreambooth_operator.machinery.metrics import Metrics
from dreambooth_operator.machinery.reflector import Reflector
from dreambooth_operator.machinery.resources import Key
from dreambooth_operator.machinery.serving import health_app, serving
from dreambooth_operator.machinery.workers import run_workers
from dreambooth_operator.statusserver.auth import TokenChecker
from dreambooth_operator.statusserver.server import Endpoint

log = logging.getLogger("dreambooth_operator")


@dataclass(frozen=True)
class Options:
    """How one process of the operator runs.

    `namespace` is where its Lease is; empty means no election, for a single process by hand.
    """

    kubeconfig: str | None = None
    namespace: str = ""
    host: str = ""
    health_port: int = 8081
    progress_port: int = 8082
    workers: int = 8
    lease_seconds: float = 15
    settings: Settings = field(default_factory=Settings)


class MirrorError(Exception):
    """A mirror of the API server's objects ended, so that nothing here can be trusted any more."""


async def run(options: Options) -> None:
    """Run one process until cancelled.

    Raises:
        LeaseLostError: another process has taken over.
        MirrorError: a mirror ended.
    """
    metrics = Metrics("dreambooth")
    async with await Api.connect(options.kubeconfig) as api:
        controller = Reconciler(api, options.settings, now=lambda: datetime.now(UTC))
        events = metrics.counter("events", "Events told, by reason.", "reason")
        controller.on_event = lambda event: events.labels(event.reason).inc()
        metrics.gauge("queue_depth", "Jobs that wait to be looked at.", lambda: len(controller.queue))
        metrics.gauge("jobs", "DreamBoothJobs there are.", lambda: controller.job_count)
        endpoint = Endpoint(api, TokenChecker(api, AUDIENCE, clock=time.monotonic), clock=time.monotonic)

        async with (
            serving(health_app(metrics, lambda: controller.is_synced), options.host, options.health_port) as health,
            serving(endpoint.app(), options.host, options.progress_port) as progress,
        ):
            log.info("health on port %d, progress on port %d", health, progress)
            await _beside_mirrors(controller, _work(api, controller, metrics, options))


async def _work(api: Api, controller: Reconciler, metrics: Metrics, options: Options) -> None:
    """Reconcile for ever, once the mirrors are filled and while this process leads."""

    async def reconcile() -> None:
        metrics.leader.set(1)
        await run_workers(controller.queue, controller.reconcile, metrics, count=options.workers)

    for reflector in controller.reflectors:
        await reflector.synced.wait()
    log.info("%d jobs", controller.job_count)
    if options.namespace:
        await _lease(api, options).lead(reconcile)
    else:
        await reconcile()


async def _beside_mirrors(controller: Reconciler, work: Coroutine[None, None, None]) -> None:
    """Run `work` beside the mirrors; the first of them to end ends all."""

    async def mirror(reflector: Reflector[Any]) -> None:
        try:
            await reflector.run()
        except Exception as error:
            raise MirrorError(f"the mirror of {reflector.resource.plural} ended: {error!r}") from error

    tasks = [asyncio.ensure_future(each) for each in (*map(mirror, controller.reflectors), work)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _lease(api: Api, options: Options) -> Lease:
    identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    seconds = options.lease_seconds
    key = Key(options.namespace, "dreambooth-operator")
    return Lease(
        api, key, identity, lease_seconds=seconds, renew_seconds=seconds * 2 / 3, retry_seconds=seconds * 2 / 15
    )


async def _run_until_signal(options: Options) -> int:
    task = asyncio.ensure_future(run(options))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("stopped")
        return 0
    except LeaseLostError as error:
        log.critical("%s; exiting, so that nobody else's work is disturbed", error)
        return 1
    except Exception:  # a bug of ours; a fresh process is better than one that works on half of what it needs
        log.critical("exiting, to be started again", exc_info=True)
        return 1
    return 0


def _options(arguments: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m dreambooth_operator", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    usual = Options()
    own = os.environ.get("POD_NAMESPACE", "")
    parser.add_argument("--kubeconfig", help="file; else $KUBECONFIG, else the pod's service account")
    parser.add_argument("--namespace", default=own, help="where the Lease is; empty runs without election")
    parser.add_argument("--host", default=usual.host, help="address to serve on; empty for all")
    parser.add_argument("--health-port", type=int, default=usual.health_port, help="/healthz, /readyz, /metrics")
    parser.add_argument("--progress-port", type=int, default=usual.progress_port, help="where trainers report")
    parser.add_argument("--progress-url", default=usual.settings.progress_url, help="how trainers reach that port")
    parser.add_argument("--workers", type=int, default=usual.workers, help="jobs looked at at a time")
    parser.add_argument("--lease-seconds", type=float, default=usual.lease_seconds, help="patience with a dead leader")
    parser.add_argument("--head-grace-seconds", type=float, default=usual.settings.head_grace_seconds)
    parser.add_argument("--pods-ready-seconds", type=float, default=usual.settings.pods_ready_seconds)
    parser.add_argument("--retry-seconds", type=float, default=usual.settings.retry_seconds)
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING"])
    given = parser.parse_args(arguments)
    logging.basicConfig(
        level=given.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    return Options(
        kubeconfig=given.kubeconfig,
        namespace=given.namespace,
        host=given.host,
        health_port=given.health_port,
        progress_port=given.progress_port,
        workers=given.workers,
        lease_seconds=given.lease_seconds,
        settings=Settings(
            progress_url=given.progress_url.rstrip("/"),
            head_grace_seconds=given.head_grace_seconds,
            pods_ready_seconds=given.pods_ready_seconds,
            retry_seconds=given.retry_seconds,
        ),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run from a command line; the exit code: 0 after a signal, 1 if the lease was lost or on any other error."""
    return asyncio.run(_run_until_signal(_options(arguments)))
