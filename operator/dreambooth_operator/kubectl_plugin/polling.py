"""Repeated reading of a job, by commands that wait for it."""

from __future__ import annotations

import asyncio
import math
import time

from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError
from dreambooth_operator.machinery.resources import Json, Key
from dreambooth_operator.resources import JOBS

POLL_SECONDS = 1


async def get_again(api: Api, key: Key, deadline: float = math.inf) -> Json:
    """Get a job after the API server has answered once. While it cannot answer, the request is repeated.

    Args:
        deadline: on the clock `time.monotonic`. After it, a request is not repeated.

    Raises:
        ApiError: the job does not exist, or another error that is not transient or lasts until the deadline.
        one of CONNECTION_ERRORS: the server does not respond until the deadline.
    """
    while True:
        try:
            return await api.get(JOBS, key)
        except (ApiError, *CONNECTION_ERRORS) as error:
            if not is_transient(error) or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(min(POLL_SECONDS, max(0, deadline - time.monotonic())))


def is_transient(error: BaseException) -> bool:
    """Whether the server did not respond, or cannot answer now. A request to change something may have succeeded."""
    return error.is_transient if isinstance(error, ApiError) else isinstance(error, CONNECTION_ERRORS)
