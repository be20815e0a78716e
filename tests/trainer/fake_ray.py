"""The part of Ray that the worker pool uses, without processes: a call runs when its result is read."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.exceptions import RayActorError


class FakeActor:
    """An actor that runs functions in this process, with itself as the first argument."""

    def __init__(self, number: int, ready: bool) -> None:
        self.number, self.alive = number, True
        self.__ray_ready__ = SimpleNamespace(remote=lambda: self._ref(lambda: ready or self._die()))
        self.run = SimpleNamespace(remote=lambda function, *arguments: self._ref(lambda: function(self, *arguments)))

    def _ref(self, compute: Callable[[], Any]) -> SimpleRef:
        return SimpleRef(self, compute)

    def _die(self) -> None:
        self.alive = False
        raise RayActorError

    def die(self) -> None:
        """To be called by a function that this actor runs."""
        self._die()


class SimpleRef:
    """The result of a call."""

    def __init__(self, actor: FakeActor, compute: Callable[[], Any]) -> None:
        self.actor, self.compute = actor, compute

    def result(self) -> Any:
        if not self.actor.alive:
            raise RayActorError
        return self.compute()


class FakeRay:
    """Replaces the module `ray`.

    Attributes:
        resources: of the cluster. Tests change them while calls run.
        actors: all that were started.
        killed: those that were killed.
        can_start: whether actors survive their start.
    """

    def __init__(self, **resources: float) -> None:
        self.resources: dict[str, float] = dict(resources)
        self.actors: list[FakeActor] = []
        self.killed: list[FakeActor] = []
        self.can_start = True

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **options: Any) -> Callable[[type], Any]:
        def start(*arguments: Any) -> FakeActor:
            self.actors.append(FakeActor(len(self.actors), self.can_start))
            return self.actors[-1]

        return lambda cls: SimpleNamespace(remote=start)

    def wait(self, refs: list[SimpleRef], timeout: float) -> tuple[list[SimpleRef], list[SimpleRef]]:
        assert refs, "Ray rejects an empty list"
        return refs[:1], refs[1:]

    def get(self, ref: SimpleRef) -> Any:
        return ref.result()

    def kill(self, actor: FakeActor) -> None:
        actor.alive = False
        self.killed.append(actor)
