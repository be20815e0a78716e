"""Latents of class images: encoded once for all jobs, on all workers, and not believed unchecked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from inline_pool import InlinePool
from PIL import Image
from safetensors.torch import save_file
from test_base_images import make_context

from dreambooth_api.errors import TransientError
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.phases.base import Context
from dreambooth_trainer.phases.class_images import class_image_names, class_image_store, generate_missing
from dreambooth_trainer.phases.encode import ClassImages, class_images_of, encode, encode_shared
from dreambooth_trainer.planning.plan import SamplerSettings
from dreambooth_trainer.report.collect import _class_images, _FinishedJob
from dreambooth_trainer.sampling import encode_images
from dreambooth_trainer.sampling.encode_images import latent_store
from dreambooth_trainer.store.latent_store import LatentStore
from dreambooth_trainer.training.cache import load_data

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 5


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Devices of the autoencoders that were used, one for each encoded image."""
    used: list[str] = []
    cached = encode_images.cached_image_encoder

    def record(folder: Path, device: str) -> Any:
        used.append(device)
        return cached(folder, device)

    record.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
    monkeypatch.setattr(encode_images, "cached_image_encoder", record)
    return used


def context_of(model: Path, folder: Path, workers: int = 2) -> Context:
    context = make_context(model, folder)
    fast = SamplerSettings(steps=1, guidance_scale=1)
    pool: Any = InlinePool(workers)
    plan = context.plan.model_copy(update={"num_class_images": COUNT, "class_image_sampler": fast})
    return Context(plan, context.folder, (), context.store, {}, pool)


def run(context: Context) -> list[int]:
    """Generate and encode the class images; returns the progress of encoding."""
    class_images, done = class_images_of(context), list[int]()
    generate_missing(context, "a dog", class_images[0].names, lambda *_, **__: None)
    encode_shared(context, class_images, done.append)
    return done


def test_a_second_job_neither_generates_nor_encodes(tiny_model: Path, tmp_path: Path, encoded: list[str]) -> None:
    first, second = (context_of(tiny_model, tmp_path / name) for name in ("a", "b"))
    assert run(first) == [2, 4, 5], "in batches for two workers"
    assert len(encoded) == COUNT
    run(second)
    assert len(encoded) == COUNT
    pool: Any = second.pool
    assert set(pool.calls) == {"encode_batch"}


def test_stored_latents_are_those_of_the_images(tiny_model: Path, tmp_path: Path) -> None:
    context = context_of(tiny_model, tmp_path / "a")
    run(context)
    family, images = open_family(tiny_model), class_image_store(context, "a dog")
    stage = family.open(tiny_model, family.image_encoders)
    for name in class_image_names(context)["a dog"]:
        found = latent_store(images).read(name, family.image_shapes(tiny_model, 32))
        expected = stage.encode_images([images.get(name)])
        torch.testing.assert_close(found, {key: tensor[0] for key, tensor in expected.items()})


@pytest.mark.parametrize("damage", ["empty", "cut", "other shape", "other names", "not finite", "missing"])
def test_damaged_and_foreign_latents_are_computed_again(
    tiny_model: Path, tmp_path: Path, encoded: list[str], damage: str
) -> None:
    context = context_of(tiny_model, tmp_path / "a")
    run(context)
    file = Path(latent_store(class_image_store(context, "a dog")).url) / "000002.safetensors"
    intact = file.read_bytes()
    latent = torch.zeros(4, 8, 8)
    foreign = {
        "other shape": {"latent_mean": torch.zeros(4, 4, 4), "latent_std": torch.zeros(4, 4, 4)},
        "other names": {"latent_mean": latent},
        "not finite": {"latent_mean": latent, "latent_std": latent / 0},
    }
    if damage == "missing":
        file.unlink()
    elif damage in foreign:
        save_file(foreign[damage], file)
    else:
        file.write_bytes(b"" if damage == "empty" else intact[:-50])
    run(context)
    assert len(encoded) == COUNT + 1
    assert file.read_bytes() == intact


def test_a_damaged_image_without_latents_is_generated_again(tiny_model: Path, tmp_path: Path) -> None:
    context = context_of(tiny_model, tmp_path / "a")
    class_images = class_images_of(context)
    store = class_images[0].store
    generate_missing(context, "a dog", class_images[0].names, lambda *_, **__: None)
    file = Path(store.url) / "000003.png"
    intact = file.read_bytes()
    file.write_bytes(intact[:-30])
    Image.new("RGB", (8, 8)).save(Path(store.url) / "000001.png")
    encode_shared(context, class_images, lambda _: None)
    assert file.read_bytes() == intact
    assert store.get("000001").size == (32, 32)


def test_the_cache_has_the_latents_of_the_requested_images(tiny_model: Path, tmp_path: Path) -> None:
    context = context_of(tiny_model, tmp_path / "a")
    run(context)
    context.folder.prepared.mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(context.folder.prepared / "000.png")
    names, store = class_image_names(context)["a dog"][:3], class_image_store(context, "a dog")
    encode(context.plan, context.folder, [["a sks dog"]], [1], [ClassImages("a dog", store, names)])
    data = load_data(context.folder.latents)
    assert data.class_images is not None
    means, shapes = data.class_images.images["latent_mean"], {"latent_mean": (4, 8, 8), "latent_std": (4, 8, 8)}
    assert means.shape == (3, 4, 8, 8)
    for index, name in enumerate(names):
        found = latent_store(store).read(name, shapes)
        assert found is not None
        assert torch.equal(means[index], found["latent_mean"])
    assert sorted(path.name for path in context.folder.work.iterdir()) == ["latents.safetensors", "prepared"]
    with pytest.raises(TransientError, match="was deleted or damaged while it was used"):
        LatentStore(str(tmp_path)).stack(["0"], shapes, tmp_path)


def test_the_report_skips_damaged_class_images(tiny_model: Path, tmp_path: Path) -> None:
    context = context_of(tiny_model, tmp_path / "a")
    run(context)
    store = class_image_store(context, "a dog")
    (Path(store.url) / "000000.png").write_bytes(b"")
    (Path(store.url) / "..png").write_bytes(b"not from this job")
    record = {"stores": {"a dog": store.url}, "wanted": COUNT}
    job = _FinishedJob(context.folder, context.plan, {TrainerPhase.CLASS_IMAGES: record})
    _, images, wanted = _class_images(job, "a dog")
    assert (len(images), wanted) == (COUNT - 1, (COUNT, 0))
    assert (Path(store.url) / "..png").exists()
