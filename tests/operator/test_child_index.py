"""The children of each job, from the changes of their cache."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_operator.controller.child_index import ChildIndex
from dreambooth_operator.machinery.resources import Key


@dataclass(frozen=True)
class Child:
    owner: str


JOB = Key("team", "dog")
PODS = [Key("team", f"pod-{number}") for number in range(3)]


def test_children_of_a_job_follow_the_changes_of_their_cache() -> None:
    enqueued: list[Key] = []
    index = ChildIndex(enqueued.append)
    for pod in (PODS[2], PODS[0], PODS[0]):
        index.changed(pod, Child("dog"))
    index.changed(PODS[1], Child("cat"))
    assert index.of(JOB) == (PODS[0], PODS[2])
    index.changed(PODS[0], None)
    assert index.of(JOB) == (PODS[2],)
    index.changed(PODS[2], None)
    index.changed(PODS[2], None)
    assert index.of(JOB) == ()
    assert index.of(Key("team", "cat")) == (PODS[1],)
    assert enqueued == [JOB] * 3 + [Key("team", "cat")] + [JOB] * 2, "a change of a child enqueues its job"


def test_a_child_whose_label_changes_leaves_its_former_job() -> None:
    index = ChildIndex(lambda _: None)
    for owner in ("dog", "cat", "dog"):
        index.changed(PODS[0], Child(owner))
    assert (index.of(JOB), index.of(Key("team", "cat"))) == ((PODS[0],), ())
    index.changed(PODS[0], None)
    assert index.of(JOB) == ()
