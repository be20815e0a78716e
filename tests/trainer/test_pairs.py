"""`dreambooth bench pairs`: the pairs, their jobs and prompts, the values and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from test_benchmark import DATASET, result_of, write_dataset
from torch import Tensor

from dreambooth_api.errors import UserError
from dreambooth_trainer.benchmark.dataset import DatasetSubject
from dreambooth_trainer.benchmark.execute import check_runs
from dreambooth_trainer.benchmark.pair_scores import joint_prompts, joint_texts, pair_values, photo_values
from dreambooth_trainer.benchmark.pairs import PAIRS, make_pairs, open_pairs
from dreambooth_trainer.benchmark.runs import Run, make_runs
from dreambooth_trainer.benchmark.single import SINGLE, open_single
from dreambooth_trainer.benchmark.steps import claim_folder
from dreambooth_trainer.benchmark.summary import as_markdown, summarize
from dreambooth_trainer.benchmark.variants import make_variants
from dreambooth_trainer.cli.main import run_cli
from dreambooth_trainer.planning.plan import Plan, fill_defaults

COMMON = DATASET.replace('prompt_list = [\n"a', "prompt_list = [\n'a {0} {1} in the jungle'.format(x),\n\"a")


def runs_of(folder: Path, text: str = COMMON, sets: Sequence[str] = ()) -> list[Run]:
    cases, _ = open_pairs(str(write_dataset(folder, text)), folder, None)
    return make_runs(cases, make_variants(["Full"]), 1, "builtin:sprites", sets, folder / "out")


def plan_of(run: Run) -> Plan:
    return fill_defaults(run.job, image_count=4, identifiers=["sks", "zwx"], zero_stage=1, precision="fp32")


def subject(name: str, class_: str) -> DatasetSubject:
    return DatasetSubject(name, class_, Path(name), ("a {}",))


def test_each_subject_is_paired_with_the_next_of_another_class() -> None:
    names = {"dog1": "dog", "dog2": "dog", "toy1": "toy", "dog3": "dog", "cat1": "cat", "dog4": "dog", "dog5": "dog"}
    pairs = make_pairs(subject(name, class_) for name, class_ in names.items())
    assert [[one.name for one in pair] for pair in pairs] == [["dog1", "toy1"], ["dog2", "cat1"]]


def test_neighboring_sprites_are_pairs(tmp_path: Path) -> None:
    pairs, _ = open_pairs("builtin:sprites", tmp_path, 2)
    assert [[one.name for one in pair] for pair in pairs] == [["dog-00", "cat-01"], ["duck-02", pairs[1][1].name]]
    assert len(list((tmp_path / "dataset").glob("*/"))) == 4
    with pytest.raises(UserError, match="--pairs: 50: is more than the 49 pairs of subjects of different classes"):
        open_pairs("builtin:sprites", tmp_path, 50)


def test_a_dataset_of_one_class_has_no_pairs(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", DATASET.replace("robot_toy,toy", "robot_toy,dog"))
    with pytest.raises(UserError, match="is more than the 0 pairs"):
        open_pairs(str(folder), tmp_path, None)


def test_a_job_trains_both_subjects_with_the_prompts_of_both(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path / "data")
    assert run.title == "dog6+robot_toy, Full, seed 0"
    assert run.root == tmp_path / "data" / "out" / "jobs" / "dog6+robot_toy" / "Full-0"
    subjects = run.job.spec.all_subjects
    assert [(one.class_, one.identifier) for one in subjects] == [("dog", "sks"), ("toy", "auto")]
    assert [Path(one.images.uri or "").name for one in subjects] == ["dog6", "robot_toy"]
    assert run.job.spec.evaluation.prompts == ["a {} in the jungle"], "dogs and toys have this prompt in common"


def test_subjects_without_a_common_prompt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no prompt for both an object and a live subject, as dog6\+robot_toy need"):
        runs_of(tmp_path / "data", DATASET)
    (run,) = runs_of(tmp_path / "other", DATASET, ["evaluation.prompts=['a big {}']"])
    assert run.job.spec.evaluation.prompts == ["a big {}"]


def test_prompts_contain_both_subjects(tmp_path: Path) -> None:
    plan = plan_of(runs_of(tmp_path / "data")[0])
    assert joint_prompts(plan) == ["a sks dog and a zwx toy in the jungle"]
    assert joint_texts(plan) == ["a dog and a toy in the jungle"]


def test_prompts_that_only_become_too_long_with_both_subjects_are_reported(tmp_path: Path) -> None:
    words = "in the jungle in the snow on the beach"
    runs = runs_of(tmp_path / "data", COMMON.replace("in the jungle", words))
    check_runs(runs, lambda _: [])
    with pytest.raises(UserError) as caught:
        check_runs(runs, PAIRS.prompts)
    (message,) = map(str, caught.value.issues)
    assert message.startswith("spec.evaluation.prompts[0] (dog6+robot_toy, Full, seed 0): the prompt 'a sks dog and a ")


def test_a_run_is_bound_to_the_photos_of_both(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path / "data")
    keys = {run.key()}
    for name in ("dog6", "robot_toy"):
        (tmp_path / "data" / name / "00.jpg").write_bytes(name.encode())
        keys.add(run.key())
    assert len(keys) == 3


def features(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows)


def test_the_lower_similarity_is_high_only_if_both_subjects_are_in_an_image() -> None:
    first, second, both = (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)
    photos = [features(first, first), features(second, second)]
    one_each = pair_values(features(first, second), photos, features(both), photos)
    assert one_each == pytest.approx(
        {"dinoFirst": 0.5, "dinoSecond": 0.5, "dinoLower": 0, "dino": 0.5, "clipI": 0.5**0.5}
    )
    together = pair_values(features(both, both), photos, features(first), photos)
    assert together["dinoLower"] == pytest.approx(0.5**0.5)
    assert together["clipI"] == pytest.approx(0.5)


def test_photos_are_compared_with_the_others_of_their_subject() -> None:
    first, second = (1.0, 0.0, 0.0), (0.6, 0.8, 0.0)
    photos = [features(first, second), features((0.0, 0.0, 1.0), (0.0, 0.0, 2.0))]
    # Similarities to the own subject: 0.6 and 0.6, 1 and 1; to the other subject: 0.
    assert photo_values(photos, photos) == pytest.approx({"dinoLower": 0, "dino": 0.4, "clipI": 0.4})
    assert photo_values([photos[0], photos[1][:1]], photos) == {}


def test_the_table_has_the_published_results_beside() -> None:
    values = {"dinoLower": 0.3, "dino": 0.4, "clipT": 0.7, "singleDino": 0.8}
    results = [
        result_of(pair, "Full", 0, 0, 0).model_copy(update={"trained": values, "base": {"dinoLower": 0.1}})
        for pair in ("a+b", "c+d")
    ]
    lines = as_markdown(PAIRS, summarize(PAIRS, results, "builtin:sprites", jobs=2)).splitlines()
    assert lines[0].startswith("Finished jobs: 2 of 2; pairs: 2; seeds: 1. Means over pairs,")
    assert lines[2].startswith(
        "|  | DINO, lower of both ↑ | DINO, mean of both ↑ | CLIP-T ↑ | DINO, one in the prompt ↑ |"
    )
    assert any(line.startswith("| Full | 0.300 (0.300 to 0.300) | 0.400") for line in lines)
    assert "| DreamBooth | 0.3849 | 0.6636 | 0.7366 |" in lines
    assert any("CustomConcept101" in line and "on another scale" in line for line in lines)
    assert "| Pair |  | DINO, lower of both | CLIP-T |" in lines
    assert "| c+d | Base model | 0.100 | - |" in lines


def test_the_two_benchmarks_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim_folder(tmp_path / "out", SINGLE)
    assert run_cli(["bench", "pairs", "--dataset", "builtin:sprites", "--out", str(tmp_path / "out")]) == 2
    assert "not the folder of a benchmark of pairs" in " ".join(capsys.readouterr().err.split())


def test_single_subjects_and_pairs_have_jobs_of_their_own(tmp_path: Path) -> None:
    pair = runs_of(tmp_path / "data")
    cases, _ = open_single(str(tmp_path / "data"), tmp_path, None)
    single = make_runs(cases, make_variants(["Full"]), 1, "builtin:sprites", (), tmp_path / "data" / "out")
    assert len({run.root for run in (*pair, *single)}) == len({run.key() for run in (*pair, *single)}) == 3
