"""`dreambooth bench paper`: the dataset's file, the jobs, the statistics and the tables."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.preservation import PreservationMode
from dreambooth_trainer.benchmark import execute, single
from dreambooth_trainer.benchmark.copies import nearest_correlations
from dreambooth_trainer.benchmark.dataset import FILE, read_dataset
from dreambooth_trainer.benchmark.execute import check_runs
from dreambooth_trainer.benchmark.generated import ScoredImages
from dreambooth_trainer.benchmark.results import RunResult, published_bytes
from dreambooth_trainer.benchmark.runs import Run, make_runs
from dreambooth_trainer.benchmark.single import SINGLE, open_single, with_references
from dreambooth_trainer.benchmark.sprite_dataset import write_sprite_dataset
from dreambooth_trainer.benchmark.statistics import bootstrap_interval, estimate
from dreambooth_trainer.benchmark.steps import claim_folder, open_subjects
from dreambooth_trainer.benchmark.summary import as_claims, as_markdown, summarize
from dreambooth_trainer.benchmark.variants import make_variants
from dreambooth_trainer.cli.main import run_cli
from dreambooth_trainer.metrics.measure import PromptImages
from dreambooth_trainer.metrics.scores import Scores
from dreambooth_trainer.sprites.captions import SPRITES_PROMPTS

DATASET = """\
Classes

subject_name,class
backpack_dog,backpack
dog6,dog
robot_toy,toy

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
"a {0} {1} in a chef's outfit".format(unique_token, class_token)
]
"""


def write_dataset(folder: Path, text: str = DATASET, subjects: tuple[str, ...] = ("dog6", "robot_toy")) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(text)
    for index, name in enumerate(subjects):
        (folder / name).mkdir()
        for number in range(2):
            pixels = np.random.default_rng([index, number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((64, 48)).save(folder / name / f"0{number}.jpg")
    return folder


def test_the_file_of_the_papers_dataset_is_read_and_not_run(tmp_path: Path) -> None:
    text = DATASET.replace("'a cube shaped", "__import__('os').abort(), 'a cube shaped")
    found = read_dataset(write_dataset(tmp_path / "data", text))
    assert [(subject.name, subject.class_) for subject in found.subjects] == [("dog6", "dog"), ("robot_toy", "toy")]
    dog, toy = found.subjects
    assert dog.prompts == ("a {} in a chef's outfit",), "dogs are live subjects"
    assert toy.prompts[0] == "a {} in the jungle"
    assert found.missing == ("backpack_dog",)
    _, note = open_subjects(str(tmp_path / "data"), None, tmp_path)
    assert note == f"1 subjects have no folder in {tmp_path / 'data'} and are left out: backpack_dog"


def test_all_faults_of_a_dataset_are_reported_at_once(tmp_path: Path) -> None:
    text = DATASET.replace("dog6,dog", "dog6\n../x,dog\nrobot_toy,robot").replace("cube shaped {0} {1}", "cube {1}")
    with pytest.raises(UserError) as caught:
        read_dataset(write_dataset(tmp_path / "data", text.partition("Live")[0]))
    assert [str(issue).partition(";")[0] for issue in caught.value.issues] == [
        f"{FILE} (line 5): 'dog6': is not subject_name,class",
        f"{FILE} (line 6): '../x': is not the name of a folder: letters, digits, underscores, dots and hyphens",
        f"{FILE} (line 8): 'robot_toy': is listed twice",
        f"{FILE} (line 16): 'a cube {{1}}': does not contain {{0}} {{1}} exactly once",
        f"{FILE}: lists no Live Subject Prompts",
    ]


@pytest.mark.parametrize(
    ("subjects", "count", "message"),
    [
        (
            (),
            None,
            "has no folder of any subject; add folders named as in prompts_and_classes.txt, for example backpack",
        ),
        (("dog6",), 2, "--subjects: 2: is more than the 1 subjects in"),
    ],
)
def test_missing_folders_are_errors(tmp_path: Path, subjects: tuple[str, ...], count: int | None, message: str) -> None:
    folder = write_dataset(tmp_path / "data", subjects=subjects)
    with pytest.raises(UserError) as caught:
        open_subjects(str(folder), count, tmp_path)
    assert message in str(caught.value)


def test_sprites_are_written_in_the_format_of_the_dataset(tmp_path: Path) -> None:
    first, _ = open_subjects("builtin:sprites", 10, tmp_path / "a")
    again, _ = open_subjects("builtin:sprites", 2, tmp_path / "b")
    assert [subject.name for subject in first][:3] == ["dog-00", "cat-01", "duck-02"]
    assert len({subject.class_ for subject in first}) == 8
    assert first[0].prompts == SPRITES_PROMPTS
    for one, other in zip(first, again, strict=False):
        images = [[path.read_bytes() for path in sorted(s.folder.iterdir())] for s in (one, other)]
        assert images[0] == images[1], "a subject does not depend on the number of subjects"
        assert len(set(images[0])) == 5
    assert (first[0].folder / "0.png").read_bytes() != (first[8].folder / "0.png").read_bytes()


def test_a_copy_correlates_with_its_training_image() -> None:
    random = np.random.default_rng(0)
    training = [Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(3)]
    brighter = training[1].point(lambda value: value // 2 + 100)
    other = Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    negative = training[0].point(lambda value: 255 - value)
    copy, scaled, unrelated, inverted = nearest_correlations([training[2], brighter, other, negative], training)
    assert copy == pytest.approx(1)
    assert scaled > 0.99
    assert abs(unrelated) < 0.1
    assert inverted < 0.1
    assert nearest_correlations([Image.new("RGB", (8, 8))], training) == [0]


def test_the_interval_is_that_of_all_resamples() -> None:
    values = [0.1, 0.4, 0.5, 0.9]
    means = [np.mean(sample) for sample in itertools.product(values, repeat=4)]
    assert bootstrap_interval(values) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.02)
    assert bootstrap_interval([0.3]) == (None, None)


def test_subjects_count_equally_and_differences_are_paired() -> None:
    first = estimate({"a": [1.0, 3.0, 5.0], "b": [1.0]})
    assert (first.mean, dict(first.subjects)) == (2.0, {"a": 3.0, "b": 1.0})
    results = [
        *(result_of("a", "LoRA", seed, 0.2 * seed, 0.5) for seed in (0, 1)),
        *(result_of("a", "Full", seed, 0.3 * seed, 0.5) for seed in (1, 2)),
        result_of("b", "Full", 0, 0.9, 0.5),
    ]
    (row,) = summarize(SINGLE, results, "x", jobs=9).differences
    assert row.name == "Full - LoRA"
    assert dict(row.values["dino"].subjects) == {"a": pytest.approx(0.1)}, "the seed that both have"


def result_of(subject: str, method: str, seed: int, dino: float, clip_t: float) -> RunResult:
    return RunResult(
        key="k", base_model="builtin:sprites", subject=subject, method=method, seed=seed,
        base={"dino": 0.2, "clipT": 0.8, "nearest": 0.1}, trained={"dino": dino, "clipT": clip_t, "nearest": 0.3},
        real_images={"dino": 0.9}, dino_encoder="builtin:sprites", clip_encoder="builtin:sprites", steps=9,
        learning_rate=1e-3, phase_seconds={"Train": 30.0}, total_seconds=50, published_bytes=7_400_000,
    )  # fmt: skip


def test_the_table_states_first_what_is_not_reproduced() -> None:
    scores = {"Full": (0.8, 0.6), "TextualInversion": (0.6, 0.7)}
    results = [
        result_of(subject, method, seed, dino + (subject == "b") / 10 + seed / 50, clip_t)
        for method, (dino, clip_t) in scores.items()
        for subject in ("a", "b")
        for seed in (0, 1)
    ]
    lines = as_markdown(SINGLE, summarize(SINGLE, results, "builtin:sprites", jobs=10)).splitlines()
    assert lines[0] == (
        "- CLIP-T of Full above that of TextualInversion, as in the paper: NOT reproduced, difference -0.100 "
        "(-0.100 to -0.100)."
    )
    assert lines[1].startswith(
        "- DINO of Full above that of TextualInversion, as in the paper: reproduced, difference +0.2"
    )
    assert "Finished jobs: 8 of 10; subjects: 2; seeds: 2." in lines[3]
    assert "| Real images | 0.900 (0.900 to 0.900) | - | - | - | - |" in lines
    assert "| Base model | 0.200 (0.200 to 0.200) | 0.800 (0.800 to 0.800) | 0.100 (0.100 to 0.100) | - | - |" in lines
    row = next(line for line in lines if line.startswith("| Full |"))
    assert row.startswith("| Full | 0.860 (0.810 to 0.910) | 0.600 (0.600 to 0.600) |")
    assert row.endswith("| 30 (30 to 30) | 7400 (7400 to 7400) |")
    differences = "-0.200 (-0.200 to -0.200) | +0.100 (0.100 to 0.100) | +0.000 (0.000 to 0.000)"
    assert f"| TextualInversion - Full | {differences} |" in lines
    assert any("on another scale" in line for line in lines)
    assert "| DreamBooth (Stable Diffusion) | 0.668 | 0.803 | 0.305 |" in lines
    assert "| b | TextualInversion | 0.710 | 0.700 |" in lines


def runs_of(folder: Path, *sets: str) -> list[Run]:
    cases, _ = open_single(str(folder), folder, None)
    return make_runs(cases, make_variants(["LoRA", "Full"]), 2, "builtin:sprites", sets, folder / "out")


def test_published_results_have_three_decimals() -> None:
    rows = {row[0]: row[1:] for row in SINGLE.published.rows}
    assert rows["Real images"] == ("0.774", "0.885", "-")
    assert rows["BLIP-Diffusion, no tuning (Stable Diffusion)"] == ("0.594", "0.779", "0.300")
    text = as_markdown(SINGLE, summarize(SINGLE, [result_of("a", "Full", 0, 0.5, 0.5)], "x", jobs=1))
    assert "| DreamBooth (Imagen) | 0.696 | 0.812 | 0.306 |" in text
    assert "compare the order of the methods, not the numbers" in text


def test_jobs_differ_in_subject_method_and_seed_only(tmp_path: Path) -> None:
    runs = runs_of(write_dataset(tmp_path / "data"), "training.steps=7")
    assert [run.title for run in runs][:4] == [
        "dog6, LoRA, seed 0", "dog6, Full, seed 0", "robot_toy, LoRA, seed 0", "robot_toy, Full, seed 0",
    ]  # fmt: skip
    assert len({run.root for run in runs}) == len({run.job.metadata.name for run in runs}) == 8
    spec = runs[2].job.spec
    assert (spec.training.method, spec.training.steps, spec.training.seed) == ("LoRA", 7, 0)
    assert spec.evaluation.prompts == ["a {} in the jungle", "a cube shaped {}"]
    assert spec.all_subjects[0].class_ == "toy"


def test_modes_of_preservation_are_an_axis_of_the_methods_that_have_them(tmp_path: Path) -> None:
    cases, _ = open_single(str(write_dataset(tmp_path / "data")), tmp_path, 1)
    variants, base = make_variants(["Full", "TextualInversion"], ["Bound", "None"]), "builtin:sprites"
    runs = make_runs(cases, variants, 1, base, (), tmp_path / "out")
    assert [run.variant for run in runs] == ["Full, Bound", "Full, None", "TextualInversion"]
    assert [run.job.spec.preservation for run in runs] == ["Bound", "None", "None"]
    assert [run.root.name for run in runs] == ["Full-Bound-0", "Full-None-0", "TextualInversion-0"]
    assert len({run.job.metadata.name for run in runs}) == 3
    with pytest.raises(UserError, match="which the benchmark sets itself"):
        make_runs(cases, variants, 1, base, ("priorPreservation.mode=Images",), tmp_path / "out")


def test_ablations_vary_class_nouns_and_numbers_of_images(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data")
    for name in ("dog6", "robot_toy"):
        (folder / name / "00.txt").write_text("a sks thing")
        rows = [{"file_name": f"0{number}.jpg", "text": f"a sks thing {number}"} for number in range(2)]
        (folder / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cases, _ = open_single(str(folder), tmp_path, None)
    variants = make_variants(["Full", "TextualInversion"], ["Images", "Bound"], ["Wrong", "None"], [1, 2], [50])
    assert [variant.variant for variant in variants if variant.class_noun == "None"] == [
        "Full, Images, class noun None, 1 image, 50 class images",
        "Full, Images, class noun None, 2 images, 50 class images",
        "Full, Bound, class noun None, 1 image",
        "Full, Bound, class noun None, 2 images",
        "TextualInversion, class noun None, 1 image",
        "TextualInversion, class noun None, 2 images",
    ]
    runs = make_runs(cases, variants, 1, "builtin:sprites", (), tmp_path / "out")
    assert len({run.root for run in runs}) == len({run.job.metadata.name for run in runs}) == len(runs) == 24
    by_name = {(run.name, run.variant): run.job.spec for run in runs}
    wrong = by_name["dog6", "Full, Images, class noun Wrong, 1 image, 50 class images"]
    assert (wrong.all_subjects[0].class_, wrong.prior_preservation.num_class_images) == ("toy", 50)
    assert by_name["robot_toy", "Full, Bound, class noun Wrong, 2 images"].all_subjects[0].class_ == "dog"
    assert by_name["robot_toy", "TextualInversion, class noun None, 1 image"].all_subjects[0].class_ == "zwx"
    assert {subject.references for run in runs for subject in run.subjects} == {
        (folder / name).resolve() for name in ("dog6", "robot_toy")
    }
    run = next(run for run in runs if run.name == "dog6" and "1 image" in run.variant)
    key = run.key()
    (folder / "dog6" / "01.jpg").write_bytes((folder / "dog6" / "00.jpg").read_bytes())
    assert run.key() != key, "images are compared with this photo"
    (one,), (two,) = (
        {Path(run.job.spec.all_subjects[0].images.uri or "") for run in runs
         if run.name == "dog6" and f"{count} image" in run.variant and "class images" not in run.variant}
        for count in (1, 2)
    )  # fmt: skip
    assert [len(list(images.iterdir())) for images in (one, two)] == [3, 4], "a caption belongs to its image"
    lines = [(images / "metadata.jsonl").read_text().splitlines() for images in (one, two)]
    assert [[json.loads(line)["text"] for line in own] for own in lines] == [
        ["a sks thing 0"], ["a sks thing 0", "a sks thing 1"],
    ]  # fmt: skip
    with pytest.raises(
        UserError, match=r"--images: 3: is more than the 2 images directly in the folder of dog6; use at most 2"
    ):
        make_runs(cases, make_variants(["Full"], images=[3]), 1, "builtin:sprites", (), tmp_path / "out")
    with pytest.raises(
        UserError, match="has only subjects of the class dog; Wrong takes the class noun of another class"
    ):
        make_runs(cases[:1], make_variants(["Full"], class_nouns=["Wrong"]), 1, "builtin:sprites", (), tmp_path / "o")
    with pytest.raises(UserError, match="sets the class or the images of the subject"):
        make_runs(cases, variants, 1, "builtin:sprites", ("subject.class=dog",), tmp_path / "out")
    with pytest.raises(UserError, match="which the benchmark sets itself"):
        sets = ("priorPreservation.numClassImages=7",)
        make_runs(cases, make_variants(["Full"], class_images=[50]), 1, "builtin:sprites", sets, tmp_path / "out")


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.1, 0.2), "reproduced, difference +0.150 (0.100 to 0.200)"),
        ((-0.1, -0.2), "NOT reproduced, difference -0.150 (-0.200 to -0.100)"),
        ((0.3, -0.1), "not decided (the interval includes 0), difference +0.100 (-0.100 to 0.300)"),
        ((-0.3, 0.1), "not decided (the interval includes 0), difference -0.100 (-0.300 to 0.100)"),
        ((0.1,), "not decided by one subject, difference +0.100."),
    ],
)
def test_a_claim_is_decided_by_its_interval(differences: tuple[float, ...], verdict: str) -> None:
    results = [
        result_of(f"subject-{index}", method, 0, dino, 0.5)
        for index, difference in enumerate(differences)
        for method, dino in (("Full", 0.5 + difference), ("TextualInversion", 0.5))
    ]
    claims = as_claims(SINGLE, summarize(SINGLE, results, "builtin:sprites", jobs=10))
    assert any(claim.startswith("DINO") and verdict in claim for claim in claims), claims


def test_modes_are_rows_of_the_table() -> None:
    results = [
        result_of("a", "Full", 0, 0.5, 0.5).model_copy(update={"mode": mode}) for mode in (None, "Bound", "None")
    ]
    rows = summarize(SINGLE, results, "x", jobs=3).rows[2:]
    assert [row.name for row in rows] == ["Full", "Full, Bound", "Full, None"]


def test_the_base_model_has_the_class_nouns_of_the_dataset() -> None:
    results = [
        result_of("a", "Full", 0, value, 0.5).model_copy(
            update={"class_noun": noun, "images": images, "base": {"dino": value, "nearest": images / 10}}
        )
        for noun, value in (("Right", 0.2), ("Wrong", 0.6))
        for images in (1, 5)
    ]
    summary = summarize(SINGLE, results, "x", jobs=4)
    base = {key: value.mean for key, value in summary.rows[1].values.items()}
    assert base == {"dino": 0.2, "nearest": 0.5}, "it is compared with the most images"
    differences = {row.name.partition(" - ")[0]: set(row.values) for row in summary.differences}
    assert differences["Full, class noun Wrong, 1 image"] == {"dino", "nearest"}, "prompts with other nouns"
    assert differences["Full, class noun Right, 5 images"] == {"dino", "clipT", "nearest"}


def test_a_mode_that_an_override_sets_is_in_the_name(tmp_path: Path) -> None:
    cases, _ = open_single(str(write_dataset(tmp_path / "data")), tmp_path, 1)
    sets = ("priorPreservation.mode=Bound",)
    (run,) = make_runs(cases, make_variants(["Full"]), 1, "builtin:sprites", sets, tmp_path / "out")
    assert (run.variant, run.root.name) == ("Full, Bound", "Full-0")


def test_issues_of_all_jobs_are_reported_once(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data")
    with pytest.raises(UserError) as caught:
        runs_of(folder, "training.stepz=7", "training.seed=-1")
    assert [issue.path for issue in caught.value.issues] == ["--set training.stepz=7", "spec.training.seed"]


def test_prompts_and_photos_of_all_subjects_are_checked_before_the_first_job(tmp_path: Path) -> None:
    text = DATASET.replace("in the jungle", "with the Eiffel Tower in the background").replace("chef's outfit", "hat")
    folder = write_dataset(tmp_path / "data", text)
    (folder / "dog6" / "01.jpg").write_bytes(b"%PDF")
    with pytest.raises(UserError) as caught:
        check_runs(runs_of(folder), SINGLE.prompts)
    messages = [str(issue) for issue in caught.value.issues]
    assert any("prompts[0] (robot_toy, LoRA, seed 0): the prompt 'a sks toy with the Eiffel" in m for m in messages)
    assert any(m.startswith("01.jpg (dog6, LoRA, seed 0): is a PDF document") for m in messages)
    cases, _ = open_single(str(folder), tmp_path, None)
    one_image = make_runs(cases[:1], make_variants(["LoRA"], images=[1]), 1, "builtin:sprites", (), tmp_path / "out")
    with pytest.raises(UserError, match=r'--dataset\["01.jpg"\] .*dog6\): is a PDF document'):
        check_runs(one_image, SINGLE.prompts)


def test_each_mode_is_checked_before_the_first_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def prepare(job: DreamBoothJob, parallel: int) -> None:
        checked.append(job.metadata.name)
        raise UserError(ValidationIssue("spec", None, "is not possible", "change it"))

    monkeypatch.setattr(execute, "prepare_job", prepare)
    cases, _ = open_single(str(write_dataset(tmp_path / "data")), tmp_path, 2)
    modes: list[PreservationMode] = ["Bound", "None"]
    with pytest.raises(UserError):
        check_runs(
            make_runs(cases, make_variants(["Full"], modes), 2, "builtin:sprites", (), tmp_path / "out"), SINGLE.prompts
        )
    first, second = (subject.name.replace("_", "-") for (subject,) in cases)
    assert sorted(checked) == sorted([f"{first}-full-bound-0", f"{first}-full-none-0", f"{second}-full-bound-0"])


def test_a_result_is_used_for_the_same_job_and_images_only(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data")
    run = runs_of(folder)[0]
    assert run.result() is None
    run.root.mkdir(parents=True)
    stored = result_of("dog6", "LoRA", 0, 0.5, 0.5).model_copy(update={"key": run.key()})
    (run.root / "result.json").write_text(stored.model_dump_json(by_alias=True))
    assert run.result() == stored
    assert runs_of(folder, "training.steps=7")[0].result() is None
    (folder / "dog6" / "00.jpg").write_bytes((folder / "dog6" / "01.jpg").read_bytes())
    assert run.result() is None, "the photos have changed"


def test_images_are_compared_with_all_photos_of_a_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it was trained on some of them: otherwise, numbers of images could not be compared."""
    write_sprite_dataset(tmp_path / "data", 1)
    references = tmp_path / "data" / "dog-00"
    photos = [Image.open(path) for path in sorted(references.iterdir())[:2]]
    for path in sorted(references.iterdir())[2:]:
        path.unlink()
    generated = ScoredImages(photos[:1], [PromptImages("a dog", photos[:1])], photos[:1])
    monkeypatch.setattr(single, "subject_images", lambda *_: generated)
    plan: Any = Mock(dino="builtin:sprites", clip="builtin:sprites")
    stores: Any = {"after": None}
    again = single.score_again(plan, Mock(), stores, references, {})["after"]
    assert again.real_images["dino"] < 1, "two photos"
    assert again.values["dino"] == pytest.approx((1 + again.real_images["dino"]) / 2)
    own = Scores(values={"dino": 1, "clipT": 0.3, "div": 0.2}, real_images={})
    assert with_references(own, again).values == {
        "dino": again.values["dino"], "clipI": again.values["clipI"], "pres": again.values["pres"],
        "clipT": 0.3, "div": 0.2,
    }  # fmt: skip
    assert with_references(own, again).real_images == again.real_images


def test_published_bytes_are_those_of_one_format(tmp_path: Path) -> None:
    files = {"unet/a.safetensors": 5, "vae/b.safetensors": 2, "job.safetensors": 100, "report.html": 100}
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert published_bytes(tmp_path) == 7
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"xyz")
    (tmp_path / "learned_embeds.safetensors").write_bytes(b"x")
    assert published_bytes(tmp_path) == 4


def test_wrong_options_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: Any) -> str:
        assert run_cli(["bench", "paper", "--out", str(tmp_path / "out"), *map(str, arguments)]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "--dataset: 'nowhere': has no readable prompts_and_classes.txt" in error("--dataset", "nowhere")
    text = error("--dataset", "builtin:sprites", "--subjects", 1, "--methods", "Full,Lora,Dora")
    assert "--methods: 'Lora': is not a method; use some of Full, LoRA" in text
    assert "--methods: 'Dora': is not a method" in text
    assert "--modes: 'Photos': is not a mode; use some of Images, Prediction, Bound, None" in error(
        "--dataset", "builtin:sprites", "--modes", "Photos"
    )
    text = error("--dataset", "builtin:sprites", "--images", "1,x,0")
    assert "--images: 'x': is not a positive number; list numbers, such as 1,3,5" in text
    assert "--images: '0': is not a positive number" in text
    assert "--class-nouns: 'right': is not a class noun; use some of Right, Wrong, None" in error(
        "--dataset", "builtin:sprites", "--class-nouns", "right"
    )
    assert "--subjects: 100: is more than 99" in error("--dataset", "builtin:sprites", "--subjects", 100)


def test_files_of_somebody_else_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "index.html").write_text("mine")
    assert run_cli(["bench", "paper", "--dataset", "builtin:sprites", "--out", str(tmp_path)]) == 2
    assert "is not empty and not the folder of a benchmark of subjects" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    claim_folder(tmp_path / "new", SINGLE)
    (tmp_path / "new" / "index.html").write_text("of the benchmark")
    claim_folder(tmp_path / "new", SINGLE)


def test_results_are_json(tmp_path: Path) -> None:
    summary = summarize(SINGLE, [result_of("a", "Full", 0, 0.5, 0.5)], "x", jobs=2)
    content = json.loads(summary.model_dump_json(by_alias=True))
    assert content["rows"][2]["values"]["dino"] == {"mean": 0.5, "low": None, "high": None, "subjects": {"a": 0.5}}
    assert content["runs"][0]["publishedBytes"] == 7_400_000


@pytest.mark.parametrize(
    "override", ["training.method=DoRA", "training.seed=7", "evaluation.enabled=false", "output.uri=s3://b/x"]
)
def test_what_the_benchmark_varies_cannot_be_set(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match="which the benchmark sets itself; leave it out"):
        runs_of(write_dataset(tmp_path / "data"), override)


def test_a_run_is_bound_to_the_files_that_it_reads(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data")
    (run, *_) = runs_of(folder)
    key = run.key()
    (folder / "dog6" / ".DS_Store").write_text("x")
    (folder / "dog6" / "Thumbs.db").write_text("x")
    assert run.key() == key
    (folder / "dog6" / "10_sks dog").mkdir()
    (folder / "dog6" / "10_sks dog" / "0.png").write_bytes(b"x")
    assert run.key() != key
