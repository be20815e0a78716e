"""What a queueing system decides about a RayJob."""

from __future__ import annotations

from typing import Protocol

from dreambooth_operator.controller.observed import RayJob


class Queue(Protocol):
    """One queue of a queueing system, or none. Implementations are immutable."""

    @property
    def starts_suspended(self) -> bool:
        """Whether a new RayJob waits for admission. The queue, not this operator, then owns `spec.suspend`."""
        ...

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the RayJob."""
        ...

    @property
    def annotations(self) -> dict[str, str]:
        """Annotations of the RayJob."""
        ...

    def is_admitted(self, ray_job: RayJob) -> bool:
        """Whether the RayJob may have pods."""
        ...

    def waiting_message(self, ray_job_name: str) -> str:
        """What a RayJob that is not admitted waits for."""
        ...
