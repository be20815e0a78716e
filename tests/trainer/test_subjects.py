"""Several subjects in one job: validation, identifiers, images, latents, evaluation and scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from imagefiles import encoded, noise
from inline_pool import InlinePool
from jobtext import LoadText
from PIL import Image

from dreambooth_api.errors import UserError
from dreambooth_api.job import DreamBoothJob, Thresholds
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.images.sources import RawImage
from dreambooth_trainer.images.subjects import prepare_subjects, read_subjects
from dreambooth_trainer.metrics.scores import Scores, failed_thresholds, mean_scores
from dreambooth_trainer.phases import evaluate
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.phases.class_images import CLASS_IMAGES, class_image_key, class_image_names, class_image_store
from dreambooth_trainer.phases.encode import (
    ENCODE,
    class_images_of,
    encode,
    encode_shared,
    instance_prompts,
    instance_weights,
)
from dreambooth_trainer.phases.prepare import PREPARE
from dreambooth_trainer.phases.train import TRAIN
from dreambooth_trainer.planning.plan import Plan, fill_defaults
from dreambooth_trainer.sampling.evaluation_set import image_requests
from dreambooth_trainer.sampling.identifiers import select_identifiers
from dreambooth_trainer.sampling.prompt_check import check_prompts
from dreambooth_trainer.sprites import WEIGHTS
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.training.cache import load_data

DOG = {"images": {"uri": "builtin:sprites/dog-pink-blue"}, "class": "dog", "identifier": "sks"}
TEAPOT = {"images": {"uri": "builtin:sprites/teapot-slate-orange"}, "class": "teapot", "identifier": "zwx"}


def job_of(*subjects: dict[str, Any], **spec: Any) -> DreamBoothJob:
    return DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": "pets"},
            "spec": {"subjects": list(subjects), "priorPreservation": {"numClassImages": 4}, **spec},
        }
    )


def plan_of(job: DreamBoothJob) -> Plan:
    identifiers = [subject.identifier for subject in job.spec.all_subjects]
    return fill_defaults(job, image_count=10, identifiers=identifiers, zero_stage=1, precision="fp32")


def context_of(job: DreamBoothJob, folder: Path) -> Context:
    _, images, _ = read_subjects(job.spec)
    pool: Any = InlinePool(1)
    return Context(plan_of(job), JobFolder(folder), tuple(images), str(folder / "store"), {}, pool)


class Silent:
    def total(self, count: int) -> None: ...

    def done(self, count: int, **facts: object) -> None: ...


def test_a_single_subject_is_a_list_of_one() -> None:
    subject = {"images": {"uri": "x"}, "class": "dog", "captions": {"1.png": "a sks dog asleep"}}
    head = job_of(DOG).model_dump(by_alias=True, mode="json", exclude={"spec"})
    spec = {"subject": subject, "priorPreservation": {"classPrompt": "a photo of a dog"}}
    single = DreamBoothJob.model_validate({**head, "spec": spec}).spec
    listed = job_of({**subject, "classPrompt": "a photo of a dog"}).spec
    assert single.all_subjects == listed.all_subjects
    assert (single.subject_fields, listed.subject_fields) == (("spec.subject",), ("spec.subjects[0]",))


LIST = """\
apiVersion: dreambooth.dev/v1alpha1
kind: DreamBoothJob
metadata: {name: pets}
spec:
  subjects:
    - {images: {uri: dog}, class: dog, identifier: }
    - {images: {uri: cat}, class: cat, identifier: ohwx}
"""
ERRORS = {
    "a subject and a list": (
        LIST + "  subject: {images: {uri: x}, class: dog}\n",
        "spec (line 4): sets subject and subjects; set exactly one of subject, subjects, for example",
    ),
    "the same identifier in another case": (
        LIST.replace("ohwx", "SKS"),
        "spec.subjects (line 5): the identifier 'sks' is used more than once, so prompts cannot tell the subjects "
        "apart; set a different rare word for each subject, or auto",
    ),
    "an identifier that is another subject's class": (
        LIST.replace("ohwx", "dog"),
        "spec.subjects (line 5): the identifier 'dog' is a word of 'dog', which describes a class; set a rare word",
    ),
    "a class prompt for all": (
        LIST + "  priorPreservation: {classPrompt: a pet}\n",
        "spec.priorPreservation.classPrompt (line 8): applies to a single subject; set classPrompt in each item of "
        "subjects instead",
    ),
    "a class prompt with the identifier": (
        LIST.replace("class: cat", "class: cat, classPrompt: an ohwx"),
        "spec.subjects[1].classPrompt (line 7): 'an ohwx' contains the identifier 'ohwx', so class images would be",
    ),
    "no class": (
        LIST.replace("class: cat, ", ""),
        "spec.subjects[1].class (line 7): is required; add class: Class noun of the subject",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_in_a_list_names_the_item(load_text: LoadText, case: str) -> None:
    text, message = ERRORS[case]
    with pytest.raises(UserError) as caught:
        load_text(text)
    assert str(caught.value).startswith(message)


def test_folders_of_a_list_are_relative_to_the_job_file(load_text: LoadText, tmp_path: Path) -> None:
    spec = load_text(LIST).spec
    assert [subject.images.uri for subject in spec.all_subjects] == [str(tmp_path / name) for name in ("dog", "cat")]
    assert [subject.identifier for subject in spec.all_subjects] == ["sks", "ohwx"], "an empty key gets the default"


def test_selected_identifiers_differ() -> None:
    auto = {**DOG, "identifier": "auto"}
    selected = select_identifiers(job_of(auto, {**TEAPOT, "identifier": "ucd"}, *[auto] * 6), WEIGHTS)
    assert selected[1] == "ucd"
    assert len(set(selected)) == 8
    assert select_identifiers(job_of(auto), WEIGHTS) == select_identifiers(job_of(auto), WEIGHTS)


def test_issues_and_warnings_name_the_subject() -> None:
    spec = job_of({**DOG, "captions": {"9.png": "a sks dog"}}, TEAPOT).spec
    good, small = (RawImage(name, encoded(noise())) for name in ("0.png", "1.png"))
    with pytest.raises(UserError) as caught:
        prepare_subjects([[good], [good, RawImage("bad.png", b"x" * 4096)]], spec, 32)
    assert [issue.path for issue in caught.value.issues] == [
        'spec.subjects[0].captions["9.png"]',
        'spec.subjects[1].images["bad.png"]',
    ]
    _, warnings = prepare_subjects([[good, small], [good]], job_of(DOG, TEAPOT).spec, 32)
    assert [warning.partition(": ")[0] for warning in warnings] == ["spec.subjects[0]"] * 2 + ["spec.subjects[1]"]


def test_prompts_of_each_subject_are_checked() -> None:
    long = "a {} " + "on the beach " * 6
    job = job_of(DOG, {**TEAPOT, "identifier": "abcdefgh", "instancePrompt": long.replace("{}", "abcdefgh")})
    issues, warnings = check_prompts(plan_of(job), WEIGHTS)
    assert [issue.path for issue in issues] == ["spec.subjects[1].instancePrompt"]
    assert "set subjects[1].identifier: auto" in warnings[0]


def test_every_subject_is_evaluated_and_a_shared_class_once() -> None:
    plan = plan_of(job_of(DOG, {**DOG, "identifier": "zwx"}, evaluation={"prompts": ["a {} on the beach"]}))
    prompts = [request.prompt for request in image_requests(plan, "after")]
    assert {prompt: prompts.count(prompt) for prompt in prompts} == {
        "a sks dog on the beach": 4, "a sks dog": 8, "a zwx dog on the beach": 4, "a zwx dog": 8, "a dog": 32,
    }  # fmt: skip


def test_class_images_have_the_key_of_a_job_with_one_subject(tmp_path: Path) -> None:
    several, single = context_of(job_of(DOG, TEAPOT), tmp_path), context_of(job_of(TEAPOT), tmp_path)
    assert class_image_names(several) == {"a dog": ["000000", "000001"], "a teapot": ["000000", "000001"]}
    assert class_image_key(several, "a teapot") == class_image_key(single, "a teapot")
    assert class_image_key(several, "a teapot") != class_image_key(several, "a dog")


def test_reused_class_images_of_all_prompts_are_counted(tmp_path: Path) -> None:
    context, reported = context_of(job_of(DOG, TEAPOT), tmp_path), list[object]()
    for prompt, names in class_image_names(context).items():
        for name in names:
            class_image_store(context, prompt).put(name, Image.new("RGB", (32, 32)))

    class Progress(Silent):
        def done(self, count: int, **facts: object) -> None:
            reported.append((count, facts["reused"]))

    assert CLASS_IMAGES.run(context, Progress())["reused"] == 4
    assert reported == [(2, 2), (4, 4)]


def test_latents_know_the_images_of_each_subject(tmp_path: Path) -> None:
    job = job_of(DOG, TEAPOT, {**DOG, "identifier": "olis"}, priorPreservation={"numClassImages": 5})
    context = context_of(job, tmp_path)
    PREPARE.run(context, Silent())
    class_images = class_images_of(context)
    for images in class_images:
        for name in images.names:
            images.store.put(name, Image.new("RGB", (32, 32)))
    encode_shared(context, class_images, lambda _: None)
    encode(context.plan, context.folder, instance_prompts(context), instance_weights(context), class_images)
    data = load_data(context.folder.latents)
    counts = [len(images) for images in context.images]
    assert [len(images) for images in data.instance_images.indices] == counts
    assert data.class_images
    assert data.class_images.indices == ((0, 1, 2), (3, 4), (0, 1, 2))
    first = [images[0] for images in data.instance_images.indices]
    prompts = data.instance_images.prompts["input_ids"][data.instance_images.prompt_indices[first]]
    assert len({tuple(row) for row in prompts.tolist()}) == 3, "each subject has its own instance prompt"
    means = data.instance_images.images["latent_mean"][first]
    assert torch.equal(means[0], means[2])
    assert not torch.equal(means[0], means[1])


def test_class_prompts_of_mode_prediction_have_the_images_of_their_subjects(tmp_path: Path) -> None:
    job = job_of(DOG, TEAPOT, priorPreservation={"mode": "Prediction"}, training={"randomFlip": True})
    context = context_of(job, tmp_path)
    PREPARE.run(context, Silent())
    assert CLASS_IMAGES.complete(context)
    assert CLASS_IMAGES.run(context, Silent())["wanted"] == 0, "no class images are generated"
    assert class_images_of(context) == []
    encode(context.plan, context.folder, instance_prompts(context), instance_weights(context), [])
    data = load_data(context.folder.latents)
    dogs, teapots = (2 * len(images) for images in context.images)
    known, learned = data.class_images, data.instance_images
    assert known
    assert known.indices == (tuple(range(dogs)), tuple(range(dogs, dogs + teapots))), "each variant is an image"
    assert torch.equal(known.images["latent_mean"], learned.images["latent_mean"])
    prompts = known.prompts["input_ids"][known.prompt_indices]
    assert len({tuple(row) for row in prompts[:dogs].tolist()}) == 1
    assert not torch.equal(prompts[0], prompts[-1])
    assert not torch.equal(prompts[0], learned.prompts["input_ids"][learned.prompt_indices[0]])


def test_what_is_encoded_and_learned_depends_on_the_mode(tmp_path: Path) -> None:
    keys = {TrainerPhase.PREPARE: "p", TrainerPhase.CLASS_IMAGES: "c", TrainerPhase.ENCODE: "e"}

    def inputs(phase: Phase, class_prompt: str = "a dog", **preservation: object) -> str:
        subject = {**DOG, "classPrompt": class_prompt}
        context = context_of(job_of(subject, priorPreservation=preservation), tmp_path)
        return json.dumps(phase.inputs(replace(context, keys=keys)))

    modes = ("Images", "Prediction", "Bound", "None")
    assert len({inputs(TRAIN, mode=mode) for mode in modes}) == 4
    assert len({inputs(TRAIN, mode="Bound", lossWeight=weight) for weight in (0.1, 0.2)}) == 2
    assert inputs(TRAIN) == inputs(TRAIN, mode="Images", lossWeight=1)
    assert inputs(ENCODE, mode="Bound") == inputs(ENCODE, mode="None") != inputs(ENCODE, mode="Prediction")
    assert inputs(ENCODE, "a photo of a dog", mode="Prediction") != inputs(ENCODE, mode="Prediction")
    assert inputs(ENCODE, "a photo of a dog", mode="None") == inputs(ENCODE, mode="None")


SCORES = {name: Scores(values=values) for name, values in (("sks", {"dino": 0.8, "div": 0.2}), ("zwx", {"dino": 0.4}))}


# A worker loads the encoders for each call.
@pytest.mark.parametrize(("workers", "calls"), [(1, 2), (2, 2), (3, 2), (4, 4), (9, 6)])
def test_scores_do_not_depend_on_the_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, calls: int
) -> None:
    subjects = [DOG, *({**DOG, "identifier": identifier} for identifier in ("zwx", "ucd"))]
    plan = plan_of(job_of(*subjects, evaluation={"prompts": ["a {} on the beach"], "imagesPerPrompt": 2}))
    context: Any = SimpleNamespace(
        plan=plan, folder=JobFolder(tmp_path), keys={TrainerPhase.TRAIN: "t"}, base_digest="b", encoder_commits={},
        pool=InlinePool(workers),
    )  # fmt: skip
    pixels = np.random.default_rng(0)

    def random_image() -> Image.Image:
        return Image.fromarray(pixels.integers(0, 255, (32, 32, 3), dtype=np.uint8))

    context.folder.photos.mkdir(parents=True)
    for index in range(len(subjects)):
        random_image().save(context.folder.photos / f"{index}-000.png")

    def generate(context: Any, stores: Any, progress: Any) -> int:
        for model, store in stores.items():
            for request in image_requests(plan, model):
                store.put(request.name, random_image())
        return 0

    monkeypatch.setattr(evaluate, "_generate", generate)
    result = evaluate.EVALUATE.run(context, SimpleNamespace(done=lambda *_, **__: None))
    assert list(result["subjects"]) == ["sks", "zwx", "ucd"]
    assert context.pool.calls == ["score_images"] * calls
    one_by_one = {
        model: mean_scores(
            {
                subject.identifier: evaluate.score_images(
                    plan, context.folder, model, evaluate.evaluation_store(context, model), [index], {}
                )[1][index]
                for index, subject in enumerate(plan.subjects)
            }
        )
        for model in ("before", "after")
    }
    assert evaluate.read_scores(context) == one_by_one


def test_scores_of_several_subjects_are_means() -> None:
    assert mean_scores(SCORES).values == {"dino": pytest.approx(0.6)}
    assert mean_scores(SCORES).subjects == SCORES
    assert mean_scores({"sks": SCORES["sks"]}) == SCORES["sks"]
    assert Scores.model_validate_json(mean_scores(SCORES).model_dump_json()) == mean_scores(SCORES)


def test_every_subject_must_reach_the_thresholds() -> None:
    (issue,) = failed_thresholds(mean_scores(SCORES), Thresholds.model_validate({"dino": 0.5}))
    assert issue.rule == "the trained model scores 0.400 for the subject 'zwx'"
    assert failed_thresholds(mean_scores(SCORES), Thresholds.model_validate({"dino": 0.4})) == []
