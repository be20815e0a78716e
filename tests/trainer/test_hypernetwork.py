"""HyperNetworks: the loss, training on jobs, and jobs that start from a prediction."""

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
from safetensors.torch import load_file, save_file
from test_plan import job_of

from dreambooth_api.errors import UserError
from dreambooth_api.hypernetwork import HyperNetwork
from dreambooth_trainer.cli.offline import check_plan
from dreambooth_trainer.families.registry import base_digest
from dreambooth_trainer.hypernetwork.check import target_layers
from dreambooth_trainer.hypernetwork.denoising import Denoising
from dreambooth_trainer.hypernetwork.files import LayerShape, network_digest, read_config
from dreambooth_trainer.hypernetwork.jobs import Examples, config_of, read_jobs
from dreambooth_trainer.hypernetwork.network import AdapterNetwork, constant_error, relative_error
from dreambooth_trainer.hypernetwork.predict import predict, predict_initial_adapter
from dreambooth_trainer.hypernetwork.sprite_subjects import (
    _evaluated,
    _look,
    photos,
    plan_of,
    train_sprites_network,
    training_data,
)
from dreambooth_trainer.hypernetwork.train import train_network
from dreambooth_trainer.methods.lora import adapter
from dreambooth_trainer.models.files import ADAPTER_FILE
from dreambooth_trainer.planning import describe
from dreambooth_trainer.planning.plan import Plan, fill_defaults
from dreambooth_trainer.sprites import WEIGHTS
from dreambooth_trainer.sprites.examples import benchmark_subject
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.published import build_manifest
from dreambooth_trainer.store.run_record import RunRecord, write_run
from dreambooth_trainer.training.batches import DeterministicSampler
from dreambooth_trainer.training.engine import open_engine
from dreambooth_trainer.training.loop import run_step
from dreambooth_trainer.training.module import make_batch

pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("ignore")]
QUIET = Console(quiet=True)
LAYERS = {
    "attention": LayerShape(down=(4, 12), up=(20, 4)),
    "conv": LayerShape(down=(4, 5, 3, 3), up=(7, 4, 1, 1)),
}


def random_adapters(count: int, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(count, *shape.down, generator=generator).flatten(2),
            torch.randn(count, *shape.up, generator=generator).flatten(2),
        )
        for name, shape in LAYERS.items()
    }


def products(adapters: Any) -> torch.Tensor:
    return torch.cat([(up @ down).flatten(1) for down, up in adapters.values()], dim=1)


def test_the_error_is_that_of_the_products() -> None:
    predicted, true = random_adapters(3, 0), random_adapters(3, 1)
    expected = (products(predicted) - products(true)).square().sum(1) / products(true).square().sum(1)
    torch.testing.assert_close(relative_error(predicted, true), expected)
    mean = products(random_adapters(5, 2)).mean(0)
    expected = (mean - products(true)).square().sum(1) / products(true).square().sum(1)
    torch.testing.assert_close(constant_error(random_adapters(5, 2), true), expected)


def test_the_error_does_not_depend_on_the_factors_of_a_product() -> None:
    predicted, true = random_adapters(3, 0), random_adapters(3, 1)
    change = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)) + 4 * torch.eye(4)
    same = {name: (change @ down, up @ change.inverse()) for name, (down, up) in true.items()}
    torch.testing.assert_close(relative_error(predicted, same), relative_error(predicted, true), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(relative_error(same, true), torch.zeros(3), rtol=0, atol=1e-5)


class NoDenoising:
    """For adapters of layers that no model has."""

    def loss(self, *arguments: Any) -> torch.Tensor:
        return torch.zeros(())


def test_a_network_gives_back_two_adapters_from_the_features_of_their_images(tmp_path: Path) -> None:
    examples = Examples([torch.full((2, 3), 1.0), torch.full((2, 3), -1.0)], random_adapters(2, 0))
    config = config_of(plan_of("dog", 1), "digest", LAYERS, 3)
    untrained = AdapterNetwork(3, LAYERS)
    untrained.start_from(examples.adapters, examples.means())
    mean = {name: (down.mean(0), up.mean(0)) for name, (down, up) in examples.adapters.items()}
    for name, pair in predict(untrained, examples.features[0]).items():
        torch.testing.assert_close(pair, mean[name], msg="the heads begin at zero")
    assert train_network(examples, NoDenoising(), config, tmp_path / "out", steps=300, seed=0, console=QUIET) is None
    network = AdapterNetwork(3, LAYERS)
    network.load_state_dict({n: v.float() for n, v in load_file(tmp_path / "out/hypernetwork.safetensors").items()})
    with torch.no_grad():
        error = relative_error(network(examples.means()), examples.adapters)
        assert error.max() < 1e-3
        assert relative_error(network(-examples.means()), examples.adapters).min() > 1, "the other subject's adapter"
    assert read_config(HyperNetwork(id=str(tmp_path / "out"))).jobs == 2


def test_a_tenth_of_the_jobs_is_held_out(tmp_path: Path) -> None:
    features = [torch.randn(2, 3, generator=torch.Generator().manual_seed(number)) for number in range(20)]
    examples = Examples(features, random_adapters(20, 0))
    config = config_of(plan_of("dog", 1), "digest", LAYERS, 3)
    measured = train_network(examples, NoDenoising(), config, tmp_path / "out", steps=2, seed=0, console=QUIET)
    assert measured is not None
    assert measured.jobs == 2
    error, denoising = measured.lines()
    assert error.startswith("relative error on 2 held-out job(s): ")
    assert denoising.startswith("denoising loss on 2 held-out job(s): base model ")
    assert read_config(HyperNetwork(id=str(tmp_path / "out"))).jobs == 18


class RecordingDenoising:
    """Is lower for smaller adapters. Records the jobs of the training steps, and those that are measured."""

    def __init__(self) -> None:
        self.trained, self.measured = set[int](), set[int]()

    def loss(self, job: int, adapter: Any, step: int, seed: int) -> torch.Tensor:
        (self.trained if seed == 0 else self.measured).add(job)
        return torch.stack([up.square().mean() for _, up in adapter.values()]).mean()


def test_a_network_learns_the_denoising_loss_of_jobs_that_are_not_held_out(tmp_path: Path) -> None:
    features = [torch.randn(2, 3, generator=torch.Generator().manual_seed(number)) for number in range(20)]
    examples, denoising = Examples(features, random_adapters(20, 0)), RecordingDenoising()
    config = config_of(plan_of("dog", 1), "digest", LAYERS, 3)
    sizes: list[float] = []
    for name, loss in (("without", NoDenoising()), ("with", denoising)):
        train_network(examples, loss, config, tmp_path / name, steps=100, seed=0, console=QUIET)
        network = AdapterNetwork(3, LAYERS)
        weights = load_file(tmp_path / name / "hypernetwork.safetensors")
        network.load_state_dict({key: value.float() for key, value in weights.items()})
        sizes.append(sum(up.square().mean().item() for _, up in predict(network, features[0]).values()))
    assert sizes[1] < 0.5 * sizes[0]
    assert len(denoising.measured) == 2
    assert denoising.trained == set(range(20)) - denoising.measured


def test_the_denoising_loss_is_that_of_a_training_step() -> None:
    plan = plan_of("dog", 2)
    data = training_data(plan, photos(0, 0)[1])
    engine = open_engine(plan, 1, None)
    for step in range(2):
        run_step(engine, plan, data, step, rank=0, world_size=1)
    trained = {name: p.detach() for name, p in engine.module.denoiser.named_parameters() if p.requires_grad}
    own = adapter(engine.module.denoiser, trained)[0]
    layers = target_layers(WEIGHTS, plan)
    pairs = {
        name: (own[f"{name}.lora_A.weight"].flatten(1), own[f"{name}.lora_B.weight"].flatten(1)) for name in layers
    }
    for _, up in pairs.values():
        up.requires_grad_()
    loss = Denoising(plan, layers, [lambda device: data]).loss(0, pairs, step=2, seed=0)
    sampler = DeterministicSampler(data.instance_images.indices, plan.batch_size, 0, plan.variants_per_image)
    batch = make_batch(engine.module.stage, data, (sampler, None), 2, 0, 1)
    torch.testing.assert_close(loss, engine.module(batch)[1])
    loss.backward()
    assert all(up.grad is not None and up.grad.any() for _, up in pairs.values()), "every layer learns from it"


def test_generated_subjects_look_like_none_of_the_benchmark() -> None:
    assert len(_evaluated()) > 100
    assert _look(benchmark_subject(7)[0]) in _evaluated()
    class_, images = photos(0, 3)
    assert (class_, len(images)) == (photos(0, 3)[0], 5)
    assert (images[0] == photos(0, 3)[1][0]).all()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was trained on two adapters of two steps."""
    out = tmp_path_factory.mktemp("network") / "out"
    train_sprites_network(out, subjects=2, subject_steps=2, steps=3, seed=0, work=None, console=QUIET)
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
    from PIL import Image

    folder = JobFolder(tmp_path_factory.mktemp("job"))
    folder.prepared.mkdir(parents=True)
    for number, pixels in enumerate(photos(0, 0)[1]):
        Image.fromarray(pixels).save(folder.prepared / f"0-{number:03d}.png")
    predict_initial_adapter(plan(network), folder)
    return folder


def test_adapters_that_exist_are_not_trained_again(network: Path, tmp_path: Path) -> None:
    work = network.with_name("out.work")
    files = {path: path.stat().st_mtime_ns for path in work.rglob("0000?.safetensors")}
    assert len(files) == 2
    out = tmp_path / "again"
    train_sprites_network(out, subjects=2, subject_steps=2, steps=3, seed=0, work=work, console=QUIET)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("0000?.safetensors")} == files
    assert network_digest(HyperNetwork(id=str(out))) == network_digest(HyperNetwork(id=str(network)))


def test_the_adapters_of_subjects_start_from_the_same_a(network: Path) -> None:
    one, other = (load_file(path) for path in sorted(network.with_name("out.work").rglob("0000?.safetensors")))
    down = [name for name in one if "lora_A" in name]
    assert len(down) == 106
    distance = sum((one[name] - other[name]).square().sum() for name in down)
    assert distance / sum(one[name].square().sum() for name in down) < 0.1


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


def test_the_package_contains_no_network(tmp_path: Path) -> None:
    if (WEIGHTS / "hypernetwork").exists():
        pytest.skip("it does")
    with pytest.raises(UserError, match="train one with dreambooth sprites hypernetwork"):
        check_plan(job(Path("builtin:sprites")))
    with pytest.raises(UserError, match=r"has no hypernetwork.json and no hypernetwork.safetensors"):
        check_plan(job(tmp_path))


def write_job(folder: Path, own: Plan, layers: dict[str, LayerShape]) -> None:
    """The files of a finished job that a network is trained on."""
    job, model = JobFolder(folder), JobFolder(folder).model
    job.prepared.mkdir(parents=True)
    model.mkdir()
    (job.prepared / "0-000.png").write_bytes(b"")
    job.latents.write_bytes(b"")
    write_run(job, RunRecord(plan=own, keys={}))
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in layers.items():
        tensors |= {f"unet.{name}.lora_A.weight": torch.zeros(shape.down)}
        tensors |= {f"unet.{name}.lora_B.weight": torch.zeros(shape.up)}
    save_file(tensors, model / ADAPTER_FILE)
    manifest = build_manifest(own, base_digest(own.model), model)
    (model / "dreambooth.json").write_text(manifest.model_dump_json(by_alias=True))


def test_mixed_jobs_are_refused_with_all_faults(tmp_path: Path) -> None:
    usual = plan_of("dog", 1)
    write_job(tmp_path / "a", usual, LAYERS)
    write_job(tmp_path / "b", usual, LAYERS)
    assert [found.folder.root.name for found in read_jobs([tmp_path])] == ["a", "b"]
    other = job_of({"training": {"method": "LoRA", "lora": {"rank": 4}}, "subject": {
        "class": "dog", "images": {"uri": "x"}, "identifier": "zwx",
    }})  # fmt: skip
    settings: Any = {"image_count": 4, "zero_stage": 1, "precision": "fp32"}
    write_job(tmp_path / "c", fill_defaults(other, identifiers=["zwx"], **settings), LAYERS)
    write_job(tmp_path / "d", usual, {"attention": LAYERS["attention"]})
    full = job_of({"training": {"textEncoder": {"train": True}}})
    write_job(tmp_path / "e", fill_defaults(full, identifiers=["sks"], **settings), LAYERS)
    (tmp_path / "e/model" / ADAPTER_FILE).unlink()
    JobFolder(tmp_path / "e").latents.unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        read_jobs([tmp_path, tmp_path / "empty"])
    text = str(caught.value)
    for sentence in (
        f"{tmp_path}/c': has the rank 4, a has 16; leave out jobs with another rank",
        f"{tmp_path}/c': has the alpha 4, a has 16",
        f"{tmp_path}/c': has the identifier zwx, a has sks",
        f"{tmp_path}/d': has the number of adapted layers 1, a has 2",
        f"{tmp_path}/e': has method Full, not LoRA",
        f"{tmp_path}/e': has adapters of text encoders",
        f"{tmp_path}/e': has no published adapter",
        f"{tmp_path}/e': has no encoded images; run the job again, and keep its folder work",
        f"{tmp_path}/empty': contains no job",
    ):
        assert sentence in text, text


def test_the_layers_of_the_plan_are_those_of_a_trained_adapter(network: Path) -> None:
    assert target_layers(WEIGHTS, plan(network)) == read_config(HyperNetwork(id=str(network))).layers


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
    again = subprocess.run(
        [*command, "hypernetwork", "train", str(tmp_path / "out"), "--out", str(tmp_path / "n")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 2
    assert "started from the prediction of a network" in again.stderr
