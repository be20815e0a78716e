"""The verdict: normal ranges of scores, and findings with advice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_plan import make_plan

from dreambooth_api.job import DEFAULT_CLIP, DEFAULT_DINO
from dreambooth_trainer.metrics.scores import PAPER_DREAMBOOTH, PAPER_TEXTUAL_INVERSION, PromptScore, Scores
from dreambooth_trainer.report.contents import Finding, Range
from dreambooth_trainer.report.scores import verdict
from dreambooth_trainer.report.verdict import Course, findings, loss_finding, normal_ranges, prompt_rows, verdict_lines
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.training.messages import StepRecord

# Means of bench/preservation.py: the embedded base model, and training with and without prior preservation.
BASE = {"dino": 0.268, "clipT": 0.794, "pres": 0.297, "classDiversity": 0.639}
WITH = {"dino": 0.711, "clipT": 0.745, "pres": 0.411, "classDiversity": 0.549}
WITHOUT = {"dino": 0.858, "clipT": 0.729, "pres": 0.924, "classDiversity": 0.061}
REAL = {"dino": 0.9}
COURSE = Course(images=4, steps=400, learning_rate=1e-4, prior_loss_weight=1.0)


def _find(after: dict[str, float], course: Course = COURSE, before: dict[str, float] = BASE) -> list[Finding]:
    return list(findings(Scores(values=before), Scores(values=after, real_images=REAL), course))


def _problems(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.text, finding.advice) for finding in found if not finding.normal]


def test_a_run_with_prior_preservation_is_normal() -> None:
    found = _find(WITH)
    assert [finding.text for finding in found] == [
        "The subject is learned: DINO 0.711 (0.268 before)",
        "Prompts are followed: CLIP-T 0.745 (0.794 before)",
        "The class is preserved: PRES 0.411 (0.297 before), class diversity 0.549 (0.639 before)",
    ]
    assert all(finding.normal and not finding.advice for finding in found)


def test_a_collapsed_class_is_blamed_on_the_missing_prior_preservation() -> None:
    scores = "PRES 0.924 (0.297 before), class diversity 0.061 (0.639 before)"
    text = f"Other objects of the class look like the subject: {scores}"
    without = replace(COURSE, prior_loss_weight=None)
    enable = "enable prior preservation (spec.priorPreservation.mode: Images)"
    assert _problems(_find(WITHOUT, without)) == [(text, enable)]
    raised = "raise spec.priorPreservation.lossWeight (now 1), or use fewer steps (now 400)"
    assert _problems(_find(WITHOUT)) == [(text, raised)]
    # New tokens do not change the class.
    assert _problems(_find(WITHOUT, replace(without, changes_weights=False))) == []


def test_underfitting_needs_more_steps() -> None:
    (problem,) = _problems(_find({**BASE, "dino": 0.4}))
    assert problem == (
        "The subject is not learned well: DINO 0.400, normal is at least 0.521",
        "train for more steps (now 400)",
    )


def test_lost_prompts_need_fewer_steps() -> None:
    (problem,) = _problems(_find({**WITH, "clipT": 0.654}))
    assert problem == (
        "Prompt fidelity fell by 0.14 (CLIP-T 0.794 to 0.654)",
        "use fewer steps (now 400) or a lower learning rate (now 0.0001)",
    )


def test_a_broken_model_needs_a_lower_learning_rate() -> None:
    # More steps would be the wrong advice, although the subject is not learned.
    found = _find({**WITH, "dino": 0.2, "clipT": 0.3})
    assert [finding.advice for finding in found if not finding.normal] == [
        "use a lower learning rate (now 0.0001)",
        "use fewer steps (now 400) or a lower learning rate (now 0.0001)",
    ]


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        (
            [0.1] * 50 + [0.3] * 50,
            "The loss rose from 0.1 to 0.3 (means of the first and the last quarter of the steps)",
        ),
        ([0.1] * 5 + [float("nan")], "Training diverged: the loss is not finite"),
        ([0.1] * 50 + [0.14] * 50, None),
        ([0.1, 0.3] * 5 + [0.9], None),
        ([], None),
    ],
)
def test_a_loss_that_rises(losses: list[float], text: str | None) -> None:
    finding = loss_finding(replace(COURSE, losses=losses))
    assert (finding and finding.text) == text
    assert finding is None or finding.advice == "use a lower learning rate (now 0.0001)"


def test_few_images_are_reported_without_scores() -> None:
    assert findings(None, None, COURSE) == ()
    (finding,) = findings(None, None, replace(COURSE, images=1), "a sks dog")
    assert finding.text == "The subject has 1 image: poses and backgrounds of photos are learned as well"
    assert finding.subject == "a sks dog"
    assert [finding.normal for finding in _find(WITH, replace(COURSE, images=2))] == [False, True, True, True]


def test_ranges_with_the_encoders_of_the_paper_are_relative_to_its_table() -> None:
    before = Scores(values={"dino": 0.4, "clipI": 0.7, "clipT": 0.31})
    after = Scores(
        values={}, real_images={"dino": 0.774, "clipI": 0.885}, dino_encoder=DEFAULT_DINO, clip_encoder=DEFAULT_CLIP
    )
    ranges = normal_ranges(before, after)
    assert ranges["dino"].low == pytest.approx(PAPER_TEXTUAL_INVERSION.dino)
    assert ranges["clipI"].low == pytest.approx(PAPER_TEXTUAL_INVERSION.clip_i)
    assert ranges["clipT"].low == pytest.approx(0.31 * 0.28 / 0.305)
    dreambooth = {"dino": PAPER_DREAMBOOTH.dino, "clipI": PAPER_DREAMBOOTH.clip_i, "clipT": PAPER_DREAMBOOTH.clip_t}
    assert all(ranges[name].contains(value or 0) for name, value in dreambooth.items())


def test_scores_without_a_reference_have_no_range() -> None:
    assert normal_ranges(Scores(values={}), Scores(values=WITH)) == {}
    # One photo has no similarity among photos, and some real images differ as much as any two of their class.
    assert normal_ranges(Scores(values=BASE), Scores(values=WITH)).keys() == {"clipT", "classDiversity"}
    close = Scores(values=WITH, real_images={"dino": 0.3})
    assert normal_ranges(Scores(values=BASE), close).keys() == {"clipT", "classDiversity"}
    assert list(findings(Scores(values={}), Scores(values=WITH), COURSE)) == []


def test_failed_prompts_are_marked_and_named() -> None:
    def prompts(*rows: tuple[str, int, float, float]) -> tuple[PromptScore, ...]:
        return tuple(PromptScore(prompt=p, images=n, values={"dino": d, "clipT": t}) for p, n, d, t in rows)

    before = Scores(
        values=BASE, prompts=prompts(("a dog", 1, 0.3, 0.8), ("on sand", 1, 0.3, 0.8), ("wet", 1, 0.3, 0.8))
    )
    after = Scores(
        values=WITH,
        real_images=REAL,
        prompts=prompts(("a dog", 4, 0.7, 0.7), ("on sand", 4, 0.7, 0.59), ("wet", 4, 0.39, 0.5)),
    )
    assert [(row.prompt, row.images, row.failures) for row in prompt_rows(before, after)] == [
        ("a dog", 4, ()),
        ("on sand", 4, ("does not follow the prompt",)),
        ("wet", 4, ("does not follow the prompt", "does not show the subject")),
    ]
    subject, prompt = (finding for finding in findings(before, after, COURSE) if finding.prompts)
    assert subject.normal
    assert subject.text == "The subject is learned: DINO 0.711 (0.268 before); 1 of 3 prompts do not show the subject"
    assert subject.prompts == ("wet",)
    assert prompt.normal
    assert prompt.text == "Prompts are followed: CLIP-T 0.745 (0.794 before); 2 of 3 prompts are not followed"
    assert prompt.prompts == ("on sand", "wet")


def test_lines_for_the_console() -> None:
    found = (Finding(False, "The loss rose", "use a lower rate", subject="a dog"), Finding(True, "All is well"))
    assert verdict_lines(found) == ["problem: a dog: The loss rose. Advice: use a lower rate.", "ok: All is well."]


def test_limits_are_in_the_range() -> None:
    assert Range(low=0.5).contains(0.5)
    assert not Range(low=0.5).contains(0.49)
    assert Range(high=0.5).contains(0.5)
    assert (str(Range(low=0.5)), str(Range(high=0.5))) == ("at least 0.500", "at most 0.500")


def test_losses_after_the_selected_step_do_not_count(tmp_path: Path) -> None:
    plan = make_plan({})
    losses = [StepRecord(n + 1, 0.1, 0.1 if n < 100 else 0.9, None, 1e-4, world_size=1) for n in range(200)]
    found = {selected: verdict(JobFolder(tmp_path), plan, None, losses, selected) for selected in (None, 100)}
    rose = {selected: [f for f in own if f.text.startswith("The loss rose")] for selected, own in found.items()}
    assert {selected: len(own) for selected, own in rose.items()} == {None: 1, 100: 0}
