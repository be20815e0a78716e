"""Workers that reconcile the keys of a queue."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

from dreambooth_operator.machinery.client import CONNECTION_ERRORS, ApiError
from dreambooth_operator.machinery.metrics import Metrics
from dreambooth_operator.machinery.queue import WorkQueue
from dreambooth_operator.machinery.resources import Key

log = logging.getLogger(__name__)
# Reconciles one object and returns after how many seconds to do so again; None for "on the next change".
Reconcile = Callable[[Key], Awaitable[float | None]]


async def run_workers(queue: WorkQueue[Key], reconcile: Reconcile, metrics: Metrics, *, count: int = 8) -> None:
    """Run `count` workers forever. If `reconcile` fails, its key is retried with exponential backoff.

    Each worker yields to the event loop before each key. A reconciliation that needs no request never waits, and
    thousands of them in a row would delay the renewal of the lease.
    """
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(_work(queue, reconcile, metrics))


async def _work(queue: WorkQueue[Key], reconcile: Reconcile, metrics: Metrics) -> NoReturn:
    while True:
        await asyncio.sleep(0)
        key = await queue.get()
        started = time.perf_counter()
        try:
            requeue_after_seconds = await reconcile(key)
        except ApiError as error:
            result = "conflict" if error.is_conflict else "rejected"
            level = logging.DEBUG if error.is_conflict else logging.WARNING
            log.log(level, "%s: %s; retrying in %.1f s", key, error, queue.retry(key))
        except CONNECTION_ERRORS as error:
            result = "unreachable"
            log.warning("%s: %s; retrying in %.1f s", key, str(error) or type(error).__name__, queue.retry(key))
        except Exception:  # a bug must not affect other objects
            result = "error"
            log.exception("%s: retrying in %.1f s", key, queue.retry(key))
        else:
            result = "ok"
            queue.succeeded(key)
            if requeue_after_seconds is not None:
                queue.add_after(key, requeue_after_seconds)
        finally:
            queue.done(key)
        metrics.reconciled(result, time.perf_counter() - started)
