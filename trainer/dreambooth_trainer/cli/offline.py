"""Checks a job with what is on this machine, for `dreambooth validate`: images, and the base model's configuration."""

from __future__ import annotations

import functools
from pathlib import Path

from dreambooth_api.errors import UserError
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.subject import ImageSource, Subject
from dreambooth_api.uris import BUILTIN, is_url
from dreambooth_trainer.families.registry import known_config_folder, on_disk
from dreambooth_trainer.hypernetwork.check import with_pinned_network
from dreambooth_trainer.images.captions import with_caption_files
from dreambooth_trainer.images.own_class_images import check_class_images, read_class_images
from dreambooth_trainer.images.prepare import prepare_images
from dreambooth_trainer.images.sources import RawImages, read_folder
from dreambooth_trainer.images.subjects import each_subject, located_warnings, with_captions
from dreambooth_trainer.planning.cascade import SCALE
from dreambooth_trainer.planning.defaults import model_defaults
from dreambooth_trainer.planning.model_facts import check_model, is_flow_matching, is_pixel_space, native_resolution
from dreambooth_trainer.planning.plan import encoder_names, fill_defaults, model_ref
from dreambooth_trainer.sampling.identifiers import select_identifiers
from dreambooth_trainer.sampling.model_check import check_use


def check_plan(job: DreamBoothJob) -> list[str]:
    """Warnings about models that are not on this machine, and about the identifiers.

    Raises:
        UserError: values that do not fit together once defaults are filled in, on any hardware; or a base model on this
            machine that is not supported, or that does not support what the job asks for.
    """
    # A runtime can give workers more GPUs. A batch that cannot be split with one each cannot be split then either.
    gpus, folder = job.spec.cluster.resources.gpu or 0, _known_folder(job)
    if folder is not None:
        check_model(folder, job.spec)
        job = _with_local_captions(job)
    subjects = job.spec.all_subjects
    plan = fill_defaults(
        job,
        image_count=len(subjects),
        identifiers=[one.identifier for one in subjects] if folder is None else select_identifiers(job, folder),
        zero_stage=1,
        precision="fp32",
        gpus_per_worker=gpus,
        native_resolution=folder and native_resolution(folder),
    )
    names = [model_ref(job).id, *encoder_names(job), *([plan.hyper_network.id] if plan.hyper_network else [])]
    folders = [Path(name) for name in names if Path(name).is_absolute()]
    notes = [
        f"{path} does not exist on this machine, dreambooth run requires it" for path in folders if not path.is_dir()
    ]
    if folder is None:
        return notes
    warnings = check_use(plan, folder)
    if plan.hyper_network and on_disk(plan.model) and on_disk(plan.hyper_network):
        with_pinned_network(plan, folder)
    return [*notes, *warnings]


def check_images(job: DreamBoothJob) -> list[str]:
    """Warnings about the images of a job, if they can be read without credentials.

    Raises:
        UserError: some images cannot be used.
    """
    folder = _known_folder(job)
    resolution = job.spec.training.resolution or _default_resolution(job, folder)

    def check(_: int, subject: Subject) -> list[str]:
        uri, found = subject.images.uri, _read_local(subject)
        if found is None:
            expected = uri is not None and not is_url(uri)
            return [f"{uri} does not exist on this machine, dreambooth run requires it"] if expected else []
        subject, warnings = with_caption_files(subject, found.captions, found.origins)
        return [*found.warnings, *warnings, *prepare_images(found.images, resolution, subject.captions).warnings]

    warnings = located_warnings(job.spec, each_subject(job.spec, check))
    own = job.spec.prior_preservation.images
    if own is None or not job.spec.uses_class_images:
        return warnings
    if _is_local(own):
        used = read_class_images(job.spec)[: job.spec.prior_preservation.num_class_images]
        check_class_images(used, resolution)
    elif own.uri is not None and not is_url(own.uri):
        warnings.append(f"{own.uri} does not exist on this machine, dreambooth run requires it")
    return warnings


def _default_resolution(job: DreamBoothJob, folder: Path | None) -> int:
    """The resolution of a job that does not set one: that of its model, if its configuration is on this machine."""
    model = model_ref(job)
    scale = 1 if model.super_resolution is None else SCALE
    if folder is None:
        return model_defaults(model.id, pixel_space=scale > 1).resolution * scale
    flow_matching, pixel_space = is_flow_matching(folder), is_pixel_space(folder)
    defaults = model_defaults(model.id, flow_matching=flow_matching, pixel_space=pixel_space)
    return (native_resolution(folder) or defaults.resolution) * scale


def _known_folder(job: DreamBoothJob) -> Path | None:
    """The folder of the base model's configuration. A runtime, which is not known here, may supply another model."""
    return None if job.spec.model is None and job.spec.runtime_ref else known_config_folder(model_ref(job))


def _with_local_captions(job: DreamBoothJob) -> DreamBoothJob:
    """The job with the captions in text files beside its images."""
    try:
        found = each_subject(job.spec, lambda _, subject: _read_local(subject))
    except UserError:
        return job  # `check_images` reports it
    return job.model_copy(update={"spec": with_captions(job.spec, found)[0]})


def _read_local(subject: Subject) -> RawImages | None:
    uri = subject.images.uri
    return _read(uri) if uri is not None and _is_local(subject.images) else None


def _is_local(source: ImageSource) -> bool:
    """Whether images exist on this machine."""
    uri = source.uri
    return uri is not None and not is_url(uri) and (uri.startswith(BUILTIN) or Path(uri).exists())


# Both checks need the files.
_read = functools.cache(read_folder)
