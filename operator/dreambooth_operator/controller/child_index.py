"""The children of each job, from the caches of their kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.partial import Fields, PartialParser
from dreambooth_operator.machinery.reflector import Reflector
from dreambooth_operator.machinery.resources import Json, Key, Resource
from dreambooth_operator.resources import JOB_LABEL


class _Owned(Protocol):
    @property
    def owner(self) -> str: ...


T = TypeVar("T", bound=_Owned)


class ChildIndex:
    """The children of each job, by owner. A change of a child enqueues its job."""

    def __init__(self, enqueue: Callable[[Key], None]) -> None:
        self._enqueue = enqueue
        # Sorted. Most jobs have one child of a kind or two, for which a set takes four times as much memory.
        self._of: dict[Key, tuple[Key, ...]] = {}
        self._owner: dict[Key, Key] = {}

    def changed(self, child: Key, child_object: _Owned | None) -> None:
        """Record that a child was added or changed, or deleted if `child_object` is None."""
        owner = Key(child.namespace, child_object.owner) if child_object else self._owner.get(child)
        if owner is None:
            return
        if child_object and self._owner.get(child, owner) != owner:  # its label was changed
            self.changed(child, None)
        children = self._of.get(owner, ())
        if child_object and child not in children:
            self._owner[child] = owner
            self._of[owner] = tuple(sorted((*children, child)))
        elif not child_object:
            del self._owner[child]
            self._of[owner] = tuple(each for each in children if each != child)
            if not self._of[owner]:
                del self._of[owner]
        self._enqueue(owner)

    def of(self, owner: Key) -> tuple[Key, ...]:
        """The keys of the children of `owner`, sorted."""
        return self._of.get(owner, ())


def watch_children(
    api: Api, resource: Resource, project: Callable[[Json], T], fields: Fields, index: ChildIndex, namespace: str
) -> Reflector[T]:
    """A cache of the objects of one kind that have the label of a job. Changes go to the index.

    `fields` are those that `project` reads.
    """

    def changed(key: Key) -> None:
        index.changed(key, children.cache.get(key))

    children = Reflector(
        api,
        resource,
        project=project,
        on_change=changed,
        namespace=namespace,
        selector=JOB_LABEL,
        parser=PartialParser(fields),
    )
    return children
