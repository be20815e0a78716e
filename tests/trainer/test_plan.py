"""Resolved defaults, the split of the batch, and the choice of the ZeRO stage."""

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from dreambooth_api.deepspeed_keys import PLANNED, reserved_keys
from dreambooth_api.errors import UserError
from dreambooth_api.job import DreamBoothJob, JobSpec
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.cluster.hardware import Hardware
from dreambooth_trainer.planning import describe
from dreambooth_trainer.planning.defaults import PAPER, SPRITES
from dreambooth_trainer.planning.describe import class_images_row, preservation_row
from dreambooth_trainer.planning.fit import check_stage
from dreambooth_trainer.planning.machine_memory import phase_bytes
from dreambooth_trainer.planning.make_plan import PlannedJob
from dreambooth_trainer.planning.memory import (
    GIB,
    MemoryNeed,
    ModelSize,
    StageChoice,
    choose_stage,
    memory_need,
    plain_bytes,
    sampling_need,
    zero_need,
)
from dreambooth_trainer.planning.plan import Plan, SamplerSettings, fill_defaults, fingerprint
from dreambooth_trainer.training.deepspeed_config import deepspeed_config, merge

STABLE_DIFFUSION = ModelSize(
    trainable=860_000_000,
    frozen=0,
    pipeline=4 * 1_066_000_000,
    encoders=4 * 206_000_000,
    loaded=4 * 860_000_000,
    assembled=4 * 1_066_000_000,
    activations=300_000_000,
    backward=110_000_000,
    sampling=800_000_000,
    encoding=1_300_000_000,
)


def job_of(spec: dict | None = None) -> DreamBoothJob:
    return DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": "my-dog"},
            "spec": {"subject": {"class": "dog", "images": {"uri": "photos"}}, **(spec or {})},
        }
    )


def make_plan(spec: dict | None = None, images: int = 4, gpus: int = 0, precision: str = "fp32") -> Plan:
    job = job_of(spec)
    identifiers = [subject.identifier for subject in job.spec.all_subjects]
    return fill_defaults(
        job, image_count=images, identifiers=identifiers, zero_stage=1, precision=precision, gpus_per_worker=gpus
    )


def test_models_other_than_the_embedded_one_get_the_defaults_of_the_paper() -> None:
    plan = make_plan({"model": {"id": "some/model"}})
    assert (plan.steps, plan.learning_rate, plan.resolution, plan.num_class_images) == (1000, 5e-6, 512, 800)
    assert plan.spec.prior_loss_weight == 1.0
    assert make_plan({"model": {"id": "some/model"}}, images=12).num_class_images == PAPER.max_class_images


def test_the_embedded_model_has_its_own_defaults() -> None:
    plan = make_plan()
    assert (plan.steps, plan.learning_rate, plan.resolution) == (SPRITES.steps, SPRITES.learning_rates["Full"], 32)
    assert [(s.instance_prompt, s.class_prompt, s.noun) for s in plan.subjects] == [("a sks dog", "a dog", "sks dog")]


def test_values_of_the_job_override_defaults() -> None:
    plan = make_plan(
        {
            "training": {"steps": 7, "learningRate": 0.5, "globalBatchSize": 6},
            "priorPreservation": {"numClassImages": 9},
        }
    )
    assert (plan.steps, plan.learning_rate, plan.batch_size, plan.num_class_images) == (7, 0.5, 6, 9)


def test_only_as_many_class_images_are_planned_as_training_uses() -> None:
    training = {"steps": 10, "globalBatchSize": 3}
    assert make_plan({"training": training}).num_class_images == 30
    assert make_plan({"training": training, "priorPreservation": {"numClassImages": 31}}).num_class_images == 30
    assert make_plan({"training": training, "priorPreservation": {"numClassImages": 29}}).num_class_images == 29


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (500, "30 of 'a dog' (500 requested; 10 steps of 3 class images use 30), 20 steps"),
        (30, "30 of 'a dog', 20 steps"),
        (None, "30 of 'a dog' (10 steps of 3 class images use 30), 20 steps"),
    ],
)
def test_the_plan_states_that_training_uses_fewer_class_images(wanted: int | None, text: str) -> None:
    plan = make_plan({"training": {"steps": 10, "globalBatchSize": 3}, "priorPreservation": {"numClassImages": wanted}})
    assert class_images_row(plan).startswith(text)


@pytest.mark.parametrize(
    ("mode", "method", "text"),
    [
        (None, "Full", "Images, loss weight 1"),
        ("Prediction", "Full", "Prediction, loss weight 1, with a frozen copy of the trained modules"),
        ("Prediction", "LoRA", "Prediction, loss weight 1"),
        ("Bound", "Full", "Bound, loss weight 0.01, with a frozen copy of the trained modules"),
        ("None", "LoRA", "None: expect language drift"),
        (None, "TextualInversion", "None: the weights do not change"),
    ],
)
def test_the_plan_states_how_the_prior_is_preserved(mode: str | None, method: str, text: str) -> None:
    plan = make_plan({"training": {"method": method}, "priorPreservation": {"mode": mode}})
    assert preservation_row(plan) == text
    assert (class_images_row(plan) == "none") == (not text.startswith("Images"))


@pytest.mark.parametrize(
    ("model", "rate"), [(None, SPRITES.learning_rates["LoRA"]), ({"id": "some/model"}, 1e-4)], ids=["built-in", "other"]
)
def test_lora_has_its_own_default_learning_rate(model: dict | None, rate: float) -> None:
    lora = {"method": "LoRA", "textEncoder": {"train": True}}
    plan = make_plan({"model": model, "training": lora})
    assert (plan.learning_rate, plan.text_encoder_learning_rate) == (rate, rate)
    plan = make_plan({"model": model, "training": {**lora, "learningRate": 2e-5}})
    assert (plan.learning_rate, plan.text_encoder_learning_rate) == (2e-5, 2e-5)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            {"training": {"globalBatchSize": 3}, "cluster": {"workers": 2}},
            "spec.training.globalBatchSize: 3: cannot be split evenly across 2 worker(s) x 1 accumulation step(s); "
            "set a multiple of 2, for example with the same number of samples: training.globalBatchSize: 4, "
            "training.steps: 300, training.learningRate: 0.00017; or use fewer workers",
        ),
        (
            {
                "training": {"globalBatchSize": 4, "gradientAccumulationSteps": 2},
                "cluster": {"elastic": {"minWorkers": 2, "maxWorkers": 3}},
            },
            "spec.training.globalBatchSize: 4: cannot be split evenly across any number of workers from 2 to 3 x 2 "
            "accumulation step(s); set a multiple of 12, for example with the same number of samples: "
            "training.globalBatchSize: 12, training.steps: 133, training.learningRate: 0.00026; or use fewer workers",
        ),
        (
            {"model": {"id": "some/model"}, "cluster": {"workers": 8}},
            "spec.training.globalBatchSize: 1: the default cannot be split evenly across 8 worker(s) x 1 "
            "accumulation step(s); set a multiple of 8, for example with the same number of samples: "
            "training.globalBatchSize: 8, training.steps: 125, training.learningRate: 1.4e-05; or use fewer workers",
        ),
    ],
)
def test_a_batch_that_cannot_be_split_is_rejected(spec: dict, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(spec)
    assert str(caught.value) == sentence


def test_the_remedy_is_a_plan_with_the_same_number_of_samples() -> None:
    plan = make_plan({"model": {"id": "some/model"}})
    other = {"globalBatchSize": 8, "steps": 125, "learningRate": 1.4e-05}
    remedy = make_plan({"model": {"id": "some/model"}, "cluster": {"workers": 8}, "training": other})
    assert plan.samples == remedy.samples == 1000
    assert ("images of models", "50 steps, guidance scale 7.5") in describe.rows(planned(remedy))
    assert describe.describe(planned(remedy)).count("125 steps x batch size 8 = 1000 samples") == 1
    assert ("training", "Full, 125 steps x batch size 8 = 1000 samples, learning rate 1.4e-05, 512 px, fp32") in (
        describe.rows(planned(remedy))
    )


def planned(plan: Plan) -> PlannedJob:
    choice = StageChoice(1, "", MemoryNeed(0, 0, 0, 0, 0), fits=True)
    return PlannedJob(plan, (5,), Hardware(0, "CPU", None, bf16=False), STABLE_DIFFUSION, choice, 1)


@pytest.mark.parametrize(
    ("training", "field", "value"),
    [({"warmupSteps": 500}, "warmupSteps", 500), ({"checkpointEverySteps": 401}, "checkpointEverySteps", 401)],
)
def test_step_counts_above_the_default_number_of_steps_are_rejected(training: dict, field: str, value: int) -> None:
    with pytest.raises(UserError) as caught:
        make_plan({"training": training})
    assert str(caught.value) == (
        f"spec.training.{field}: {value}: exceeds training.steps, which defaults to 400; decrease {field}, or set "
        "training.steps"
    )


def test_all_step_counts_above_the_default_are_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        make_plan({"training": {"warmupSteps": 500, "checkpointEverySteps": 500}})
    assert len(caught.value.issues) == 2
    assert make_plan({"training": {"warmupSteps": 400, "checkpointEverySteps": 400}}).steps == 400


def test_an_interval_of_validations_fits_the_default_number_of_steps() -> None:
    def every(steps: int) -> Plan:
        return make_plan({"training": {"validation": {"prompts": ["a {}"], "everySteps": steps}}})

    with pytest.raises(UserError, match=r"everySteps: 3: gives more than 100 validations in 400 steps; set 4 or more"):
        every(3)
    assert every(4).steps == 400
    # In the CRD, 100 x everySteps is an int64.
    with pytest.raises(ValidationError, match="less than or equal to 1000000"):
        every(10**17)


def test_the_batch_is_split_across_all_gpus() -> None:
    with pytest.raises(UserError, match=r"across 1 worker\(s\) x 8 GPUs x 1 accumulation step"):
        make_plan({"model": {"id": "some/model"}}, gpus=8)
    plan = make_plan({"training": {"globalBatchSize": 16}, "cluster": {"workers": 2}}, gpus=8)
    assert plan.world_sizes == (16, 16)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_batch_size_does_not_depend_on_the_number_of_workers(workers: int) -> None:
    assert make_plan({"cluster": {"workers": workers}}).batch_size == SPRITES.batch_size


@pytest.mark.parametrize(
    ("available", "workers", "stage", "fits"),
    [(40, 1, 1, True), (8, 4, 1, True), (7, 4, 2, True), (6, 4, 3, True), (1, 4, 3, False), (1, 1, 1, False)],
)
def test_the_lowest_stage_that_fits_is_chosen(available: float, workers: int, stage: int, fits: bool) -> None:
    choice = choose_stage(
        "auto",
        STABLE_DIFFUSION,
        gpu=True,
        available=available * GIB,
        world_size=workers,
        precision="bf16",
    )
    assert (choice.stage, choice.fits) == (stage, fits)
    assert f"of {available:.1f} GiB" in choice.reason


def test_zero_3_is_not_used_with_dora() -> None:
    training = {"method": "DoRA", "deepspeed": {"stage": 3}}
    with pytest.raises(UserError, match=r"stage: '3': is not supported with method DoRA; set 2, or method: LoRA"):
        check_stage(make_plan({"training": training}))
    check_stage(make_plan({"training": {**training, "deepspeed": {"stage": 2}}}))
    check_stage(make_plan({"training": {**training, "method": "LoRA"}}))
    choice = choose_stage(
        "auto", STABLE_DIFFUSION, gpu=True, available=GIB, world_size=4, precision="bf16",
        highest=make_plan({"training": {"method": "DoRA"}}).spec.training.traits.max_zero_stage,
    )  # fmt: skip
    assert (choice.stage, choice.fits) == (2, False)


def test_memory_of_model_states_matches_the_zero_paper() -> None:
    def need(stage: int) -> float:
        found = zero_need(STABLE_DIFFUSION, gpu=True, stage=stage, world_size=4, precision="bf16")
        return found.weights + found.gradients + found.optimizer

    weights = STABLE_DIFFUSION.trainable
    assert need(1) == weights * (2 + 2 + 12 / 4)
    assert need(2) == weights * (2 + 2 / 4 + 12 / 4)
    assert need(3) == weights * 16 / 4


def test_memory_of_a_single_process_without_zero() -> None:
    weights = STABLE_DIFFUSION.trainable
    fp32 = memory_need(STABLE_DIFFUSION, plain_bytes(), gpu=True, frozen_bytes=4)
    assert fp32.total == 16 * weights + STABLE_DIFFUSION.backward + fp32.runtime
    on_cpu = memory_need(STABLE_DIFFUSION, plain_bytes(), gpu=False, frozen_bytes=4)
    assert on_cpu.total == 16 * weights + STABLE_DIFFUSION.activations + on_cpu.runtime
    adam_8bit = memory_need(STABLE_DIFFUSION, plain_bytes(optimizer_bytes=2), gpu=True, frozen_bytes=2)
    assert adam_8bit.total == 10 * weights + STABLE_DIFFUSION.backward + adam_8bit.runtime
    lora = replace(STABLE_DIFFUSION, trainable=15_000_000, frozen=weights)
    need = memory_need(lora, plain_bytes(), gpu=True, frozen_bytes=4)
    assert need.total == 4 * weights + 12 * 15_000_000 + lora.activations + need.runtime


def test_memory_of_a_machine_is_the_sum_over_the_processes_of_each_phase() -> None:
    need = memory_need(STABLE_DIFFUSION, plain_bytes(), gpu=False, frozen_bytes=4)
    sizes = {"sampling_processes": 2, "training_processes": 1}
    phases = phase_bytes(STABLE_DIFFUSION, need, **sizes)
    sampling = sampling_need(STABLE_DIFFUSION)
    assert phases[TrainerPhase.CLASS_IMAGES] == pytest.approx(1.1 * GIB + 2 * sampling)
    assert phases[TrainerPhase.ENCODE] < phases[TrainerPhase.CLASS_IMAGES] < phases[TrainerPhase.EVALUATE]
    assert max(phases, key=lambda name: phases[name]) is TrainerPhase.TRAIN
    assert phases[TrainerPhase.TRAIN] == pytest.approx(need.total + 2.62 * GIB)


def test_the_plan_for_one_machine_shows_the_memory_of_each_phase() -> None:
    job = planned(make_plan())
    assert "memory by phase" not in dict(describe.rows(job))
    hardware = replace(job.hardware, total_bytes=24 * GIB)
    row = dict(describe.rows(replace(job, hardware=hardware)))["memory by phase"]
    assert row == "ClassImages 6.8, Encode 4.1, Train 2.1, Evaluate 7.2 of 24.0 GiB"


def test_deepspeed_config_splits_the_batch_and_merges_the_jobs_config() -> None:
    plan = make_plan(
        {
            "training": {
                "globalBatchSize": 8,
                "gradientAccumulationSteps": 2,
                "deepspeed": {"config": {"zero_optimization": {"overlap_comm": True}, "steps_per_print": 1}},
            },
            "cluster": {"workers": 2},
        }
    )
    config = deepspeed_config(plan, world_size=2, trainable=10**7, universal=False)
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["steps_per_print"] == 1
    assert config["zero_optimization"] == {
        "stage": 1,
        "reduce_bucket_size": 10**7,
        "allgather_bucket_size": 10**7,
        "overlap_comm": True,
    }
    assert "checkpoint" not in config
    assert deepspeed_config(plan, world_size=1, trainable=10**7, universal=True)["checkpoint"] == {
        "load_universal": True
    }


def test_deepspeed_keys_that_the_plan_sets_are_reserved() -> None:
    generated = deepspeed_config(make_plan(), world_size=1, trainable=10**7, universal=True)
    tunable = {"steps_per_print", "zero_optimization"}
    assert reserved_keys(generated) == [key for key in PLANNED if key in (*generated, "zero_optimization.stage")]
    assert generated.keys() - set(PLANNED) == tunable


def test_merge_does_not_modify_its_arguments() -> None:
    base, over = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(base, over) == {"a": {"b": 1, "c": 2}}
    assert (base, over) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})


def test_the_fast_noise_scheduler_has_its_own_number_of_steps() -> None:
    def sampler(**settings: object) -> SamplerSettings:
        fast = {"scheduler": "DPMSolverMultistep", **settings}
        return make_plan({"model": {"id": "some/model"}, "priorPreservation": {"sampler": fast}}).class_image_sampler

    assert sampler() == SamplerSettings(steps=25, guidance_scale=7.5, scheduler="DPMSolverMultistep")
    assert sampler(steps=50).steps == 50
    assert make_plan({"model": {"id": "some/model"}}).class_image_sampler.scheduler == "Default"
    assert "20 steps of DPMSolverMultistep" in class_images_row(
        make_plan({"priorPreservation": {"sampler": {"scheduler": "DPMSolverMultistep"}}})
    )


DOG = {"class": "dog", "images": {"uri": "dog"}}
CAT = {"class": "cat", "images": {"uri": "cat"}, "identifier": "ohwx"}


def plan_subjects(*subjects: dict, images: int = 8, **spec: Any) -> Plan:
    job = job_of(spec)
    listed = JobSpec.model_validate({"subjects": list(subjects), **spec})
    job = job.model_copy(update={"spec": listed})
    identifiers = [subject.identifier for subject in listed.all_subjects]
    return fill_defaults(job, image_count=images, identifiers=identifiers, zero_stage=1, precision="fp32")


def test_each_subject_has_its_prompts() -> None:
    plan = plan_subjects(DOG, {**CAT, "instancePrompt": "photo of ohwx", "classPrompt": "a photo of a cat"})
    assert plan.instance_prompts == ("a sks dog", "photo of ohwx")
    assert [subject.noun for subject in plan.subjects] == ["sks dog", "ohwx cat"]
    assert plan.class_image_counts == {"a dog": 100, "a photo of a cat": 100}


def test_steps_default_to_those_of_one_subject_times_their_number() -> None:
    assert plan_subjects(DOG, CAT).steps == 2 * SPRITES.steps
    assert plan_subjects(DOG, CAT, training={"steps": 7}).steps == 7


def test_a_list_of_one_subject_is_planned_as_a_single_subject() -> None:
    single, listed = make_plan(images=4), plan_subjects(DOG, images=4)
    assert listed.model_copy(update={"job": single.job}) == single


def test_subjects_of_the_same_class_share_class_images() -> None:
    plan = plan_subjects(DOG, {**DOG, "identifier": "ohwx"}, CAT | {"identifier": "zwx"}, images=1)
    assert plan.class_image_counts == {"a dog": 25, "a cat": 25}
    plan = plan_subjects(DOG, CAT, priorPreservation={"numClassImages": 9})
    assert plan.class_image_counts == {"a dog": 5, "a cat": 4}


def test_every_class_prompt_needs_class_images() -> None:
    with pytest.raises(UserError, match="is less than the number of class prompts, which is 2; set 2 or more"):
        plan_subjects(DOG, CAT, priorPreservation={"numClassImages": 1})
    assert plan_subjects(DOG, CAT, priorPreservation={"mode": "None"})


def test_an_interval_with_too_many_validations_of_the_default_steps_is_rejected() -> None:
    training = {"validation": {"prompts": ["a {}"], "everySteps": 9}}
    with pytest.raises(
        UserError, match=r"validation\.everySteps: 9: .*more than 100 validations in 1000 steps; set 10 or"
    ):
        make_plan({"model": {"id": "some/model"}, "training": training})
    training["validation"]["everySteps"] = 10
    make_plan({"model": {"id": "some/model"}, "training": training})
