"""The operator process: command line, wiring of the components, and shutdown."""

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
from urllib.parse import urlsplit

from dreambooth_operator.controller.reconciler import Reconciler
from dreambooth_operator.controller.settings import (
    AUDIENCE,
    KUBERAY_LABELS,
    PROMETHEUS_LABELS,
    PodSelector,
    Settings,
)
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.lease import Lease, LeaseLostError
from dreambooth_operator.machinery.metrics import Metrics
from dreambooth_operator.machinery.reflector import Reflector
from dreambooth_operator.machinery.resources import Key
from dreambooth_operator.machinery.serving import health_app, serving
from dreambooth_operator.machinery.tls import ServerTls
from dreambooth_operator.machinery.workers import run_workers
from dreambooth_operator.metrics.history import JobHistory
from dreambooth_operator.metrics.state import JobsCollector, RuntimeLabels
from dreambooth_operator.statusserver.auth import TokenChecker
from dreambooth_operator.statusserver.server import StatusServer

log = logging.getLogger("dreambooth_operator")
# In the operator's namespace: the authority of the status server's certificates. The chart creates it.
CA_SECRET = "dreambooth-operator-ca"  # noqa: S105 - a name


@dataclass(frozen=True)
class Options:
    """Command line options of one operator process.

    `namespace` is the namespace of the Lease. Without it there is no leader election, so only one process may run.
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
    """A reflector has stopped, so its cache is no longer up to date."""


async def run(options: Options) -> None:
    """Run one process until cancelled.

    Raises:
        LeaseLostError: another process may lead now.
        MirrorError: a reflector has stopped.
    """
    metrics = Metrics("dreambooth")
    async with (
        await Api.connect(options.kubeconfig) as api,
        # A client of its own, so that reports never use up the connections of the reconciler and of the lease.
        await Api.connect(options.kubeconfig) as reports_api,
    ):
        tls = ServerTls(api, Key(options.settings.operator_namespace, CA_SECRET), _host(options.settings), now=_now)
        reconciler = Reconciler(api, options.settings, now=_now, progress_ca=tls.trusted)
        events = metrics.counter("events", "Recorded events by reason.", "reason")
        reconciler.on_event = lambda event: events.labels(event.reason).inc()
        metrics.gauge("queue_depth", "Number of jobs that wait to be reconciled.", lambda: len(reconciler.queue))
        labels = RuntimeLabels(reconciler.find_runtime)
        reconciler.observer = JobHistory(metrics.registry, labels, _now)
        tokens = TokenChecker(reports_api, AUDIENCE, clock=time.time)
        server = StatusServer(reports_api, tokens, cached=reconciler.cached_job, now=_now)
        server.on_lost = reconciler.status_not_written

        health_checks = health_app(metrics, lambda: reconciler.is_synced)
        async with serving(health_checks, options.host, options.health_port) as health:
            await tls.start()
            async with serving(server.app(), options.host, options.progress_port, tls=tls.context) as progress:
                reconciler.reports_since = _now()
                log.info("health on port %d, progress on port %d", health, progress)
                await _run_with_reflectors(reconciler, tls.run(), _work(api, reconciler, metrics, labels, options))


async def _work(api: Api, reconciler: Reconciler, metrics: Metrics, labels: RuntimeLabels, options: Options) -> None:
    """Reconcile forever, once the caches are filled and this process leads."""

    async def reconcile() -> None:
        metrics.leader.set(1)
        # Writes may have failed until now: then the lease of the process before has ended, and reports were lost.
        reconciler.reports_since = _now()
        metrics.registry.register(JobsCollector(reconciler.job_cache, labels))
        await run_workers(reconciler.queue, reconciler.reconcile, metrics, count=options.workers)

    for reflector in reconciler.reflectors:
        await reflector.synced.wait()
    log.info("%d jobs", len(reconciler.job_cache))
    if options.namespace:
        await _lease(api, options).lead(reconcile)
    else:
        await reconcile()


async def _run_with_reflectors(reconciler: Reconciler, *work: Coroutine[None, None, None]) -> None:
    """Run the reflectors and `work` until the first of them ends, then cancel the others."""

    async def run_reflector(reflector: Reflector[Any]) -> None:
        try:
            await reflector.run()
        except Exception as error:
            raise MirrorError(f"the reflector of {reflector.resource.plural} stopped: {error!r}") from error

    tasks = [asyncio.ensure_future(each) for each in (*map(run_reflector, reconciler.reflectors), *work)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _now() -> datetime:
    return datetime.now(UTC)


def _host(settings: Settings) -> str:
    """The host name by which trainers reach the status server."""
    return urlsplit(settings.progress_url).hostname or ""


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
        log.critical("%s; exiting, so that only one process leads", error)
        return 1
    except Exception:  # a bug; a restarted process is safer than one that has lost a component
        log.critical("exiting to be restarted", exc_info=True)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dreambooth_operator",
        description="Reconcile DreamBoothJobs and serve the progress reports of their trainers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults = Options()
    namespace = os.environ.get("POD_NAMESPACE", "")
    parser.add_argument("--kubeconfig", help="path; defaults to $KUBECONFIG, else the pod's service account")
    parser.add_argument("--namespace", default=namespace, help="namespace of the Lease; if empty, no leader election")
    parser.add_argument("--host", default=defaults.host, help="address to listen on; if empty, all addresses")
    parser.add_argument(
        "--health-port", type=int, default=defaults.health_port, help="port of /healthz, /readyz and /metrics"
    )
    parser.add_argument("--progress-port", type=int, default=defaults.progress_port, help="port of the status server")
    parser.add_argument(
        "--progress-url",
        type=_https_url,
        default=defaults.settings.progress_url,
        help="HTTPS URL of the status server as trainers reach it",
    )
    parser.add_argument("--workers", type=int, default=defaults.workers, help="number of jobs reconciled concurrently")
    parser.add_argument(
        "--lease-seconds",
        type=float,
        default=defaults.lease_seconds,
        help="seconds after which a leader that does not renew its lease is replaced",
    )
    _add_duration(parser, "head-grace", defaults.settings.head_grace_seconds, "seconds that a head pod may be unready")
    _add_duration(
        parser, "pods-ready", defaults.settings.pods_ready_seconds, "seconds within which all pods must become ready"
    )
    _add_duration(parser, "retry", defaults.settings.retry_seconds, "seconds before the first retry")
    parser.add_argument(
        "--watch-namespaces", default="", help="namespaces whose jobs are reconciled, as a,b; if empty, all"
    )
    parser.add_argument("--local-runtimes", action="store_true", help="allow LocalDreamBoothRuntimes")
    _add_selector(parser, "kuberay", "those of KubeRay's chart or kustomize installation")
    _add_selector(parser, "prometheus", "app.kubernetes.io/name=prometheus")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING"])
    return parser


def _options(arguments: list[str] | None) -> Options:
    given, defaults = _parser().parse_args(arguments), Options()
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
        settings=_settings(given, defaults.settings),
    )


def _settings(given: argparse.Namespace, defaults: Settings) -> Settings:
    return Settings(
        progress_url=given.progress_url.rstrip("/"),
        head_grace_seconds=given.head_grace_seconds,
        pods_ready_seconds=given.pods_ready_seconds,
        retry_seconds=given.retry_seconds,
        watch_namespaces=tuple(sorted({name for name in given.watch_namespaces.split(",") if name})),
        local_runtimes=given.local_runtimes,
        operator_namespace=given.namespace or defaults.operator_namespace,
        kuberay=tuple(
            PodSelector(given.kuberay_namespace, labels)
            for labels in ((given.kuberay_pod_labels,) if given.kuberay_pod_labels else KUBERAY_LABELS)
        ),
        prometheus=PodSelector(given.prometheus_namespace, given.prometheus_pod_labels or PROMETHEUS_LABELS),
    )


def _add_duration(parser: argparse.ArgumentParser, name: str, default: float, help_text: str) -> None:
    parser.add_argument(f"--{name}-seconds", type=float, default=default, help=help_text)


def _add_selector(parser: argparse.ArgumentParser, name: str, default: str) -> None:
    parser.add_argument(f"--{name}-namespace", default="", help=f"namespace of the pods of {name}; if empty, any")
    parser.add_argument(
        f"--{name}-pod-labels", type=_labels, help=f"labels of these pods, as key=value,key=value; default: {default}"
    )


def _https_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme != "https" or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r}: must be an HTTPS URL, such as {Settings().progress_url}")
    return text


def _labels(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split(",") if pair)


def main(arguments: list[str] | None = None) -> int:
    """Run until a signal (exit code 0), or until the lease is lost or an error occurs (exit code 1)."""
    return asyncio.run(_run_until_signal(_options(arguments)))
