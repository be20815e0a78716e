"""`dreambooth validate --online` and `plan` with models on a Hub: exit codes, messages, and what is downloaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hubserver import COMMIT, Failure, Hub, run_hub
from huggingface_hub import ModelCard

from dreambooth_trainer.cli.main import run_cli


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job with the base model team/model, and encoders that need no Hub."""
    content = {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "DreamBoothJob",
        "metadata": {"name": "pink-dog"},
        "spec": {
            "subject": {"class": "dog", "images": {"uri": "builtin:sprites/dog-pink-blue"}},
            "model": {"id": "team/model"},
            "training": {"resolution": 32},
            "evaluation": {
                "prompts": ["a {}"],
                "encoders": {"dino": "builtin:sprites", "clip": "builtin:sprites"},
            },
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "job.yaml"


def sent_weights(hub: Hub) -> list[str]:
    """Weight files of which at least half was sent."""
    files = {
        f"{name}/{path}": content
        for name, repository in hub.repositories.items()
        for path, content in repository.files.items()
    }
    return [
        path
        for path, content in files.items()
        if not path.endswith((".json", ".txt")) and hub.sent_bytes[path] > len(content) / 2
    ]


def test_validate_checks_models_without_downloading_weights(
    hub: Hub, multi_format_model: Path, encoder: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.serve(multi_format_model)
    hub.serve(encoder, "team/dino")
    command = ["validate", str(job), "--set", "evaluation.encoders.dino=team/dino"]
    assert run_cli([*command]) == 0
    assert hub.requests == [], "only with --online"
    assert run_cli([*command, "--online"]) == 0
    output = capsys.readouterr().out
    assert f"note: team/model is available, commit {COMMIT}" in output
    assert f"note: team/dino is available, commit {COMMIT}" in output
    assert sent_weights(hub) == []


def test_validate_checks_prompts_of_models_in_the_cache_without_requests(
    hub: Hub, multi_format_model: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.serve(multi_format_model)
    command = ["validate", str(job), "--set", "subject.instancePrompt=a sks dog" + " on the beach" * 5]
    assert run_cli(command) == 0
    assert run_cli([*command, "--online"]) == 2
    assert capsys.readouterr().err.count("would be ignored; shorten it") == 1
    hub.requests.clear()
    assert run_cli(command) == 2
    assert "the text encoder reads 14" in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.parametrize("missing", ["tokenizer", "unet", "scheduler"])
def test_validate_ignores_an_incomplete_download(
    hub: Hub, multi_format_model: Path, job: Path, tmp_path: Path, missing: str
) -> None:
    hub.serve(multi_format_model)
    command = ["validate", str(job), "--set", "subject.instancePrompt=a sks dog" + " on the beach" * 5]
    assert run_cli([*command, "--online"]) == 2
    for path in (tmp_path / "cache").glob(f"models--team--model/snapshots/*/{missing}/*"):
        path.unlink()
    assert run_cli(command) == 0


def test_validate_reports_the_issues_of_all_models(
    hub: Hub, job: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.model.files = {
        "model_index.json": b'{"_class_name": "PixArtPipeline"}',
        "transformer/x.safetensors": b"x" * 1000,
    }
    hub.serve(encoder, "team/dino").gated = True
    sets = ["--set", "evaluation.encoders={dino: team/dino, clip: team/missing}"]
    assert run_cli(["validate", "--online", str(job), *sets]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 3
    assert "spec.model.id: 'team/model': is a PixArtPipeline, which is not supported; use a model" in errors[0]
    assert "spec.evaluation.encoders.dino: 'team/dino': is a gated model; accept its license at http" in errors[1]
    assert "spec.evaluation.encoders.clip: 'team/missing': was not found, neither as a local folder" in errors[2]
    assert sent_weights(hub) == []


def test_encoders_are_not_checked_if_the_evaluation_is_disabled(hub: Hub, tiny_model: Path, job: Path) -> None:
    hub.serve(tiny_model)
    sets = ["--set", 'evaluation={enabled: false, prompts: ["a {}"], encoders: {dino: team/missing}}']
    assert run_cli(["validate", "--online", str(job), *sets]) == 0


def test_validate_rejects_a_prediction_type_that_is_not_supported(
    hub: Hub, tiny_model: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = hub.serve(tiny_model).files
    scheduler: dict[str, Any] = json.loads(files["scheduler/scheduler_config.json"])
    files["scheduler/scheduler_config.json"] = json.dumps(scheduler | {"prediction_type": "sample"}).encode()
    assert run_cli(["validate", "--online", str(job)]) == 2
    assert "prediction_type 'sample' is not supported" in capsys.readouterr().err


def test_a_plan_downloads_no_weights(
    hub: Hub, multi_format_model: Path, tiny_model: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.serve(multi_format_model)
    assert run_cli(["plan", str(job)]) == 0
    from_hub = capsys.readouterr().out
    assert sent_weights(hub) == []
    assert run_cli(["plan", str(job), "--set", f"model.id={tiny_model}"]) == 0
    assert _without_model(from_hub) == _without_model(capsys.readouterr().out)


def test_a_plan_shows_the_license_of_the_model(
    hub: Hub, tiny_model: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.serve(tiny_model).card = {"license": "other", "license_name": "community-license"}
    assert run_cli(["plan", str(job)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["license", "community-license"] in lines


def _without_model(plan: str) -> list[str]:
    return [line for line in plan.splitlines() if not line.startswith("base model")]


@pytest.mark.parametrize("command", [["validate", "--online"], ["plan"]])
def test_an_outage_is_exit_code_1(hub: Hub, job: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    hub.failure = Failure(503)
    assert run_cli([*command, str(job)]) == 1
    assert "spec.model.id: 'team/model': cannot be downloaded from http" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["validate", "--online"], ["plan"]])
def test_a_missing_model_is_exit_code_2(hub: Hub, job: Path, command: list[str]) -> None:
    assert run_cli([*command, str(job), "--set", "model.id=team/missing"]) == 2


def test_the_environment_sets_endpoint_token_and_offline_mode(tiny_model: Path, job: Path, tmp_path: Path) -> None:
    def validate(**variables: str) -> tuple[int, str]:
        environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "", **variables}
        done = subprocess.run(
            [sys.executable, "-m", "dreambooth_trainer", "validate", "--online", str(job)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    with run_hub() as (hub, url):
        hub.serve(tiny_model).gated = True
        code, text = validate(HF_ENDPOINT=url, HF_TOKEN="other")
        assert code == 2
        assert f"accept its license at {url}/team/model" in text
        code, text = validate(HF_ENDPOINT=url, HF_HUB_OFFLINE="1", HF_TOKEN="accepted")
        assert code == 2
        assert "is not in the cache, and HF_HUB_OFFLINE is set" in text
        assert validate(HF_ENDPOINT=url, HF_TOKEN="accepted")[0] == 0
        assert hub.tokens == {"other", "accepted"}
    code, text = validate(HF_HUB_OFFLINE="1")
    assert code == 0, text


@pytest.mark.long
def test_a_run_asks_the_hub_once_and_publishes_to_it(
    multi_format_model: Path, encoder: Path, job: Path, tmp_path: Path
) -> None:
    sets = [
        "training.steps=2",
        "training.globalBatchSize=2",
        "cluster.workers=2",
        "priorPreservation={numClassImages: 2, sampler: {steps: 1}}",
        'evaluation={prompts: ["a {}"], imagesPerPrompt: 1, encoders: {dino: team/dino, clip: builtin:sprites}}',
        "output.uri=hf://team/my-dog",
    ]
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "", "HF_TOKEN": "writer"}
    command = [sys.executable, "-m", "dreambooth_trainer", "run", str(job), "--out", "out", "--store", "store"]
    with run_hub() as (hub, url):
        hub.serve(multi_format_model).card = {"license": "openrail++"}
        hub.serve(encoder, "team/dino")
        environment |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [*command, *(word for item in sets for word in ("--set", item))],
            env={**os.environ, **environment},
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert hub.requests.count("GET /api/models/team/model/revision/main") == 1
    assert hub.requests.count("GET /api/models/team/dino/revision/main") == 1
    gets = [request for request in hub.requests if request.startswith("GET ") and "team/my-dog" not in request]
    assert len(gets) == len(set(gets)), "no file is requested by every worker or for every batch"
    unused = ("fp16", "non_ema", ".bin", ".msgpack", "safety_checker", "pruned")
    assert not [request for request in gets if any(word in request for word in unused)]
    published = hub.repositories["team/my-dog"]
    assert published.private
    assert len(published.commits) == 2
    assert published.files["unet/diffusion_pytorch_model.safetensors"]
    (tmp_path / "README.md").write_bytes(published.files["README.md"])
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.base_model, card.data.license) == ("team/model", "openrail++")
    assert "DiffusionPipeline.from_pretrained('team/my-dog')" in card.text
    assert {image["output"]["url"] for image in card.data.to_dict()["widget"]} <= published.files.keys()
    assert not any(name.startswith("logs") for name in published.files)
    assert "writer" not in done.stdout + done.stderr
