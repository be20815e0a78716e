"""The life of one attempt: start, creation of its children, monitoring, and its end. Pure."""

from __future__ import annotations

from dreambooth_api.runpolicy import RunPolicy
from dreambooth_api.status import ConditionType, Failure, Phase
from dreambooth_operator.controller.actions import Create
from dreambooth_operator.controller.builder import DecisionBuilder
from dreambooth_operator.controller.children.attempt import attempt_children, attempt_config_map
from dreambooth_operator.controller.completion import close_attempt, fail_job, succeed_job
from dreambooth_operator.controller.failures import QUOTA_EXCEEDED, classify_failure
from dreambooth_operator.controller.names import attempt_name
from dreambooth_operator.controller.observed import Observed, RayJob
from dreambooth_operator.controller.observed_pods import needs_event
from dreambooth_operator.controller.policies.cleanup import remove_network_policy
from dreambooth_operator.controller.policies.deadline import deadline_exceeded, pause_clock, start_clock
from dreambooth_operator.controller.policies.disruptions import find_disruption, with_disruption
from dreambooth_operator.controller.policies.out_of_memory import killed_for_memory
from dreambooth_operator.controller.policies.pod_timeouts import head_lost, pods_ready_timeout
from dreambooth_operator.controller.policies.progress_deadline import progress_deadline_exceeded
from dreambooth_operator.controller.policies.start_deadline import (
    start_deadline_exceeded,
    start_waiting,
    stop_waiting,
)
from dreambooth_operator.controller.policies.start_errors import start_error
from dreambooth_operator.controller.policies.suspension import suspend_attempt
from dreambooth_operator.controller.queueing.select import select_queue
from dreambooth_operator.controller.resolve import Resolution, ResolutionError, ResolvedJob, run_policy
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.controller.started import record_start, with_image_digest
from dreambooth_operator.controller.status import (
    running_message,
    set_accepted,
    set_running_conditions,
    with_pod_problem,
)
from dreambooth_operator.machinery.resources import CONFIG_MAPS

_C = ConditionType
_EVENT_POLL_SECONDS = 15  # events of pods are not watched
# The reason of a queue is not watched either. It is missing at first, and then rarely changes.
_NEW_QUEUE_POLL_SECONDS = 15
_QUEUE_POLL_SECONDS = 300


def start_attempt(builder: DecisionBuilder, resolution: ResolvedJob) -> None:
    """Open the next attempt, in the status only. Its RayJob is created once the status is written."""
    status, attempt, policy = builder.status, builder.status.attempts + 1, resolution.spec.run_policy
    name, queue = attempt_name(builder.job, attempt), select_queue(policy)
    if status.attempts:
        remove_network_policy(builder)
    if queue.starts_suspended:
        builder.set_phase(Phase.QUEUED, queue.waiting_message(name))
    else:
        builder.set_phase(Phase.STARTING, running_message(builder, None, running=False))
    builder.set_fields(
        attempts=attempt,
        ray_job_name=name,
        ray_job_uid=None,
        head_pod=None,
        ray_cluster=None,
        head_lost_since=None,
        next_attempt_time=None,
        disruption=None,
        start_time=status.start_time or builder.now,
        waiting_since=status.waiting_since or builder.now,
        starting_since=None if queue.starts_suspended else builder.now,
        started_with=status.started_with or record_start(resolution),
    )
    set_accepted(builder, None)
    if queue.starts_suspended:
        builder.set_condition(_C.QUEUED, "True", "Waiting", queue.waiting_message(name))
    builder.set_condition(_C.CLUSTER_READY, "False", "Starting", "The Ray cluster is being created.")
    if status.last_failure is None or status.last_failure.reason != QUOTA_EXCEEDED:  # then it may be one of many tries
        builder.record_event("Normal", "AttemptStarted", f"Attempt {attempt} starts as RayJob {name}.")
    builder.requeue_after(0)


def monitor_attempt(builder: DecisionBuilder, resolution: Resolution, observed: Observed, settings: Settings) -> None:
    """Create the RayJob of the open attempt, follow it, and close the attempt when it ends."""
    status, policy = builder.status, run_policy(builder.job, resolution)
    set_accepted(builder, resolution if isinstance(resolution, ResolutionError) else None)
    ray_job = observed.ray_job(status.ray_job_name)
    builder.delete_ray_jobs(r for r in observed.ray_jobs if r is not ray_job)
    if ray_job is None:
        if failure := observed.create_failure:
            close_attempt(builder, failure, policy, settings, counts=failure.reason != QUOTA_EXCEEDED)
            return
        if status.ray_job_uid is None and not policy.suspend:
            _create_children(builder, resolution, policy, settings)
            return
        if status.ray_job_uid is not None:
            deleted = Failure(reason="RayJobDeleted", message=f"RayJob {status.ray_job_name} was deleted.")
            close_attempt(builder, deleted, policy, settings)
            return
    elif ray_job.owner_uid != builder.job.uid or (status.ray_job_uid or ray_job.uid) != ray_job.uid:
        taken = Failure(reason="NameTaken", message=f"RayJob {ray_job.name} exists but does not belong to this job.")
        close_attempt(builder, taken, policy, settings)
        return
    elif status.ray_job_uid is None:
        if failure := observed.create_failure:  # of the ConfigMap
            close_attempt(builder, failure, policy, settings, counts=failure.reason != QUOTA_EXCEEDED)
            return
        if not ray_job.has_started:
            _adopt(builder, ray_job, resolution, policy, observed, settings)
            return
        builder.set_fields(ray_job_uid=ray_job.uid)
    if ray_job is not None and ray_job.ended:
        _end_attempt(builder, ray_job, policy, observed, settings)
    elif policy.suspend:
        suspend_attempt(builder, observed)
    else:
        assert ray_job is not None
        _follow_ray_job(builder, ray_job, policy, observed, settings)


def _create_children(builder: DecisionBuilder, resolution: Resolution, policy: RunPolicy, settings: Settings) -> None:
    if isinstance(resolution, ResolutionError):  # the runtime changed between the status write and the creation
        failure = Failure(reason=resolution.reason, message=resolution.message)
        close_attempt(builder, failure, policy, settings, counts=False)
        return
    assert isinstance(resolution, ResolvedJob)  # as of any attempt without a recorded RayJob
    children = attempt_children(builder.job, builder.status.attempts, resolution, settings)
    builder.add(*(Create(resource, obj) for resource, obj in children))


def _adopt(
    builder: DecisionBuilder,
    ray_job: RayJob,
    resolution: Resolution,
    policy: RunPolicy,
    observed: Observed,
    settings: Settings,
) -> None:
    """Create the ConfigMap of a RayJob that has been created, then record the RayJob."""
    status, found = builder.status, None
    if isinstance(resolution, ResolvedJob):
        found = attempt_config_map(builder.job, status.attempts, resolution, ray_job, observed.progress_ca)
    if found is None:
        message = f"The runtime changed while RayJob {ray_job.name} was created."
        close_attempt(builder, Failure(reason="RuntimeChanged", message=message), policy, settings, counts=False)
        builder.delete_ray_jobs([ray_job])
        return
    builder.add_before_write(Create(CONFIG_MAPS, found))
    # The pods of a RayJob that was created before a restart of the operator have waited for the ConfigMap.
    builder.set_fields(ray_job_uid=ray_job.uid, starting_since=builder.now if status.starting_since else None)
    builder.requeue_after(0)


def _follow_ray_job(
    builder: DecisionBuilder, ray_job: RayJob, policy: RunPolicy, observed: Observed, settings: Settings
) -> None:
    """Update the status of an attempt that has neither ended nor been suspended, and enforce its time limits."""
    if ray_job.deleting:  # by somebody else; the attempt is closed when the RayJob is gone
        return
    queue = select_queue(policy)
    is_admitted = queue.is_admitted(ray_job)
    running = is_admitted and ray_job.deployment == "Running"
    if exceeded := _count_time(builder, policy, running=running):
        fail_job(builder, exceeded.reason, exceeded.message)
        builder.delete_ray_jobs(observed.ray_jobs)
    elif is_admitted:
        _follow_cluster(builder, ray_job, policy, observed, settings)
    else:
        message = f"{queue.waiting_message(ray_job.name)} {observed.queue_reason}".strip()
        builder.set_phase(Phase.QUEUED, message)
        builder.set_condition(_C.QUEUED, "True", "Waiting", message)
        builder.set_condition(_C.CLUSTER_READY, "False", "Queued")
        if queue.starts_suspended:
            builder.requeue_after(_QUEUE_POLL_SECONDS if observed.queue_reason else _NEW_QUEUE_POLL_SECONDS)
        # The RayJob gets a new head once it is admitted.
        builder.set_fields(head_pod=None, ray_cluster=None, head_lost_since=None, starting_since=None)


def _count_time(builder: DecisionBuilder, policy: RunPolicy, *, running: bool) -> Failure | None:
    """Count running or waiting time. Returns a failure if its limit has passed."""
    if running:
        start_clock(builder)
        stop_waiting(builder)
        return deadline_exceeded(builder, policy)
    pause_clock(builder)
    start_waiting(builder)
    return start_deadline_exceeded(builder, policy)


def _follow_cluster(
    builder: DecisionBuilder, ray_job: RayJob, policy: RunPolicy, observed: Observed, settings: Settings
) -> None:
    """Update the status of an attempt that may have pods."""
    queued = builder.condition(_C.QUEUED)
    if queued and queued.status == "True":
        builder.set_condition(_C.QUEUED, "False", "Admitted")
    pods = observed.pods_of(builder.status.attempts)
    if builder.status.started_with:
        builder.set_fields(started_with=with_image_digest(builder.status.started_with, pods))
    cluster = with_pod_problem(observed.cluster_of(ray_job.name), pods)
    disruption = find_disruption(builder, pods)
    running = ray_job.deployment == "Running"
    if not running:
        if builder.status.starting_since is None:
            builder.set_fields(starting_since=builder.now)
        if any(needs_event(pod) for pod in pods):
            builder.requeue_after(_EVENT_POLL_SECONDS)
    if failure := killed_for_memory(pods):
        close_attempt(builder, failure, policy, settings)
        builder.delete_ray_jobs(observed.ray_jobs)
        return
    if lost := head_lost(builder, cluster, running=running, grace_seconds=settings.head_grace_seconds):
        close_attempt(builder, with_disruption(lost, disruption), policy, settings, counts=disruption is None)
        builder.delete_ray_jobs(observed.ray_jobs)
        return
    set_running_conditions(builder, cluster, running=running)
    if running:
        failure, counts = progress_deadline_exceeded(builder, policy, observed.reports_since), True
    else:
        failure, counts = start_error(builder, cluster, pods), True
        if failure is None:
            timeout_seconds = settings.pods_ready_seconds
            failure, counts = pods_ready_timeout(builder, cluster, timeout_seconds=timeout_seconds), False
    if failure:
        close_attempt(builder, failure, policy, settings, counts=counts)
        builder.delete_ray_jobs(observed.ray_jobs)
        return
    if running and builder.status.phase is not Phase.RUNNING:
        builder.record_event("Normal", "Running", f"RayJob {ray_job.name} runs the trainer.")
    message = running_message(builder, cluster, running=running)
    builder.set_phase(Phase.RUNNING if running else Phase.STARTING, message)


def _end_attempt(
    builder: DecisionBuilder, ray_job: RayJob, policy: RunPolicy, observed: Observed, settings: Settings
) -> None:
    pods = observed.pods_of(builder.status.attempts)
    disruption = find_disruption(builder, pods)
    if failure := classify_failure(ray_job, builder.status):
        failure = with_disruption(killed_for_memory(pods) or failure, disruption)
        close_attempt(builder, failure, policy, settings, counts=disruption is None)
    else:
        succeed_job(builder)
