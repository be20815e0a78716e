"""A job's own class images are used first, never shared, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagefiles import encoded, noise
from inline_pool import InlinePool
from jobtext import LoadText
from jobtext import spec as spec_text
from pydantic import ValidationError

from dreambooth_api.errors import UserError
from dreambooth_api.job import DreamBoothJob
from dreambooth_trainer.images.own_class_images import read_class_images
from dreambooth_trainer.images.subjects import read_subjects
from dreambooth_trainer.phases.base import Context
from dreambooth_trainer.phases.class_images import (
    CLASS_IMAGES,
    class_image_names,
    class_image_store,
    own_class_image_store,
)
from dreambooth_trainer.phases.encode import class_images_of, encode, encode_shared, instance_prompts, instance_weights
from dreambooth_trainer.phases.prepare import PREPARE
from dreambooth_trainer.planning.describe import class_images_row
from dreambooth_trainer.planning.make_plan import with_own_class_images
from dreambooth_trainer.planning.plan import fill_defaults
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.training.cache import load_data

pytestmark = pytest.mark.usefixtures("one_thread")


class Silent:
    def total(self, count: int) -> None: ...

    def done(self, count: int, **facts: object) -> None: ...


@pytest.fixture
def dogs(tmp_path: Path) -> Path:
    """Three class images, in a folder as kohya's sd-scripts read it, with a caption that is not used."""
    folder = tmp_path / "reg" / "1_dog"
    folder.mkdir(parents=True)
    for name in ("0.png", "1.png", "2.png"):
        (folder / name).write_bytes(encoded(noise(48, 32, seed=int(name[0]))))
    (folder / "0.txt").write_text("{}")
    return folder


def context_of(folder: Path, images: Path, **preservation: object) -> Context:
    job = DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": "my-dog"},
            "spec": {
                "subject": {"images": {"uri": "builtin:sprites/dog-pink-blue"}, "class": "dog"},
                "priorPreservation": {
                    "images": {"uri": str(images)},
                    "sampler": {"steps": 1, "guidanceScale": 1},
                    **preservation,
                },
                "training": {"steps": 400},
            },
        }
    )
    _, subjects, _ = read_subjects(job.spec)
    own = read_class_images(job.spec)
    plan = fill_defaults(job, image_count=5, identifiers=["sks"], zero_stage=1, precision="fp32")
    plan = with_own_class_images(plan, len(own))
    pool: Any = InlinePool(1)
    used = tuple(own[: plan.num_own_class_images])
    return Context(plan, JobFolder(folder), tuple(subjects), str(folder.parent / "store"), {}, pool, class_images=used)


def test_own_images_come_first_and_only_the_rest_is_generated(tmp_path: Path, dogs: Path) -> None:
    context = context_of(tmp_path / "job", dogs.parent, numClassImages=5)
    result = CLASS_IMAGES.run(context, Silent())
    assert [result[key] for key in ("wanted", "provided", "reused", "generated")] == [5, 3, 0, 2]
    shared, own = class_image_store(context, "a dog"), own_class_image_store(context)
    assert shared.names() == {"000000", "000001"}, "the first images that any other job generates"
    assert own.url.startswith(str(context.folder.work))
    assert "5 of 'a dog', of which 3 are your own, " in class_images_row(context.plan)

    PREPARE.run(context, Silent())
    class_images = class_images_of(context)
    encode_shared(context, class_images, lambda _: None)
    encode(context.plan, context.folder, instance_prompts(context), instance_weights(context), class_images)
    data = load_data(context.folder.latents).class_images
    assert data is not None
    assert data.indices == ((0, 1, 2, 3, 4),)
    assert len(data.prompts["input_ids"]) == 1, "all have the class prompt"
    pixels = noise(48, 32).crop((8, 0, 40, 32))
    assert np.array_equal(np.asarray(own.get("000000")), np.asarray(pixels)), "the center square"


def test_all_own_images_are_used_if_the_job_sets_no_number(tmp_path: Path, dogs: Path) -> None:
    assert context_of(tmp_path / "job", dogs).plan.num_class_images == 200, "the default is larger"
    few = context_of(tmp_path / "job", dogs, numClassImages=2)
    assert (few.plan.num_own_class_images, class_image_names(few)) == (2, {"a dog": []})
    assert CLASS_IMAGES.run(few, Silent())["generated"] == 0
    assert len(class_images_of(few)) == 1
    plan = fill_defaults(
        few.plan.job.model_copy(update={"spec": context_of(tmp_path / "job", dogs).plan.spec}),
        image_count=5,
        identifiers=["sks"],
        zero_stage=1,
        precision="fp32",
    )
    plan = with_own_class_images(plan, 300)  # fmt: skip
    assert (plan.num_class_images, plan.num_own_class_images) == (300, 300)
    with pytest.raises(ValidationError, match="does not apply to mode Prediction; remove images"):
        context_of(tmp_path / "job", dogs, mode="Prediction", sampler={})


def test_changed_images_are_encoded_again_and_lost_ones_restored(tmp_path: Path, dogs: Path) -> None:
    context = context_of(tmp_path / "job", dogs, numClassImages=3)
    CLASS_IMAGES.run(context, Silent())
    before = own_class_image_store(context)
    Path(before.url, "000001.png").unlink()
    assert not CLASS_IMAGES.complete(context)
    encode_shared(context, class_images_of(context), lambda _: None)
    assert before.names() == {"000000", "000001", "000002"}
    inputs = CLASS_IMAGES.inputs(context)
    (dogs / "1.png").write_bytes(encoded(noise(48, 32, seed=9)))
    changed = context_of(tmp_path / "job", dogs, numClassImages=3)
    assert own_class_image_store(changed).url != before.url
    assert CLASS_IMAGES.inputs(changed) != inputs


def test_all_unusable_class_images_are_reported_before_any_is_generated(tmp_path: Path, dogs: Path) -> None:
    (dogs / "1.png").write_bytes(b"text")
    (dogs / "2.png").write_bytes(encoded(noise(8, 8)))
    context = context_of(tmp_path / "job", dogs.parent, numClassImages=5)
    with pytest.raises(UserError) as caught:
        CLASS_IMAGES.run(context, Silent())
    path = 'spec.priorPreservation.images["1_dog/{}.png"]'
    assert [issue.path for issue in caught.value.issues] == [path.format(1), path.format(2)]
    assert not class_image_store(context, "a dog").names()
    with pytest.raises(UserError, match=r"^spec.priorPreservation.images.uri: '.*': does not exist"):
        context_of(tmp_path / "job", tmp_path / "none")


def test_own_class_images_need_a_single_subject_and_a_method_with_class_images(load_text: LoadText) -> None:
    for text, message in (
        (spec_text("priorPreservation: {images: {}}"), "priorPreservation.images .*: sets nothing; set exactly one of"),
        (
            spec_text("priorPreservation: {images: {uri: dogs}}\ntraining: {method: TextualInversion}"),
            "spec.priorPreservation.images .*: method TextualInversion does not change the model's weights",
        ),
        (
            spec_text("priorPreservation: {images: {uri: dogs}}").replace(
                "  subject:\n    images: {uri: photos}\n    class: dog\n", ""
            )
            + "  subjects: [{images: {uri: a}, class: dog}, {images: {uri: b}, class: cat, identifier: zwx}]\n",
            "spec.priorPreservation.images .*: applies to a single subject; remove images",
        ),
    ):
        with pytest.raises(UserError, match=message):
            load_text(text)
    job = load_text(spec_text("priorPreservation: {images: {uri: dogs}}"))
    assert Path(job.spec.prior_preservation.images.uri).is_absolute(), "relative to the job file"
