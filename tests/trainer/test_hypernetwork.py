"""HyperNetworks: jobs that start from a prediction, and jobs that a network is trained on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from rich.console import Console
from safetensors.torch import load_file
from test_plan import job_of

from dreambooth_api.errors import UserError
from dreambooth_api.hypernetwork import HyperNetwork
from dreambooth_trainer.cli.offline import check_plan
from dreambooth_trainer.families.registry import base_digest
from dreambooth_trainer.hypernetwork.files import read_config
from dreambooth_trainer.hypernetwork.jobs import read_jobs
from dreambooth_trainer.hypernetwork.predict import predict_initial_adapter
from dreambooth_trainer.hypernetwork.sprite_subjects import (
    generated_subject,
    plan_of,
    train_sprites_network,
)
from dreambooth_trainer.models.files import ADAPTER_FILE
from dreambooth_trainer.planning import describe
from dreambooth_trainer.planning.plan import Plan, fill_defaults
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.published import build_manifest
from dreambooth_trainer.store.run_record import RunRecord, write_run
from dreambooth_trainer.training.engine import open_engine

pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("ignore")]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was trained on two subjects."""
    out = tmp_path_factory.mktemp("network") / "out"
    train_sprites_network(out, subjects=2, steps=3, seed=0, work=None, console=QUIET)
    return out


def job(network: Path, identifier: str = "sks", **training: Any) -> Any:
    return job_of(
        {
            "subject": {
                "class": "dog",
                "images": {"uri": "builtin:sprites/dog-pink-blue"},
                "identifier": identifier,
            },
            "training": {"method": "LoRA", "hyperNetwork": {"id": str(network)}, **training},
            "priorPreservation": {"mode": "None"},
            "evaluation": {"enabled": False},
        }
    )


def plan(network: Path, stage: int = 1, **training: Any) -> Plan:
    return fill_defaults(
        job(network, **training), image_count=5, identifiers=["sks"], zero_stage=stage, precision="fp32"
    )


@pytest.fixture(scope="module")
def folder(network: Path, tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """The folder of a job with the predicted adapter."""
    folder = JobFolder(tmp_path_factory.mktemp("job"))
    folder.prepared.mkdir(parents=True)
    for number, image in enumerate(generated_subject(0, 0).images):
        image.save(folder.prepared / f"0-{number:03d}.png")
    predict_initial_adapter(plan(network), folder)
    return folder


def test_the_default_of_steps_is_a_tenth(network: Path) -> None:
    assert plan(network).steps == 40
    assert plan(network, steps=7).steps == 7
    shown = dict(describe._training(plan(network)))["initial adapter"]
    assert shown == "predicted from the images of the subject by the HyperNetwork out"


def test_training_starts_from_the_predicted_adapter(network: Path, folder: JobFolder, tmp_path: Path) -> None:
    predicted = load_file(folder.initial_adapter)
    assert all(predicted[name].abs().max() > 0 for name in predicted), "B of a new adapter is zero"
    engine = open_engine(plan(network), 1, None, folder.initial_adapter)
    (tmp_path / "weights").mkdir()
    engine.save_weights(tmp_path / "weights", 0)
    assert_starts_from(predicted, tmp_path / "weights")
    (tmp_path / "checkpoint").mkdir()
    engine.save(tmp_path / "checkpoint")
    resumed = open_engine(plan(network), 1, tmp_path / "checkpoint", tmp_path / "missing")
    resumed.save_weights(tmp_path / "weights", 0)
    assert_starts_from(predicted, tmp_path / "weights")


def assert_starts_from(predicted: dict[str, torch.Tensor], folder: Path) -> None:
    weights = load_file(folder / "trained-weights.safetensors")
    names = {f"trained.unet.{name.removesuffix('.weight')}.default.weight": name for name in predicted}
    assert weights.keys() == names.keys()
    for key, name in names.items():
        torch.testing.assert_close(weights[key], predicted[name], rtol=0, atol=0)


def _rank(rank: int, port: int, plans: list[Plan], initial: Path, out: Path) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed requires this variable of its launcher
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for number, one in enumerate(plans):
        target = out / str(number)
        target.mkdir(exist_ok=True)
        open_engine(one, 2, None, initial).save_weights(target, rank)
    dist.destroy_process_group()


def test_all_zero_stages_start_from_the_predicted_adapter(network: Path, folder: JobFolder, tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    plans = [plan(network, stage) for stage in (1, 2, 3)]
    mp.spawn(_rank, (port, plans, folder.initial_adapter, tmp_path), nprocs=2)
    for number in range(3):
        assert_starts_from(load_file(folder.initial_adapter), tmp_path / str(number))


def test_a_network_for_other_jobs_is_refused(network: Path) -> None:
    check_plan(job(network))
    wrong = job(network, "ohwx", lora={"rank": 4, "alpha": 2}, textEncoder={"train": True})
    with pytest.raises(UserError) as caught:
        check_plan(wrong)
    text = str(caught.value)
    for sentence in (
        f"spec.training.lora.rank: 4: the network {network} was trained for rank 16; set rank: 16",
        "spec.training.lora.alpha: 2.0: ",
        "spec.subject.identifier: 'ohwx': ",
        "spec.training.textEncoder.train: ",
    ):
        assert sentence in text, text


def test_a_network_for_another_model_is_refused(network: Path, tmp_path: Path) -> None:
    config = json.loads((network / "hypernetwork.json").read_text())
    for name, value, sentence in (
        ("baseDigest", "0", "whose weights are not those of builtin:sprites"),
        ("layers", {}, "predicts other layers than this version trains, among them down_blocks.0"),
    ):
        (tmp_path / "hypernetwork.json").write_text(json.dumps({**config, name: value}))
        (tmp_path / "hypernetwork.safetensors").write_bytes(b"")
        with pytest.raises(UserError, match=sentence):
            check_plan(job(tmp_path))


def test_the_network_of_the_package_is_that_of_its_base_model(tmp_path: Path) -> None:
    check_plan(job(Path("builtin:sprites")))
    with pytest.raises(UserError, match=r"has no hypernetwork.json and no hypernetwork.safetensors"):
        check_plan(job(tmp_path))


def write_job(folder: Path, own: Plan) -> None:
    """The files of a finished job that a network is trained on."""
    job = JobFolder(folder)
    job.prepared.mkdir(parents=True)
    job.model.mkdir()
    (job.prepared / "0-000.png").write_bytes(b"")
    job.latents.write_bytes(b"")
    write_run(job, RunRecord(plan=own, keys={}))
    manifest = build_manifest(own, base_digest(own.model), job.model)
    (job.model / "dreambooth.json").write_text(manifest.model_dump_json(by_alias=True))


def test_mixed_jobs_are_refused_with_all_faults(tmp_path: Path) -> None:
    usual = plan_of("dog")
    write_job(tmp_path / "a", usual)
    write_job(tmp_path / "b", usual)
    assert [found.folder.root.name for found in read_jobs([tmp_path])] == ["a", "b"]
    other = job_of({"training": {"method": "LoRA", "lora": {"rank": 4}}, "subject": {
        "class": "dog", "images": {"uri": "x"}, "identifier": "zwx",
    }})  # fmt: skip
    settings: Any = {"image_count": 4, "zero_stage": 1, "precision": "fp32"}
    write_job(tmp_path / "c", fill_defaults(other, identifiers=["zwx"], **settings))
    full = job_of({"training": {"textEncoder": {"train": True}}})
    write_job(tmp_path / "e", fill_defaults(full, identifiers=["sks"], **settings))
    (tmp_path / "e/model/dreambooth.json").unlink()
    JobFolder(tmp_path / "e").latents.unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        read_jobs([tmp_path, tmp_path / "empty"])
    text = str(caught.value)
    for sentence in (
        f"{tmp_path}/c': has the rank 4, a has 16; leave out jobs with another rank",
        f"{tmp_path}/c': has the alpha 4, a has 16",
        f"{tmp_path}/c': has the identifier zwx, a has sks",
        f"{tmp_path}/e': has method Full, not LoRA",
        f"{tmp_path}/e': has adapters of text encoders",
        f"{tmp_path}/e': has no published model; complete the job",
        f"{tmp_path}/e': has no encoded images; run the job again, and keep its folder work",
        f"{tmp_path}/empty': contains no job",
    ):
        assert sentence in text, text


@pytest.mark.long
def test_a_job_publishes_the_adapter_that_it_started_from(network: Path, tmp_path: Path) -> None:
    """With a tiny learning rate, one step in a Ray worker changes nothing that can be seen."""
    from dreambooth_trainer.jobfile.load import dump_job

    (tmp_path / "job.yaml").write_text(dump_job(job(network, steps=1, learningRate=1e-12)))
    command = [sys.executable, "-m", "dreambooth_trainer"]
    run = [*command, "run", str(tmp_path / "job.yaml"), "--out", str(tmp_path / "out"), "--store", str(tmp_path / "s")]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = JobFolder(tmp_path / "out")
    published, predicted = load_file(folder.model / ADAPTER_FILE), load_file(folder.initial_adapter)
    assert published.keys() == {f"unet.{name}" for name in predicted}
    for name, value in predicted.items():
        torch.testing.assert_close(published[f"unet.{name}"], value, rtol=0, atol=1e-6)
    assert "hyperNetwork" in (published_job := (folder.model / "job.yaml").read_text())
    assert str(network.parent) not in published_job
    train = [*command, "hypernetwork", "train", str(tmp_path / "out"), "--out", str(tmp_path / "n"), "--steps", "2"]
    trained = subprocess.run(train, capture_output=True, text=True, check=False)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "trained on 1 job(s); at least 10 subjects are required" in trained.stdout
    assert read_config(HyperNetwork(id=str(tmp_path / "n"))).layers == read_config(HyperNetwork(id=str(network))).layers
