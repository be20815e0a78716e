"""HyperNetworks: their loss, and their training."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from test_plan import job_of

from dreambooth_api.hypernetwork import HyperNetwork
from dreambooth_trainer.families.ip_adapter import adapter_files
from dreambooth_trainer.hypernetwork.check import target_layers
from dreambooth_trainer.hypernetwork.denoising import MIN_SNR_GAMMA, Denoising, _sample, _variants
from dreambooth_trainer.hypernetwork.files import LayerShape, encoder_of, network_digest, read_config
from dreambooth_trainer.hypernetwork.jobs import config_of
from dreambooth_trainer.hypernetwork.network import AdapterNetwork
from dreambooth_trainer.hypernetwork.predict import image_features, predict
from dreambooth_trainer.hypernetwork.sprite_subjects import (
    GeneratedSubject,
    _evaluated,
    _look,
    generated_subject,
    plan_of,
    training_data,
)
from dreambooth_trainer.hypernetwork.train import IMAGES_PER_JOB, PRIOR_JOBS_PER_STEP, Example, _split, train_network
from dreambooth_trainer.methods.lora import adapter
from dreambooth_trainer.planning.plan import fill_defaults
from dreambooth_trainer.sprites import WEIGHTS
from dreambooth_trainer.sprites.backgrounds import BACKGROUNDS
from dreambooth_trainer.sprites.examples import benchmark_subject
from dreambooth_trainer.sprites.training import SAVE_EVERY
from dreambooth_trainer.sprites.world import random_scene, render
from dreambooth_trainer.training.cache import TrainingData
from dreambooth_trainer.training.engine import open_engine
from dreambooth_trainer.training.loop import run_step
from dreambooth_trainer.training.module import assemble_batch

pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("ignore")]
QUIET = Console(quiet=True)
LAYERS = {
    "attention": LayerShape(down=(4, 12), up=(20, 4)),
    "conv": LayerShape(down=(4, 5, 3, 3), up=(7, 4, 1, 1)),
}


def random_adapter(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(*shape.down, generator=generator).flatten(1),
            0.1 * torch.randn(*shape.up, generator=generator).flatten(1),
        )
        for name, shape in LAYERS.items()
    }


def products(adapter: Any) -> torch.Tensor:
    return torch.cat([(up @ down).flatten() for down, up in adapter.values()])


class KnownTargets:
    """The loss of a job is the squared distance of its adapter's products from a target. Records how it is called."""

    def __init__(self, jobs: int) -> None:
        self.targets = [products(random_adapter(job)) for job in range(jobs)]
        self.trained, self.measured = set[int](), set[int]()
        self.calls = self.priors = 0

    def initial_adapter(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        return {name: (down, torch.zeros_like(up)) for name, (down, up) in random_adapter(99).items()}

    def losses(
        self, job: int, adapter: Any, images: torch.Tensor, generator: torch.Generator, *, prior: bool = False
    ) -> torch.Tensor:
        assert len(images) == IMAGES_PER_JOB
        self.priors += prior
        self.calls += 1
        (self.trained if torch.is_grad_enabled() else self.measured).add(job)
        loss = (products(adapter) - self.targets[job]).square().sum() / self.targets[job].square().sum()
        return torch.stack([loss, torch.zeros(())])


def random_examples(jobs: int) -> list[Example]:
    """Each job has four images of its own subject, whose features differ a little."""
    found: list[Example] = []
    for job in range(jobs):
        generator = torch.Generator().manual_seed(job)
        features = torch.randn(1, 3, generator=generator) + 0.02 * torch.randn(4, 3, generator=generator)
        found.append(Example(features, f"subject {job}", f"job {job}"))
    return found


def train(examples: list[Example], denoising: Any, out: Path, steps: int) -> Any:
    config = config_of(plan_of("dog"), "digest", LAYERS, 3)
    work = out.with_name("work")
    return train_network(examples, denoising, config, out, steps=steps, seed=0, work=work, console=QUIET)


def trained_network(out: Path) -> AdapterNetwork:
    network = AdapterNetwork(3, LAYERS)
    network.load_state_dict({n: v.float() for n, v in load_file(out / "hypernetwork.safetensors").items()})
    return network


def test_a_network_learns_the_adapter_of_each_subject(tmp_path: Path) -> None:
    examples, denoising = random_examples(3), KnownTargets(3)
    untrained = AdapterNetwork(3, LAYERS)
    untrained.start_from(denoising.initial_adapter(), torch.cat([one.features for one in examples]))
    for name, pair in predict(untrained, examples[0].features).items():
        torch.testing.assert_close(pair, denoising.initial_adapter()[name], msg="the directions begin at zero")
    assert train(examples, denoising, tmp_path / "out", 600) is None
    network = trained_network(tmp_path / "out")
    for job in range(3):
        learned = products(predict(network, examples[job].features))
        errors = [(learned - one).square().sum() / one.square().sum() for one in denoising.targets]
        assert errors[job] < 0.05
        assert min(errors[:job] + errors[job + 1 :]) > 1, "the other subjects' adapters"
    assert read_config(HyperNetwork(id=str(tmp_path / "out"))).jobs == 3


def test_a_tenth_of_the_jobs_is_held_out(tmp_path: Path) -> None:
    examples = [replace(one, subject=f"subject {row % 10}") for row, one in enumerate(random_examples(20))]
    nine = [replace(one, subject=one.subject.replace("7", "3")) for one in examples]
    assert train(nine, KnownTargets(20), tmp_path / "nine", 1) is None
    denoising = KnownTargets(20)
    measured = train(examples, denoising, tmp_path / "out", 40)
    assert measured is not None
    assert measured.jobs == len(denoising.measured) == 2
    first, second = sorted(denoising.measured)
    assert second == first + 10, "jobs with the same subject are held out together"
    assert denoising.trained == set(range(20)) - denoising.measured
    assert denoising.priors == 40 * PRIOR_JOBS_PER_STEP
    assert measured.line().startswith("denoising loss on 2 held-out job(s): base model 1.0000, mean features ")
    assert read_config(HyperNetwork(id=str(tmp_path / "out"))).jobs == 18


def test_no_image_of_the_loss_is_among_those_of_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, drawn, forward = list[torch.Tensor](), list[torch.Tensor](), AdapterNetwork.forward

    def recorded(self: AdapterNetwork, features: torch.Tensor) -> Any:
        inputs.extend(features)
        return forward(self, features)

    class Recorded(KnownTargets):
        def losses(
            self, job: int, adapter: Any, images: torch.Tensor, generator: torch.Generator, *, prior: bool = False
        ) -> torch.Tensor:
            drawn.append(images)
            return super().losses(job, adapter, images, generator, prior=prior)

    monkeypatch.setattr(AdapterNetwork, "forward", recorded)
    train([Example(torch.eye(3), name, name) for name in "ab"], Recorded(2), tmp_path / "out", 30)
    assert len(inputs) == 60
    for features, indices in zip(inputs, drawn, strict=True):
        assert features.any()
        assert not features[indices].any()


class Penalized(KnownTargets):
    """The prior loss is lower for smaller adapters."""

    def losses(
        self, job: int, adapter: Any, images: torch.Tensor, generator: torch.Generator, *, prior: bool = False
    ) -> torch.Tensor:
        instance, none = super().losses(job, adapter, images, generator, prior=prior)
        size = products(adapter).square().sum() / self.targets[job].square().sum()
        return torch.stack([instance, 20 * size if prior else none])


def test_a_network_learns_the_prior_loss_as_well(tmp_path: Path) -> None:
    examples, sizes = random_examples(2), list[float]()
    for name, denoising in (("without", KnownTargets(2)), ("with", Penalized(2))):
        train(examples, denoising, tmp_path / name / "out", 300)
        adapter = predict(trained_network(tmp_path / name / "out"), examples[0].features)
        sizes.append(products(adapter).square().sum().item())
    assert sizes[1] < 0.5 * sizes[0]


def test_features_and_loss_are_of_different_images() -> None:
    for count in range(2, 7):
        for seed in range(20):
            seen, unseen = _split(count, torch.Generator().manual_seed(seed))
            assert not set(seen.tolist()) & set(unseen.tolist())
            assert {*seen.tolist(), *unseen.tolist()} <= set(range(count))
            assert (len(seen) > 0, len(unseen)) == (True, IMAGES_PER_JOB)
    assert [one.tolist() for one in _split(1, torch.Generator())] == [[0], [0] * IMAGES_PER_JOB]


def test_an_interrupted_training_continues(tmp_path: Path) -> None:
    class Interrupted(KnownTargets):
        def losses(
            self, job: int, adapter: Any, images: torch.Tensor, generator: torch.Generator, *, prior: bool = False
        ) -> torch.Tensor:
            if self.calls == 2 * (SAVE_EVERY + 5):
                raise KeyboardInterrupt
            return super().losses(job, adapter, images, generator, prior=prior)

    examples = random_examples(2)
    whole = KnownTargets(2)
    train(examples, whole, tmp_path / "a/out", SAVE_EVERY + 10)
    with pytest.raises(KeyboardInterrupt):
        train(examples, Interrupted(2), tmp_path / "b/out", SAVE_EVERY + 10)
    assert not (tmp_path / "b/out").exists()
    rest = KnownTargets(2)
    train(examples, rest, tmp_path / "b/out", SAVE_EVERY + 10)
    assert (whole.calls, rest.calls) == (2 * (SAVE_EVERY + 10), 2 * 10)
    digests = {network_digest(HyperNetwork(id=str(tmp_path / name / "out"))) for name in "ab"}
    assert len(digests) == 1, "the same network"
    other = KnownTargets(2)
    train([replace(one, digest="other images") for one in examples], other, tmp_path / "b/other", SAVE_EVERY + 10)
    assert other.calls == whole.calls, "other jobs start again"


def test_the_losses_are_those_of_a_training_step() -> None:
    plan = plan_of("dog")
    data = training_data(generated_subject(0, 0))
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
    denoising, images = Denoising(plan, layers, [lambda device: data]), torch.tensor([3, 1])
    for name, (down, up) in denoising.initial_adapter().items():
        assert down.shape == pairs[name][0].shape
        assert down.any()
        assert not up.any()
    losses = denoising.losses(0, pairs, images, torch.Generator().manual_seed(7), prior=True)
    generator = torch.Generator().manual_seed(7)
    samples = [(data.instance_images, _sample(_variants(data.instance_images, images, generator), generator))]
    chosen = torch.randint(5, (2,), generator=generator)
    assert data.class_images is not None
    samples.append((data.class_images, _sample(chosen, generator)))
    engine.module.min_snr_gamma = MIN_SNR_GAMMA
    torch.testing.assert_close(losses, engine.module(assemble_batch(engine.module.stage, samples))[1:])
    assert losses[1] > 0
    losses[0].backward()
    assert all(up.grad is not None and up.grad.any() for _, up in pairs.values()), "every layer learns from it"
    no_examples = Denoising(plan, layers, [lambda device: TrainingData(data.instance_images, None)])
    for one, prior in ((denoising, False), (no_examples, True)):
        only = one.losses(0, pairs, images, torch.Generator().manual_seed(7), prior=prior)
        torch.testing.assert_close(only[0], losses[0])
        assert only[1] == 0


def test_variants_are_those_of_the_image_in_its_own_job() -> None:
    plain, images = training_data(generated_subject(0, 0)).instance_images, torch.tensor([3, 1, 3, 1])
    generator = torch.Generator().manual_seed(0)
    assert _variants(plain, images, generator).tolist() == [3, 1, 3, 1]
    augmented = replace(plain, prompt_indices=plain.prompt_indices.repeat_interleave(6))
    found = torch.cat([_variants(augmented, images, generator) for _ in range(50)])
    assert set((found // 6).tolist()) == {1, 3}
    assert set((found % 6).tolist()) == set(range(6))


def test_jobs_with_gradient_checkpointing_give_the_same_gradients() -> None:
    gradients = list[torch.Tensor]()
    data, layers = training_data(generated_subject(0, 0)), target_layers(WEIGHTS, plan_of("dog"))
    for checkpointing in (False, True):
        spec = {"training": {"method": "LoRA", "gradientCheckpointing": checkpointing}}
        own = fill_defaults(job_of(spec), image_count=5, identifiers=["sks"], zero_stage=1, precision="fp32")
        assert own.spec.training.gradient_checkpointing == checkpointing
        denoising = Denoising(own, layers, [lambda device: data])
        adapter = {
            name: (down, up.add(0.01).requires_grad_()) for name, (down, up) in denoising.initial_adapter().items()
        }
        denoising.losses(0, adapter, torch.tensor([0]), torch.Generator().manual_seed(0))[0].backward()
        gradients.append(torch.cat([up.grad.flatten() for _, up in adapter.values() if up.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].any()


def test_generated_subjects_look_like_none_of_the_benchmark() -> None:
    assert len(_evaluated()) > 100
    assert _look(benchmark_subject(7)[0]) in _evaluated()
    one, same = generated_subject(0, 3), generated_subject(0, 3)
    assert (one.subject, one.instance_prompts, len(one.images)) == (same.subject, same.instance_prompts, 5)
    assert one.images[0].tobytes() == same.images[0].tobytes()
    many = [generated_subject(0, number) for number in range(40)]
    assert not {_look(each.subject) for each in many} & _evaluated()
    class_prompts = [prompt for each in many for prompt in each.class_prompts]
    instance_prompts = [prompt for each in many for prompt in each.instance_prompts]
    assert [prompt.replace("sks ", "") for prompt in instance_prompts] == class_prompts
    assert 50 < sum(len(prompt.split()) == 2 for prompt in class_prompts) < 150, "half of them describe the scene"


def test_the_network_of_the_package_helps_subjects_that_it_was_not_trained_on() -> None:
    """The denoising loss of other images of a subject is lower with the predicted adapter."""
    config = read_config(HyperNetwork(id="builtin:sprites"))
    network = AdapterNetwork(config.features, config.layers)
    weights = load_file(WEIGHTS / "hypernetwork" / "hypernetwork.safetensors")
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    subjects = [benchmark_images(number) for number in range(4)]
    data = [partial(constant, training_data(one)) for one in subjects]
    denoising = Denoising(plan_of("dog"), config.layers, data)
    none, losses = denoising.initial_adapter(), list[list[float]]()
    encoder, unseen = adapter_files(encoder_of("builtin:sprites")).encoder, torch.tensor([2, 3, 4, 2])
    with torch.no_grad():
        for job, subject in enumerate(subjects):
            own = predict(network, image_features(encoder, subject.images[:2]))
            for seed in range(8):
                pair = [
                    denoising.losses(job, each, unseen, torch.Generator().manual_seed(seed)) for each in (none, own)
                ]
                losses.append([loss[0].item() for loss in pair])
    base, predicted = torch.tensor(losses).mean(0).tolist()
    assert predicted < 0.95 * base


def constant(data: TrainingData, device: str) -> TrainingData:
    return data


def benchmark_images(number: int) -> GeneratedSubject:
    subject, rng = benchmark_subject(number)
    images = [Image.fromarray(render(subject, random_scene(rng, name))) for name in rng.sample(tuple(BACKGROUNDS), 5)]
    return GeneratedSubject(subject, images, [f"a {subject.cls}"] * 5, [f"a sks {subject.cls}"] * 5)
