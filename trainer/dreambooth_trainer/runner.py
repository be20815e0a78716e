"""Prepares a job and runs its phases in order, skipping those that are complete."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import JsonValue

from dreambooth_api.defaulting import with_defaults, worker_resources
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.runtime import RuntimeSpec
from dreambooth_api.status import TrainerPhase
from dreambooth_api.subject import Subject
from dreambooth_trainer.cluster.hardware import Hardware, check_cores, check_runnable, query_workers, requested_cpus
from dreambooth_trainer.cluster.interrupts import check_interrupted
from dreambooth_trainer.cluster.pool import WorkerPool
from dreambooth_trainer.cluster.runtime_hardware import runtime_hardware
from dreambooth_trainer.cluster.session import has_address, ray_cluster
from dreambooth_trainer.families.ip_adapter import adapter_files, check_adapter, pinned_adapter
from dreambooth_trainer.families.registry import config_folder, family_module, on_disk, pinned, stage_folders
from dreambooth_trainer.hypernetwork.check import with_pinned_network
from dreambooth_trainer.images.own_class_images import check_class_images, read_class_images
from dreambooth_trainer.images.prepare import prepare_images
from dreambooth_trainer.images.sources import RawImage, RawImages, read_images
from dreambooth_trainer.images.subjects import each_subject, located_warnings, read_subjects, with_captions
from dreambooth_trainer.jobfile.load import dump_job
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.phases.class_images import CLASS_IMAGES
from dreambooth_trainer.phases.encode import ENCODE, VAE_BATCH_SIZE
from dreambooth_trainer.phases.evaluate import EVALUATE, check_encoders
from dreambooth_trainer.phases.prepare import PREPARE
from dreambooth_trainer.phases.publish import PUBLISH
from dreambooth_trainer.phases.train import TRAIN
from dreambooth_trainer.planning.make_plan import JobFacts, PlannedJob, draft_plan, make_plan
from dreambooth_trainer.planning.memory import ModelSize
from dreambooth_trainer.planning.plan import Plan, fingerprint, model_ref
from dreambooth_trainer.planning.precision import check_packages
from dreambooth_trainer.progress.console import Reporter
from dreambooth_trainer.sampling.identifiers import select_identifiers
from dreambooth_trainer.sampling.model_check import check_use
from dreambooth_trainer.sampling.validation_set import validations_of
from dreambooth_trainer.store.claim import claim_output
from dreambooth_trainer.store.folder import JobFolder, atomic_write
from dreambooth_trainer.store.run_record import RunRecord, read_completion, write_run

# Number of subject images in a plan that is made without them. The paper uses three to five.
ASSUMED_IMAGES = 5
PHASES = (PREPARE, CLASS_IMAGES, ENCODE, TRAIN, EVALUATE, PUBLISH)


@dataclass(frozen=True)
class PreparedJob:
    """A planned job with the images of each subject, warnings for the user, and the job's own class images."""

    planned: PlannedJob
    images: tuple[tuple[RawImage, ...], ...]
    warnings: tuple[str, ...]
    class_images: tuple[RawImage, ...] = ()

    @property
    def plan(self) -> Plan:
        return self.planned.plan


def prepare_job(job: DreamBoothJob, jobs: int = 1) -> PreparedJob:
    """Read the images, inspect the model, detect the hardware of the workers, and plan the job.

    Args:
        jobs: number of jobs that run at the same time and share a machine's memory.

    Raises:
        UserError: images or model cannot be read, a prompt is too long, or the plan is invalid or does not fit into
            memory.
        DeviceError: a worker has a GPU, but CUDA does not work.
    """
    spec, images, notes = read_subjects(job.spec)
    own = read_class_images(spec)
    job = job.model_copy(update={"spec": spec})
    hardware = query_workers(job.spec.cluster).shared_by(jobs)
    check_cores(hardware, job.spec.cluster)
    planned, warnings = _plan(job, tuple(map(len, images)), hardware, len(own))
    check_packages(planned.plan)
    used = planned.plan.num_own_class_images
    unused = [f"{used} of your {len(own)} class images are used, the first by name"] if used < len(own) else []
    return PreparedJob(planned, tuple(images), (*notes, *unused, *warnings), tuple(own[:used]))


def plan_for_runtime(job: DreamBoothJob, runtime: RuntimeSpec) -> tuple[PlannedJob, tuple[str, ...]]:
    """Plan a job for a cluster, from the description of its hardware in the runtime; returns warnings as well.

    Raises:
        UserError: as `prepare_job`.
    """
    spec = with_defaults(job.spec, runtime)
    hardware = runtime_hardware(worker_resources(spec, runtime), spec.cluster.node_selector)
    found = each_subject(spec, lambda _, subject: read_images(subject.images) if subject.images.uri else None)
    spec, notes = with_captions(spec, found)
    assumed = [f"the images are in the cluster: the plan assumes {ASSUMED_IMAGES} images."]
    unread = located_warnings(spec, [assumed if raw is None else [] for raw in found])
    image_counts = tuple(ASSUMED_IMAGES if raw is None else len(raw.images) for raw in found)
    provided = spec.prior_preservation.images
    own = read_class_images(spec) if provided and provided.uri else []
    planned, warnings = _plan(job.model_copy(update={"spec": spec}), image_counts, hardware, len(own))
    check_class_images(own, planned.plan.resolution)
    checked: list[list[str]] = each_subject(spec, lambda index, subject: _check(found[index], subject, planned.plan))
    return planned, (*warnings, *notes, *unread, *located_warnings(spec, checked))


def _check(raw: RawImages | None, subject: Subject, plan: Plan) -> list[str]:
    """Warnings about images that can be read here. Raises the errors of those that a run would reject."""
    return [] if raw is None else prepare_images(raw.images, plan.resolution, subject.captions).warnings


def _plan(
    job: DreamBoothJob, image_counts: tuple[int, ...], hardware: Hardware, own_class_images: int
) -> tuple[PlannedJob, tuple[str, ...]]:
    model = pinned(model_ref(job))
    folders = stage_folders(model)
    folder = folders[""]
    facts = JobFacts(model, folder, select_identifiers(job, folder), image_counts, hardware, own_class_images)
    draft = draft_plan(job, facts)
    warnings = check_use(draft, folder)
    draft = with_pinned_network(with_pinned_adapter(draft, folder), folder)
    planned = make_plan(draft, facts, partial(_count_size, folders, sum(image_counts)))
    notes = [hardware.note] if hardware.note else []
    return planned, (*notes, *warnings)


def with_pinned_adapter(plan: Plan, folder: Path) -> Plan:
    """The plan with the commit of its image-prompt adapter, if it has one that is on the Hub.

    Args:
        folder: local folder of the base model. An adapter in a folder is compared with it.

    Raises:
        UserError: the adapter was not found, or does not fit the model.
    """
    if plan.image_prompts is None:
        return plan
    adapter = pinned_adapter(plan.image_prompts.adapter)
    if on_disk(adapter) is not None:
        check_adapter(adapter_files(adapter).weights, folder)
    return plan.model_copy(update={"image_prompts": plan.image_prompts.model_copy(update={"adapter": adapter})})


def _count_size(folders: Mapping[str, Path], image_count: int, plan: Plan, images: int) -> ModelSize:
    from dreambooth_trainer.training.memory_count import count_size  # importing diffusers takes seconds

    encoding_batch = min(VAE_BATCH_SIZE, image_count * plan.variants_per_image)
    return count_size(plan, folders[plan.stage], images, encoding_batch)


def worker_pool(prepared: PreparedJob, jobs: int = 1) -> WorkerPool:
    """The workers that generate, encode and score images. None has started yet.

    Args:
        jobs: number of jobs that run at the same time and share the cores.
    """
    return WorkerPool(
        prepared.planned.sampling_processes,
        gpu=prepared.plan.gpus_per_worker > 0,
        preload=family_module(config_folder(prepared.plan.model)),
        max_cpus=requested_cpus(prepared.plan.spec.cluster) if has_address() else None,
        jobs=jobs,
    )


def run_job(
    prepared: PreparedJob, folder: JobFolder, store: str, reporter: Reporter, pool: WorkerPool | None = None
) -> dict[TrainerPhase, dict[str, JsonValue]]:
    """Lock the folder, and run the phases that are not complete, as `run_phases`."""
    claim_output(prepared.plan.job, folder)
    with folder.locked():
        return run_phases(prepared, folder, store, reporter, pool)


def run_phases(
    prepared: PreparedJob, folder: JobFolder, store: str, reporter: Reporter, pool: WorkerPool | None = None
) -> dict[TrainerPhase, dict[str, JsonValue]]:
    """Run the phases that are not complete, in a folder that is claimed and locked.

    Args:
        store: URL of the folder with shared class images.
        pool: workers to use, of an earlier job with the same base model; None to start some.

    Returns:
        The completion record of each phase.

    Raises:
        UserError: the job is invalid, or the folder does not belong to it.
    """
    keys: dict[TrainerPhase, str] = {}
    check_runnable(prepared.planned.hardware, prepared.plan.spec.cluster)
    pool = pool or worker_pool(prepared)
    context = Context(prepared.plan, folder, prepared.images, store, keys, pool, class_images=prepared.class_images)
    results: dict[TrainerPhase, dict[str, JsonValue]] = {}
    with contextlib.ExitStack() as stack:
        atomic_write(folder.root / "job.yaml", dump_job(prepared.plan.job))
        started = False
        for phase in PHASES:
            keys[phase.name] = fingerprint({"phase": phase.name, "inputs": phase.inputs(context)})
        write_run(folder, RunRecord(plan=prepared.plan, keys=keys))
        if read_completion(folder, keys, TrainerPhase.TRAIN) is None:
            # Before the first phase: who looks at the folder must not take them for those of this training.
            validations_of(prepared.plan, folder, keys[TrainerPhase.TRAIN]).discard_others()
        for phase in PHASES:
            check_interrupted()
            done = read_completion(folder, keys, phase.name) if phase.complete(context) else None
            if done is not None:
                reporter.skipped(phase.name)
            elif not started:
                # If all phases are complete, no encoder is loaded and Ray is not started.
                encoder_commits, note = check_encoders(prepared.plan)
                context = replace(context, encoder_commits=encoder_commits)
                if note:
                    reporter.note(note)
                stack.enter_context(ray_cluster())
                started = True
                if phase is PREPARE:
                    pool.start()
            results[phase.name] = done or run_phase(phase, context, reporter)
            reporter.finished(phase.name, results[phase.name])
    return results


def run_phase(phase: Phase, context: Context, reporter: Reporter) -> dict[str, JsonValue]:
    """Run a phase, write its completion record, and return the record."""
    start = time.monotonic()
    # An earlier record may have been written for other inputs, and the phase is about to change its outputs.
    context.folder.completion_record(phase.name).unlink(missing_ok=True)
    with reporter.phase(phase.name) as progress:
        result = phase.run(context, progress)
    content = {"key": context.keys[phase.name], "seconds": round(time.monotonic() - start, 2), **result}
    atomic_write(context.folder.completion_record(phase.name), json.dumps(content, indent=2))
    warnings = result.get("warnings")
    for warning in warnings if isinstance(warnings, list) else []:
        reporter.note(f"  {warning}")
    return content
