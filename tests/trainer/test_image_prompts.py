"""Method None: images of the subject as prompts of the base model, with an IP-Adapter."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hubserver import COMMIT, Hub
from inline_pool import InlinePool
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from test_plan import make_plan

from dreambooth_api.errors import UserError
from dreambooth_api.imageprompt import WEIGHTS_FILE, IpAdapter
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.status import TrainerPhase
from dreambooth_api.words import without_word
from dreambooth_trainer import runner
from dreambooth_trainer.benchmark.results import published_bytes
from dreambooth_trainer.benchmark.runs import make_job, make_runs
from dreambooth_trainer.benchmark.variants import Variant, make_variants
from dreambooth_trainer.cluster.hardware import Hardware
from dreambooth_trainer.families.ip_adapter import adapter_digest, adapter_files, check_adapter, pinned_adapter
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.models.files import IMAGE_EMBEDS_FILE, IP_ADAPTER_FILE
from dreambooth_trainer.planning.describe import rows
from dreambooth_trainer.progress.console import LineReporter
from dreambooth_trainer.runner import prepare_job, run_job
from dreambooth_trainer.sampling import image_prompts
from dreambooth_trainer.sampling.from_published import open_pipeline
from dreambooth_trainer.sampling.image_prompts import SubjectImages
from dreambooth_trainer.sampling.pipeline import ImageRequest, SamplingConfig, load_pipeline, sample_batch
from dreambooth_trainer.sprites import WEIGHTS
from dreambooth_trainer.sprites.adapter_files import initial_adapter, save_adapter
from dreambooth_trainer.sprites.train_image_encoder import ImageEncoderConfig, build_image_encoder
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.verify import verify_model

pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("ignore")]

PROMPT = "a {} on the beach"
MACHINE = Hardware(0, "CPU", 16 * 2**30, bf16=False, total_bytes=16 * 2**30)


def write_adapter(base: Path, folder: Path, seed: int = 0) -> Path:
    """An adapter with random weights for a model."""
    torch.manual_seed(seed)
    unet: Any = open_family(base).pipeline(base, torch.float32).unet
    config = ImageEncoderConfig(width=16, layers=2, heads=2, patch=16, projection=8)
    state = initial_adapter(unet, config.projection)
    unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
    save_adapter(unet, build_image_encoder(config), folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with random weights for builtin:sprites."""
    return write_adapter(WEIGHTS, tmp_path_factory.mktemp("adapter"))


def job_of(adapter: Path, **spec: Any) -> DreamBoothJob:
    value: dict[str, Any] = {
        "subject": {"class": "dog", "images": {"uri": "builtin:sprites/dog-pink-blue"}},
        "training": {"method": "None", "imagePrompt": {"adapter": {"id": str(adapter)}, "scale": 0.5}},
        "evaluation": {"prompts": [PROMPT], "imagesPerPrompt": 1},
        **spec,
    }
    head = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothJob", "metadata": {"name": "my-dog"}}
    return DreamBoothJob.model_validate({**head, "spec": value})


class Pool(InlinePool):
    def start(self) -> None: ...


@pytest.fixture(scope="module")
def finished(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """The folder of a complete job, which ran in this process."""
    folder, pool = JobFolder(tmp_path_factory.mktemp("job")), Pool()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ray_cluster", contextlib.nullcontext)
        patch.setattr(runner, "query_workers", lambda _: MACHINE)
        patch.setattr(runner, "check_cores", lambda *_: None)
        prepared = prepare_job(job_of(adapter))
        fewer = prepared.plan.model_copy(
            update={"sampler": prepared.plan.sampler.model_copy(update={"steps": 2}), "sampling_batch_size": 50}
        )
        planned = runner.PreparedJob(
            type(prepared.planned)(**{**vars(prepared.planned), "plan": fewer}), prepared.images, prepared.warnings
        )
        store = str(tmp_path_factory.mktemp("store"))
        results = run_job(planned, folder, store, LineReporter(Console(quiet=True)), pool)  # pyright: ignore[reportArgumentType]
    assert results[TrainerPhase.TRAIN]["steps"] == 0
    assert "run_worker" not in pool.calls
    return folder


def test_the_published_folder_has_the_adapter_and_the_embeddings(finished: JobFolder, adapter: Path) -> None:
    assert load_file(finished.model / IP_ADAPTER_FILE).keys() == load_file(adapter / WEIGHTS_FILE).keys()
    embeds = load_file(finished.model / IMAGE_EMBEDS_FILE)
    assert list(embeds) == ["sks"]
    assert embeds["sks"].shape == (2, 5, 8), "of no image, and of the five images of the subject"
    assert not list(finished.model.glob("*/*.safetensors")), "the base model is not published"
    assert published_bytes(finished.model) == sum(
        (finished.model / name).stat().st_size for name in (IP_ADAPTER_FILE, IMAGE_EMBEDS_FILE)
    )
    assert verify_model(str(finished.root))[1] == []


def test_the_code_in_the_model_card_gives_the_image_of_generate(
    finished: JobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code uses plain diffusers."""
    code = (finished.model / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert "'a dog', ip_adapter_image_embeds=[subjects['sks']]" in code
    monkeypatch.chdir(tmp_path)
    exec(code.replace(", num_inf", ", generator=torch.manual_seed(3), num_inf"), {"torch": torch})
    loaded, _ = open_pipeline(finished.root, "cpu")
    sampler = make_plan({}).sampler.model_copy(update={"steps": 2, "guidance_scale": 3.0})
    (image,) = sample_batch(loaded, SamplingConfig(sampler, 32, "fp32", 4), [ImageRequest("0", "a sks dog", 3)])
    np.testing.assert_allclose(np.asarray(Image.open("image.png"), int), np.asarray(image, int), atol=1)


def test_prompts_without_the_identifier_are_those_of_the_base_model(finished: JobFolder) -> None:
    loaded, _ = open_pipeline(finished.root, "cpu")
    sampler = make_plan({}).sampler.model_copy(update={"steps": 2})
    requests = [ImageRequest("0", "a dog", 1), ImageRequest("1", "a sks dog", 1), ImageRequest("2", "a dog", 2)]
    for scale in (3.0, 1.0):
        config = SamplingConfig(sampler.model_copy(update={"guidance_scale": scale}), 32, "fp32", 4)
        first, subject, second = (np.asarray(image, int) for image in sample_batch(loaded, config, requests))
        base = sample_batch(load_pipeline(WEIGHTS, "fp32", "cpu"), config, [requests[0], requests[2]])
        np.testing.assert_allclose([first, second], [np.asarray(image, int) for image in base], atol=1)
        assert np.abs(subject - first).max() > 1


def test_the_plan_shows_the_adapter_instead_of_a_training(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "query_workers", lambda _: MACHINE)
    monkeypatch.setattr(runner, "check_cores", lambda *_: None)
    planned = prepare_job(job_of(adapter, cluster={"workers": 3})).planned  # no batch has to be split
    shown = dict(rows(planned))
    assert shown["training"] == f"None, IP-Adapter {adapter.name}, ip_adapter.safetensors, scale 0.5, 32 px, fp32"
    assert not {"text encoder", "checkpoints", "ZeRO stage", "memory per process"} & shown.keys()
    assert (planned.plan.steps, planned.plan.batch_size, planned.plan.samples) == (0, 0, 0)
    assert planned.size.trainable == 0


def test_a_model_without_an_own_adapter_needs_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"spec.training.imagePrompt.adapter: is not set.*h94/IP-Adapter"):
        make_plan({"model": {"id": str(tmp_path)}, "training": {"method": "None"}})


@pytest.mark.parametrize("model", ["tiny_model", "tiny_xl_model"])
def test_families_with_adapters(
    request: pytest.FixtureRequest, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base: Path = request.getfixturevalue(model)
    adapter = write_adapter(base, tmp_path / "adapter")
    plan = make_plan({
        "model": {"id": str(base)},
        "training": {"method": "None", "resolution": 32, "imagePrompt": {"adapter": {"id": str(adapter)}}},
    })  # fmt: skip
    folder = JobFolder(tmp_path / "job")
    folder.prepared.mkdir(parents=True)
    for number in range(2):
        Image.fromarray(np.full((32, 32, 3), 90 * number, np.uint8)).save(folder.prepared / f"0-{number:03d}.png")
    monkeypatch.setattr(image_prompts, "work_device", lambda: "cpu")
    image_prompts.encode_image_prompts(plan, folder)
    loaded = load_pipeline(base, "fp32", "cpu", folder.trained)
    config = SamplingConfig(plan.sampler.model_copy(update={"steps": 1}), 32, "fp32", 4)
    requests = [ImageRequest("0", "a dog", 1), ImageRequest("1", "a sks dog", 1)]
    first, second = (np.asarray(image, int) for image in sample_batch(loaded, config, requests))
    assert np.abs(first - second).max() > 0


def test_the_weights_of_an_adapter_on_the_hub_are_copied(
    hub: Hub, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of the Hub has relative symbolic links, which are broken in other folders."""
    hub.serve(adapter)
    plan = make_plan({"training": {"method": "None", "imagePrompt": {"adapter": {"id": "team/model"}}}})
    folder = JobFolder(tmp_path / "job")
    folder.prepared.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder.prepared / "0-000.png")
    monkeypatch.setattr(image_prompts, "work_device", lambda: "cpu")
    image_prompts.encode_image_prompts(plan, folder)
    written = folder.trained / IP_ADAPTER_FILE
    assert not written.is_symlink()
    assert written.stat().st_nlink == 1, "a change of one file must not change the other"
    assert load_file(written).keys() == load_file(adapter / WEIGHTS_FILE).keys()


BROKEN: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "a LoRA": ({"unet.lora.weight": torch.zeros(2, 2)}, "has no tensors image_proj"),
    "of another width": (
        {"image_proj.proj.weight": torch.zeros(8, 2), "ip_adapter.1.to_k_ip.weight": torch.zeros(8, 768)},
        "has keys of 768 inputs, the base model needs 128; set an adapter that was trained for the base model",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_weights_that_are_no_adapter_of_the_model(case: str, tmp_path: Path) -> None:
    tensors, sentence = BROKEN[case]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=sentence):
        check_adapter(tmp_path / "a.safetensors", WEIGHTS)


def test_a_truncated_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(UserError, match="cannot be read"):
        check_adapter(tmp_path / "a.safetensors", WEIGHTS)


def test_all_faults_of_a_folder_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a.bin").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        pinned_adapter(IpAdapter(id=str(tmp_path), weights="models/a.safetensors"))
    text = str(caught.value)
    assert "spec.training.imagePrompt.adapter.weights: 'models/a.safetensors': does not exist" in text
    assert "has no image encoder with safetensors weights in models/image_encoder/" in text


def test_an_adapter_on_the_hub_is_pinned_without_its_weights(hub: Hub, adapter: Path) -> None:
    hub.serve(adapter)
    found = pinned_adapter(IpAdapter(id="team/model"))
    assert found.revision == COMMIT
    assert hub.downloaded == {"image_encoder/config.json"}
    files = adapter_files(found)
    assert files.weights.is_file()
    assert hub.downloaded == {WEIGHTS_FILE, "image_encoder/config.json", "image_encoder/model.safetensors"}
    assert COMMIT in adapter_digest(found)


def test_the_digest_of_a_folder_is_that_of_its_files(adapter: Path, tmp_path: Path) -> None:
    other = write_adapter(WEIGHTS, tmp_path / "other", seed=1)
    digests = [adapter_digest(IpAdapter(id=str(folder))) for folder in (adapter, other, adapter)]
    assert digests[0] == digests[2] != digests[1]
    (other / "image_encoder" / "runs").mkdir()
    (other / "image_encoder" / "pytorch_model.bin").write_bytes(b"not loaded")
    assert adapter_digest(IpAdapter(id=str(other))) == digests[1]


def test_an_encoder_that_would_be_read_from_a_pickle_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "image_encoder").mkdir()
    for name in (WEIGHTS_FILE, "image_encoder/config.json", "image_encoder/pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "image_encoder" / "diffusion_pytorch_model.safetensors").write_bytes(b"")  # of no use to transformers
    with pytest.raises(UserError, match="has no image encoder with safetensors weights"):
        pinned_adapter(IpAdapter(id=str(tmp_path)))


@pytest.mark.parametrize(
    ("prompt", "subjects", "text"),
    [
        ("a sks dog", ("sks",), "a dog"),
        ("sks dog asleep", ("sks",), "dog asleep"),
        ("photo of sks, a dog", ("sks",), "photo of, a dog"),
        ("a dog with masks", (), "a dog with masks"),
        ("a zwx cat", ("zwx",), "a cat"),
        ("a zwx cat and a sks dog", ("sks", "zwx"), "a cat and a dog"),
    ],
)
def test_the_identifier_stands_for_the_images(prompt: str, subjects: tuple[str, ...], text: str) -> None:
    images = SubjectImages(dict.fromkeys(("sks", "zwx"), torch.zeros(2, 1, 4)), 1.0)
    assert (images.subjects_of(prompt), images.text_of(prompt)) == (subjects, text)


def test_a_prompt_with_two_identifiers_has_the_images_of_both() -> None:
    images = SubjectImages({"sks": torch.ones(2, 3, 4), "zwx": torch.zeros(2, 2, 4)}, 0.5)
    pipeline, scales = SimpleNamespace(device="cpu", dtype=torch.float32), list[float]()
    pipeline.set_ip_adapter_scale = scales.append
    for subjects, count, total in ((("sks", "zwx"), 5, 12.0), (("zwx",), 2, 0.0), ((), 3, 12.0)):
        (guided,) = images.use(pipeline, subjects, guided=True)["ip_adapter_image_embeds"]
        (only,) = images.use(pipeline, subjects, guided=False)["ip_adapter_image_embeds"]
        assert (guided.shape, only.shape, only.sum().item()) == ((2, count, 4), (1, count, 4), total)
    assert scales == [0.5, 0.5, 0.5, 0.5, 0.0, 0.0]


def test_a_word_is_removed_but_not_parts_of_words() -> None:
    assert without_word("masks and sks and skss", "sks") == "masks and and skss"


def test_a_benchmark_gives_each_method_the_settings_that_apply_to_it(tmp_path: Path) -> None:
    from dreambooth_trainer.benchmark.dataset import DatasetSubject

    (tmp_path / "dog").mkdir()
    subject = DatasetSubject("dog", "dog", tmp_path / "dog", (PROMPT,))
    sets = (
        *("spec.training.steps=2", "training.imagePrompt.scale=0.5", "priorPreservation.numClassImages=4"),
        "priorPreservation.classPrompt=a puppy",
    )
    runs = make_runs([(subject,)], make_variants(["Full", "None"]), 1, "builtin:sprites", sets, tmp_path)
    full, none = (run.job.spec for run in runs)
    assert (full.training.steps, full.prior_preservation.num_class_images, full.training.image_prompt) == (2, 4, None)
    assert none.training.steps is None
    assert none.training.image_prompt is not None
    assert none.training.image_prompt.scale == 0.5
    assert [spec.prior_preservation.class_prompt for spec in (full, none)] == ["a puppy", "a puppy"]
    with pytest.raises(UserError, match="does not apply to method Full"):
        make_runs([(subject,)], make_variants(["Full"]), 1, "builtin:sprites", sets[1:2], tmp_path)
    assert make_job((subject,), Variant(method="None"), 0, "builtin:sprites", ()).spec.output.formats is None


def test_a_run_is_bound_to_the_weights_of_its_adapter(tmp_path: Path, adapter: Path) -> None:
    from dreambooth_trainer.benchmark.dataset import DatasetSubject

    (tmp_path / "dog").mkdir()
    subject, copy = DatasetSubject("dog", "dog", tmp_path / "dog", (PROMPT,)), tmp_path / "adapter"
    shutil.copytree(adapter, copy)

    def keys() -> list[str]:
        sets = (f"training.imagePrompt.adapter.id={copy}",)
        runs = make_runs([(subject,)], make_variants(["LoRA", "None"]), 1, "builtin:sprites", sets, tmp_path)
        return [run.key() for run in runs]

    before = keys()
    save_file({"other": torch.zeros(1)}, copy / WEIGHTS_FILE)
    after = keys()
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)
