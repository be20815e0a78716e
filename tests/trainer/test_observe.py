"""The driver scores validations and feeds trackers while the workers train; nothing of that fails a job."""

from __future__ import annotations

import contextlib
import json
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from test_plan import make_plan

from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.metrics.measure import PromptImages
from dreambooth_trainer.metrics.scores import Scores
from dreambooth_trainer.phases import observe, select, train
from dreambooth_trainer.phases.observe import Observer, observing
from dreambooth_trainer.phases.select import Choice
from dreambooth_trainer.phases.validate import Scorer
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.report.scores import read_selection
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.validations import Validations
from dreambooth_trainer.training.messages import History, ProgressActor, StepRecord

TRAINING = {"steps": 4, "validation": {"prompts": ["a {} on the beach", "a {} in the snow"], "everySteps": 2}}


class LocalActor:
    """An object whose methods are called as those of a Ray actor, in this process."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._target, name))


@pytest.fixture(autouse=True)
def local_ray(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    killed: list[Any] = []
    fake = SimpleNamespace(
        get=lambda result: result,
        is_initialized=lambda: True,
        kill=killed.append,
        remote=lambda **_: lambda cls: SimpleNamespace(remote=lambda *arguments: LocalActor(cls(*arguments))),
    )
    monkeypatch.setattr(observe, "ray", fake)
    monkeypatch.setattr(observe, "POLL_SECONDS", 0.01)
    return killed


def context_of(plan: Plan, folder: Path) -> Any:
    job = JobFolder(folder)
    job.photos.mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(job.photos / "0-000.png")
    return SimpleNamespace(plan=plan, folder=job, keys={TrainerPhase.TRAIN: "key"}, encoder_commits={})


def record(step: int) -> StepRecord:
    return StepRecord(step, loss=1.0 / step, instance_loss=1.0, prior_loss=0.5, learning_rate=1e-4, world_size=1)


def test_validations_are_scored_and_drawn(
    tmp_path: Path, local_ray: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan({"training": TRAINING})
    context, actor = context_of(plan, tmp_path), ProgressActor()
    with observing(context, plan, LocalActor(actor), {}) as observer:
        assert observer
        assert observer.validations
        for step in (0, 2):
            for number in range(2):
                observer.validations.put(step, number, Image.new("RGB", (32, 32), (90 * step, 60, 60)))
        observer.validations.put(4, 0, Image.new("RGB", (32, 32)))  # not complete
        observer.succeed([record(step + 1) for step in range(4)])
    assert observer.warnings == ["the images of the last step are not complete, because a worker was stopped"]
    scores = observer.validations.scores()
    assert list(scores) == [0, 2]
    assert set(scores[0]) == {"dino", "clipI", "clipT"}
    assert scores[0] != scores[2]
    width, height = Image.open(tmp_path / "validation" / "course.png").size
    assert (width > 2 * 192, height > 2 * 192) == (True, True)
    assert len(local_ray) == 1, "the scorer is stopped"
    scored: list[object] = []
    monkeypatch.setattr(Scorer, "score", lambda _, images: scored.append(images) or scores[0])
    with observing(context, plan, LocalActor(actor), {}) as again:
        assert again
        assert again.validations
    assert (again.warnings, again.validations.scores()) == ([], scores)
    assert scored == [], "a run that continues scores nothing again"


def test_each_subject_is_scored_with_its_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"sks": "dog", "zwx": "teapot"}
    subjects = [
        {"class": noun, "identifier": name, "images": {"uri": "builtin:sprites/dog-pink-blue"}}
        for name, noun in names.items()
    ]
    plan = make_plan({"subject": None, "subjects": subjects, "training": TRAINING})
    job, scored = JobFolder(tmp_path), list[Any]()
    job.photos.mkdir(parents=True)
    for index, color in enumerate(("red", "blue")):
        Image.new("RGB", (8, 8), color).save(job.photos / f"{index}-000.png")

    def measured(_: object, real: list[Image.Image], groups: list[PromptImages]) -> Scores:
        colors = [image.getpixel((0, 0)) for image in (*real, *(image for group in groups for image in group.images))]
        scored.append(([group.text for group in groups], colors))
        return Scores(values={"dino": len(scored), "clipI": 0.5, "clipT": 0.25, "div": 0.1})

    monkeypatch.setattr("dreambooth_trainer.metrics.encoders.load_encoders", lambda *_, **__: None)
    monkeypatch.setattr("dreambooth_trainer.metrics.measure.measure", measured)
    shades = [(number, 0, 0) for number in range(4)]
    values = Scorer(plan, job, {}).score([Image.new("RGB", (8, 8), shade) for shade in shades])
    assert values == {"dino": 1.5, "clipI": 0.5, "clipT": 0.25}, "means over the subjects"
    assert scored == [
        (["a dog on the beach", "a dog in the snow"], [(255, 0, 0), *shades[:2]]),
        (["a teapot on the beach", "a teapot in the snow"], [(0, 0, 255), *shades[2:]]),
    ], "CLIP does not know the identifiers"


def test_images_are_not_scored_without_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The exception of `pytest.fail` would end the observer's thread unseen.
    scored: list[object] = []
    monkeypatch.setattr(Scorer, "score", lambda _, images: scored.append(images) or {})
    plan = make_plan({"training": TRAINING, "evaluation": {"enabled": False}})
    context = context_of(plan, tmp_path)
    with observing(context, plan, LocalActor(ProgressActor()), {}) as observer:
        assert observer
        assert observer.validations
        for number in range(2):
            observer.validations.put(0, number, Image.new("RGB", (32, 32)))
    assert (observer.warnings, observer.validations.scores(), scored) == ([], {}, [])
    assert (tmp_path / "validation" / "course.png").exists()


def test_an_encoder_that_fails_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Scorer, "score", fail)
    plan = make_plan({"training": TRAINING})
    with observing(context_of(plan, tmp_path), plan, LocalActor(ProgressActor()), {}) as observer:
        assert observer
        assert observer.validations
        for step, number in ((0, 0), (0, 1), (2, 0), (2, 1)):
            observer.validations.put(step, number, Image.new("RGB", (32, 32)))
    assert observer.warnings == ["a validation could not be scored or drawn: no space left"], "once"


BEST = {"training": TRAINING, "output": {"select": "Best"}}


def observed(context: Any, plan: Plan) -> Observer:
    """The observer of a whole training, with its images and weights."""
    with observing(context, plan, LocalActor(ProgressActor()), {}) as observer:
        assert observer
        store_training(observer)
        observer.succeed([record(step + 1) for step in range(4)])
    return observer


def store_training(observer: Observer) -> None:
    """Store images and weights of all validations, as the workers do."""
    assert observer.validations
    assert observer.candidates
    for step in (0, 2, 4):
        for number in range(2):
            observer.validations.put(step, number, Image.new("RGB", (32, 32)))
        if step:
            observer.candidates.folder(step).mkdir(parents=True)
            (observer.candidates.folder(step) / "trained-weights.safetensors").touch()


def test_the_best_step_is_selected_by_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.9, 0.5])
    monkeypatch.setattr(Scorer, "score", lambda *_: {"dino": next(scores), "clipI": 0.5, "clipT": 0.25})
    plan = make_plan(BEST)
    observer = observed(context_of(plan, tmp_path), plan)
    assert observer.candidates
    assert observer.candidates.steps() == [2], "the other weights are deleted while the job trains"
    choice = observer.choose(lambda: pytest.fail("all is scored"))
    assert choice
    assert (choice.step, choice.weights) == (2, observer.candidates.folder(2))
    assert observer.warnings == []


def test_what_could_not_be_scored_is_scored_after_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.9, None, 0.5])

    def score(*_: object) -> dict[str, float]:
        if (dino := next(scores)) is None:
            raise OSError("killed")
        return {"dino": dino, "clipI": 0.5, "clipT": 0.25}

    monkeypatch.setattr(Scorer, "score", score)
    monkeypatch.setattr(observe, "POLL_SECONDS", 60)  # one look, after the end
    plan = make_plan(BEST)
    observer = observed(context_of(plan, tmp_path), plan)
    scored: list[None] = []
    choice = observer.choose(lambda: scored.append(None))
    assert choice
    assert (choice.step, len(scored)) == (2, 1)
    assert observer.warnings == ["a validation could not be scored or drawn: killed"]


def test_without_scores_the_last_step_is_published_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Scorer, "score", fail)
    monkeypatch.setattr(observe, "POLL_SECONDS", 60)
    plan = make_plan(BEST)
    observer = observed(context_of(plan, tmp_path), plan)
    choice = observer.choose(lambda: None)
    assert choice
    assert (choice.step, choice.weights) == (None, None)
    assert observer.warnings == [
        "a validation could not be scored or drawn: no space left",
        "the weights of the last step are published, not those of the best one: the validation of step 0 could not be "
        "scored: no space left",
    ]


def test_a_late_scorer_does_not_change_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chooser, started, released = threading.current_thread(), threading.Event(), threading.Event()
    scores, late = iter([0.1, 0.9, 0.5]), list[object]()

    def score(*arguments: object) -> dict[str, float]:
        if threading.current_thread() is chooser:
            return {"dino": next(scores), "clipI": 0.5, "clipT": 0.25}
        late.append(arguments)
        started.set()
        assert released.wait(10)
        raise OSError("killed")

    monkeypatch.setattr(Scorer, "score", score)
    monkeypatch.setattr(select, "MAX_FAILURES", 1)
    plan = make_plan(BEST)
    observer = Observer(context_of(plan, tmp_path), LocalActor(ProgressActor()), {})
    store_training(observer)
    observer.start()
    assert started.wait(10)
    observer.succeed([record(step + 1) for step in range(4)])
    observer.close(0.01)
    choice = observer.choose(lambda: None)
    released.set()
    observer.close(10)
    assert choice
    assert choice.step == 2
    assert observer.candidates
    assert observer.candidates.has(2), "a failure after training does not delete the weights"
    assert len(late) == 1, "the other validations are not scored twice"


def test_after_an_interrupt_nothing_else_is_scored_and_no_session_is_started(
    tmp_path: Path, local_ray: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, released, scored = threading.Event(), threading.Event(), list[object]()

    def score(*arguments: object) -> dict[str, float]:
        scored.append(arguments)
        started.set()
        assert released.wait(10)
        raise OSError("the session has ended")

    monkeypatch.setattr(Scorer, "score", score)
    plan = make_plan(BEST)
    observer = Observer(context_of(plan, tmp_path), LocalActor(ProgressActor()), {})
    store_training(observer)
    observer.start()
    assert started.wait(10)
    observer.close(0.01)
    monkeypatch.setattr(observe.ray, "is_initialized", lambda: False)
    released.set()
    observer.close(10)
    assert observer.warnings[-1] == "a validation could not be scored or drawn: the session has ended"
    assert len(scored) == 1
    assert local_ray == [], "`ray.kill` starts a session where none is"


CHOICES = {
    "a step": (Choice(2, "Step 2 was selected", Path("weights")), "weights", (2, "Step 2 was selected")),
    "no step": (Choice(None, "/private could not be read"), "checkpoint", (None, train.NO_CHOICE)),
    "not asked for": (None, "checkpoint", (None, "")),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_weights_that_were_chosen_are_published_and_reported(
    case: str, tmp_path: Path, local_ray: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    choice, expected, reported = CHOICES[case]
    plan, saved, shown = make_plan(BEST), list[Any](), list[Any]()
    context = context_of(plan, tmp_path)
    context.pool = SimpleNamespace(
        free_memory=lambda *_: None, cores=lambda: 1, call=lambda _, *arguments: saved.append(arguments[1])
    )
    observer = SimpleNamespace(succeed=lambda records: None, choose=lambda progressed: choice, warnings=["a warning"])
    runtime = SimpleNamespace(get_node_id=lambda: "node")
    monkeypatch.setattr(observe.ray, "get_runtime_context", lambda: runtime, raising=False)
    monkeypatch.setattr(train, "ray", observe.ray)
    monkeypatch.setattr(train, "observing", lambda *_: contextlib.nullcontext(observer))
    monkeypatch.setattr(train, "build_trainer", lambda *_, cores: None)
    monkeypatch.setattr(train, "_fit", lambda *_: Path("checkpoint"))
    monkeypatch.setattr(train, "read_records", lambda _: [record(step + 1) for step in range(4)])
    phase: Any = SimpleNamespace(total=lambda _: None, done=lambda _, **facts: shown.append(facts.get("selected_step")))
    result = train.TRAIN.run(context, phase)
    assert saved == [Path(expected)]
    assert len(local_ray) == 1, "the actor that receives progress is stopped"
    assert shown[-1] == reported[0]
    assert result["warnings"] == ["a warning"]
    completion = context.folder.completion_record(TrainerPhase.TRAIN)
    completion.parent.mkdir(parents=True)
    completion.write_text(json.dumps({"key": "key", **result}))
    run: Any = SimpleNamespace(keys=context.keys)
    assert read_selection(context.folder, run) == reported


def test_jobs_that_publish_the_last_step_keep_no_weights(tmp_path: Path) -> None:
    plan = make_plan({"training": TRAINING})
    with observing(context_of(plan, tmp_path), plan, LocalActor(ProgressActor()), {}) as observer:
        assert observer
        assert observer.candidates is None
    assert observer.choose(lambda: None) is None


def test_an_interrupted_run_waits_only_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    class Stuck:
        def __init__(self, *_: object) -> None: ...

        def log_losses(self, records: object) -> None: ...

        def close(self, *, succeeded: bool) -> None:
            released.wait(5)

    monkeypatch.setattr(observe, "Trackers", Stuck)
    monkeypatch.setattr(observe, "INTERRUPTED_SECONDS", 0.05)
    plan = make_plan({"training": {"reportTo": ["tensorboard"]}})
    seen: list[Observer] = []
    with (
        pytest.raises(KeyboardInterrupt),
        observing(context_of(plan, tmp_path), plan, LocalActor(ProgressActor()), {}) as observer,
    ):
        assert observer
        seen.append(observer)
        raise KeyboardInterrupt
    released.set()
    assert seen[0].warnings == ["scores or trackers were not complete 0 s after training ended"]


def test_trackers_that_cannot_be_opened_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left\non the device")

    monkeypatch.setattr(observe, "Trackers", fail)
    plan = make_plan({"training": {"reportTo": ["tensorboard"]}})
    with observing(context_of(plan, tmp_path), plan, LocalActor(ProgressActor()), {}) as observer:
        assert observer
    assert observer.warnings == ["validation and trackers stopped: OSError: no space left"]


@pytest.mark.parametrize("fails", [False, True])
def test_trackers_get_all_records_and_the_result(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    seen = threading.Event()

    class Recorder:
        def __init__(self, *_: object) -> None:
            events.append("open")

        def log_losses(self, records: list[StepRecord]) -> None:
            events.extend(one.step for one in records)
            if records:
                seen.set()

        def close(self, *, succeeded: bool) -> None:
            events.append(succeeded)

    monkeypatch.setattr(observe, "Trackers", Recorder)
    plan = make_plan({"training": {"reportTo": ["tensorboard"]}})
    actor = ProgressActor()

    def train() -> None:
        with observing(context_of(plan, tmp_path), plan, LocalActor(actor), {}) as observer:
            assert observer
            assert observer.validations is None
            actor.put(History((record(1), record(2))))
            assert seen.wait(10)
            if fails:
                raise OSError("the node was lost")
            observer.succeed([record(1), record(2), record(3)])

    if fails:
        with pytest.raises(OSError, match="the node was lost"):
            train()
        assert events == ["open", 1, 2, False]
    else:
        train()
        assert events == ["open", 1, 2, 1, 2, 3, True], "Trackers skips what it has logged"


def test_a_folder_that_cannot_be_read_once_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed, events, closed = threading.Event(), list[int](), list[bool]()

    def steps(_: object) -> list[int]:
        if not failed.is_set():
            failed.set()
            raise OSError("stale file handle")
        return [0, 4]

    class Recorder:
        def __init__(self, *_: object) -> None: ...

        def log_losses(self, records: object) -> None: ...

        def log_validation(self, step: int, *_: object) -> None:
            events.append(step)

        def close(self, *, succeeded: bool) -> None:
            closed.append(succeeded)

    monkeypatch.setattr(observe, "Trackers", Recorder)
    monkeypatch.setattr(observe, "draw_course", lambda *_: None)
    monkeypatch.setattr(Validations, "steps", steps)
    plan = make_plan({"training": {**TRAINING, "reportTo": ["tensorboard"]}, "evaluation": {"enabled": False}})
    with observing(context_of(plan, tmp_path), plan, LocalActor(ProgressActor()), {}) as observer:
        assert observer
        assert failed.wait(10)
        observer.succeed([record(1)])
    assert (events, closed) == ([0, 4], [True])
    assert observer.warnings == ["a validation could not be scored or drawn: stale file handle"]


def test_images_before_the_first_step_are_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the operator takes a long validation of the base model for a trainer that hangs."""
    monkeypatch.setattr(observe, "COUNT_SECONDS", 0)
    monkeypatch.setattr(train, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(train, "ray", SimpleNamespace(get=lambda result: result))
    plan = make_plan({"training": TRAINING})
    done: list[int] = []
    reported = threading.Event()

    class Phase:
        def total(self, count: int) -> None: ...

        def done(self, count: int, **facts: object) -> None:
            done.append(count)
            reported.set()

    class Trainer:
        def fit(self) -> Any:
            for number in range(2):
                assert observer
                assert observer.validations
                observer.validations.put(0, number, Image.new("RGB", (32, 32)))
                assert reported.wait(10)
                reported.clear()
            return SimpleNamespace(checkpoint=SimpleNamespace(path=str(tmp_path)))

    actor: Any = LocalActor(ProgressActor())
    trainer: Any = Trainer()
    with observing(context_of(plan, tmp_path), plan, actor, {}) as observer:
        train._fit(trainer, actor, lambda record, saved: None, partial(train._wait, Phase(), observer))
    assert done == [0, 0]


def test_nothing_is_observed_without_validation_and_trackers(tmp_path: Path) -> None:
    plan = make_plan()
    with observing(context_of(plan, tmp_path), plan, None, {}) as observer:
        assert observer is None
    validated = make_plan({"training": TRAINING}).model_copy(update={"stage": "super_resolution"})
    with observing(context_of(validated, tmp_path / "second"), validated, None, {}) as observer:
        assert observer is None
