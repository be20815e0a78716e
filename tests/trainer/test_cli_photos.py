"""Jobs from photos and options: `dreambooth init`, `run --save`, `plan -o json`, and shell completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from imagefiles import encoded, noise

from dreambooth_trainer.cli.flags import FIELDS, flag_of
from dreambooth_trainer.cli.main import cli, run_cli
from dreambooth_trainer.jobfile.load import load_job


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with three photos in "My Photos"."""
    monkeypatch.chdir(tmp_path)
    add_photos(tmp_path / "My Photos")
    return tmp_path


def add_photos(folder: Path, first: int = 0) -> None:
    folder.mkdir(parents=True)
    for seed in range(first, first + 3):
        (folder / f"{seed}.png").write_bytes(encoded(noise(seed=seed)))


def spec(path: str = "job.yaml") -> dict[str, object]:
    return yaml.safe_load(Path(path).read_text())["spec"]


def test_init_writes_a_job_with_the_given_fields(here: Path) -> None:
    options = ["--class", "no", "--steps", "7", "--learning-rate", "1e-5", "--method", "LoRA", "--identifier", "zwx"]
    assert run_cli(["init", "My Photos", *options, "--model", "a/b", "--set", "training.randomFlip=true"]) == 0
    assert spec() == {
        "model": {"id": "a/b"},
        "subject": {"images": {"uri": "My Photos"}, "class": "no", "identifier": "zwx"},
        "training": {"method": "LoRA", "steps": 7, "learningRate": 1e-5, "randomFlip": True},
    }
    job = load_job(here / "job.yaml")
    assert (job.metadata.name, job.spec.all_subjects[0].images.uri) == ("my-photos", str(here / "My Photos"))


def test_a_saved_job_is_relative_to_its_file_and_never_overwrites_another(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "jobs").mkdir()
    command = ["init", "My Photos", "--class", "dog", "--save", "jobs/dog.yaml", "--name", "rex"]
    assert run_cli(command) == 0
    assert spec("jobs/dog.yaml") == {"subject": {"images": {"uri": "../My Photos"}, "class": "dog"}}
    assert load_job(Path("jobs/dog.yaml")).metadata.name == "rex"
    assert run_cli(command) == 0, "the same content is no conflict"
    (here / "jobs" / "dog.yaml").write_text("mine")
    capsys.readouterr()
    assert run_cli(command) == 2
    assert "--save: 'jobs/dog.yaml': exists, and would be overwritten; use another name" in capsys.readouterr().err
    assert (here / "jobs" / "dog.yaml").read_text() == "mine"
    assert run_cli([*command, "--save", "none/dog.yaml"]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (
            ["My Photos", "--steps", "0"],
            [
                "--class: is required with the photos in My Photos; add",
                "spec.training.steps (--steps 0): 0: must",
            ],
        ),
        (["My Photos", "--class", "dog", "--set", "training.step=1"], ["--set training.step=1: step is not a known"]),
        (["Mi Photos", "--class", "dog"], ["Mi Photos: does not exist"]),
        (["job.yaml", "--name", "x"], ["--name: 'x': applies to a job that is made from photos"]),
        ([".", "--name", "x"], ["--class: is required with the photos in .; add", "or pass a job file: job.yaml"]),
    ],
)
def test_all_faults_are_reported_with_the_option(
    here: Path, arguments: list[str], sentences: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["init", "My Photos", "--class", "dog"]) == 0
    assert run_cli(["init", *arguments, "--save", "new.yaml"]) == 2
    errors = capsys.readouterr().err
    assert [sentence in errors for sentence in sentences] == [True] * len(sentences), errors
    assert not Path("new.yaml").exists()


def test_options_change_a_job_file_as_set_does(here: Path) -> None:
    assert run_cli(["init", "My Photos", "--class", "dog", "--steps", "5"]) == 0
    assert run_cli(["init", "job.yaml", "--steps", "6", "--set", "training.seed=3", "--save", "six.yaml"]) == 0
    assert spec("six.yaml")["training"] == {"steps": 6, "seed": 3}
    assert spec("job.yaml")["training"] == {"steps": 5}


@pytest.mark.parametrize(
    ("folders", "source", "expected"),
    [
        (["10_sks dog"], "train", {"subject": {"images": {"uri": "train"}, "class": "dog"}}),
        (["5_zwx old cat", "9_zwx old cat asleep"], "train", {"subject": ["train", "old cat", "zwx"]}),
        (["10_dog"], "train", {"subject": ["train", "dog", None]}),
        (["10_zwx cat", "20_sks dog"], "train/10_zwx cat", {"subject": ["train/10_zwx cat", "cat", "zwx"]}),
        (
            ["10_zwx cat", "20_sks dog"],
            "train",
            {"subjects": [["train/10_zwx cat", "cat", "zwx"], ["train/20_sks dog", "dog", None]]},
        ),
    ],
)
def test_class_and_identifier_are_in_the_names_of_kohya_folders(
    here: Path, folders: list[str], source: str, expected: dict[str, object]
) -> None:
    def subject(item: object) -> object:
        if not isinstance(item, list):
            return item
        uri, noun, identifier = item
        return {"images": {"uri": uri}, "class": noun} | ({"identifier": identifier} if identifier else {})

    for index, folder in enumerate(folders):
        add_photos(here / "train" / folder, 3 * index)
    assert run_cli(["init", source]) == 0
    items = expected.get("subjects")
    wanted = (
        {"subjects": [subject(i) for i in items]}
        if isinstance(items, list)
        else {"subject": subject(expected["subject"])}
    )
    assert spec() == wanted


def test_options_have_unique_names_and_descriptions() -> None:
    assert len({flag_of(field) for field in FIELDS}) == len(FIELDS)
    for name in ("run", "plan", "validate", "init"):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        helps = {option: p.help for p in command.params if isinstance(p, click.Option) for option in p.opts}
        assert all(helps[flag_of(field)] for field in FIELDS)


def test_plan_prints_json_with_the_warnings(here: Path) -> None:
    (here / "My Photos" / "2.png").write_bytes(encoded(noise(seed=1)))
    command = [sys.executable, "-m", "dreambooth_trainer", "plan", "My Photos", "--class", "dog", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["name"], plan["steps"], plan["resolution"], plan["imageCounts"]) == ("my-photos", 400, 32, [3])
    assert plan["subjects"][0]["instancePrompt"] == "a sks dog"
    assert plan["model"] == {"id": "builtin:sprites", "revision": None, "superResolution": None}
    assert plan["memoryPerProcessBytes"]["total"] > 2**20
    assert plan["warnings"] == ["2.png is a duplicate of 1.png; training uses both"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_the_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["completion", shell]) == 0
    assert f"_DREAMBOOTH_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    program = tmp_path / "dreambooth"
    program.write_text(f"#!{sys.executable}\nfrom dreambooth_trainer.cli.main import main\nmain()\n")
    program.chmod(0o755)
    script = (
        'source <(dreambooth completion bash); COMP_WORDS=(dreambooth "$1" "$2"); COMP_CWORD=$3; '
        '_dreambooth_completion dreambooth; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def completed(*words: str) -> set[str]:
        done = subprocess.run(
            ["bash", "-c", script, "bash", *words], capture_output=True, text=True, timeout=100, env=environment
        )
        return set(done.stdout.split())

    assert {"plan"} == completed("pl", "", "1")
    assert {"--learning-rate"} == completed("run", "--learn", "2")
