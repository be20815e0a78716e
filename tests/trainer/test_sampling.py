"""Image generation on workers: exact counts after failures, and sharing of class images between jobs."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from PIL import Image

from dreambooth_api.environment import STORE_KEY
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.model import BaseModelRef
from dreambooth_trainer.cluster.pool import WorkerPool
from dreambooth_trainer.phases.base import Context
from dreambooth_trainer.phases.class_images import CLASS_IMAGES, class_image_key, class_image_store
from dreambooth_trainer.planning.plan import SamplerSettings, fill_defaults
from dreambooth_trainer.sampling import generate
from dreambooth_trainer.sampling.generate import GenerationResult, generate_batch, generate_images
from dreambooth_trainer.sampling.pipeline import (
    ImageRequest,
    LoadedPipeline,
    SamplingConfig,
    load_pipeline,
    noise_seed,
    sample_batch,
)
from dreambooth_trainer.store.folder import JobFolder, atomic_write
from dreambooth_trainer.store.image_store import ImageStore

pytestmark = pytest.mark.usefixtures("ray_here")
CONFIG = SamplingConfig(SamplerSettings(steps=2, guidance_scale=2.0), resolution=32, precision="fp32", batch_size=4)


@pytest.fixture(scope="module")
def pool(ray_here: None) -> Iterator[WorkerPool]:
    made = WorkerPool(2)
    yield made
    made.stop()


def image_requests(count: int) -> list[ImageRequest]:
    return [ImageRequest(f"{i:06d}", "a dog", noise_seed("test", i)) for i in range(count)]


def test_existing_images_are_not_generated_again(pool: WorkerPool, tiny_model: Path, tmp_path: Path) -> None:
    model, store = BaseModelRef(id=str(tiny_model)), ImageStore(str(tmp_path / "class-images"))
    seen: list[int] = []
    assert generate_images(pool, model, CONFIG, store, image_requests(6), on_progress=seen.append) == GenerationResult(
        reused=0, generated=6
    )
    assert seen[0] == 0
    assert seen[-1] == 6
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "class-images").glob("*.png")}
    assert generate_images(pool, model, CONFIG, store, image_requests(9)) == GenerationResult(reused=6, generated=3)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in times.items())
    assert len(store.names()) == 9
    assert generate_images(pool, model, CONFIG, store, image_requests(4)) == GenerationResult(reused=4, generated=0)


def test_all_images_are_generated_after_a_worker_is_killed(pool: WorkerPool, tiny_model: Path, tmp_path: Path) -> None:
    slow = SamplingConfig(SamplerSettings(steps=60, guidance_scale=2.0), resolution=32, precision="fp32", batch_size=4)
    store, killed = ImageStore(str(tmp_path / "class-images")), []

    def kill_one(count: int) -> None:
        if count and not killed:
            worker = next(
                p for p in psutil.process_iter(["cmdline"]) if "ray::PoolWorker" in " ".join(p.info["cmdline"] or [])
            )
            worker.kill()
            killed.append(worker.pid)

    result = generate_images(pool, BaseModelRef(id=str(tiny_model)), slow, store, image_requests(40), kill_one)
    assert killed
    assert result == GenerationResult(reused=0, generated=40)
    assert store.names() == {d.name for d in image_requests(40)}
    for name in store.names():
        assert store.get(name).size == (32, 32)


def test_a_pool_keeps_its_processes_and_reserves_no_cpus(pool: WorkerPool) -> None:
    first = pool.call(os.getpid)
    pids = {actor: ray.get(actor.run.remote(os.getpid)) for actor in pool.start()}
    assert first in pids.values()
    assert {ray.get(actor.run.remote(os.getpid)) for actor in pool.start()} == set(pids.values())
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "training would wait for the CPUs"
        time.sleep(0.2)


def test_only_one_model_is_cached(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[LoadedPipeline]] = []

    def load(folder: Path, precision: str, device: str, **given: Any) -> LoadedPipeline:
        gc.collect()
        assert not [earlier for earlier in loaded if earlier()], "a GPU may not have memory for two"
        pipeline = load_pipeline(folder, precision, device, **given)
        loaded.append(weakref.ref(pipeline))
        return pipeline

    monkeypatch.setattr(generate, "load_pipeline", load)
    other = shutil.copytree(tiny_model, tmp_path / "other")
    for number, folder in enumerate((tiny_model, tiny_model, other, other, tiny_model)):
        generate_batch(BaseModelRef(id=str(folder)), CONFIG, ImageStore(str(tmp_path / str(number))), image_requests(1))
    assert len(loaded) == 3


def test_a_full_disk_is_reported_and_leaves_no_partial_image(small_disk: Path) -> None:
    store = ImageStore(str(small_disk))
    noise = Image.frombytes("RGB", (400, 400), os.urandom(480_000))
    with pytest.raises(OSError, match=rf"No space left on device: '{small_disk}/big.png'"):
        store.put("big", noise)
    assert not store.names()
    with pytest.raises(OSError, match=rf"No space left on device: '{small_disk}/note'"):
        atomic_write(small_disk / "note", os.urandom(480_000))


def test_an_image_depends_on_its_seed_and_not_on_its_batch(tiny_model: Path) -> None:
    import numpy as np

    pipeline = load_pipeline(tiny_model, "fp32", "cpu")
    together = sample_batch(pipeline, CONFIG, image_requests(3))
    alone = sample_batch(pipeline, CONFIG, image_requests(3)[1:2])[0]
    difference = np.abs(np.asarray(together[1], int) - np.asarray(alone, int))
    # Another batch size may change rounding by one gray level; other noise would differ by tens of levels.
    assert difference.max() <= 1
    assert np.abs(np.asarray(together[0], int) - np.asarray(alone, int)).mean() > 2


def make_context(
    model: Path, folder: Path, store: Path, count: int, pool: WorkerPool | None = None, **preservation: object
) -> Context:
    job = DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": folder.name, "namespace": "team-a"},
            "spec": {
                "model": {"id": str(model)},
                "subject": {"class": "dog", "images": {"uri": "x"}},
                "training": {"resolution": 32},
                "priorPreservation": {"numClassImages": count, "sampler": {"steps": 2}, **preservation},
            },
        }
    )
    plan = fill_defaults(job, image_count=4, identifiers=["sks"], zero_stage=1, precision="fp32")
    return Context(plan, JobFolder(folder), (), str(store), {}, pool or WorkerPool(1))


class Silent:
    def total(self, count: int) -> None: ...

    def done(self, count: int, **facts: object) -> None: ...


def test_concurrent_jobs_generate_shared_class_images_once(pool: WorkerPool, tiny_model: Path, tmp_path: Path) -> None:
    contexts = [
        make_context(tiny_model, tmp_path / name, tmp_path / "store", count, pool)
        for name, count in (("a", 12), ("b", 20))
    ]
    results: list[dict] = []
    threads = [threading.Thread(target=lambda c=c: results.append(CLASS_IMAGES.run(c, Silent()))) for c in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(result["generated"] for result in results) == 20
    assert {result["wanted"] for result in results} == {12, 20}
    assert len(class_image_store(contexts[0], "a dog").names()) == 20


def test_class_images_are_stored_in_the_scope_of_sharing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def url(sharing: str) -> str:
        context = make_context(tiny_model, tmp_path / "a", Path("/store"), 3, sharing=sharing)
        return class_image_store(context, "a dog").url

    monkeypatch.delenv(STORE_KEY, raising=False)
    assert url("Cluster") == url("Namespace"), "without a key"
    monkeypatch.setenv(STORE_KEY, "key")
    assert url("Cluster").startswith("/store/cluster/")
    assert url("Namespace").startswith("/store/namespaces/team-a/class-images/")
    assert url("Job").startswith(str(tmp_path / "a"))


@pytest.mark.parametrize(
    "change",
    [
        {"classPrompt": "a photo of a dog"},
        {"sampler": {"steps": 3}},
        {"sampler": {"steps": 2, "scheduler": "DPMSolverMultistep"}},
    ],
)
def test_other_sampling_settings_give_another_key(tiny_model: Path, tmp_path: Path, change: dict) -> None:
    contexts = [make_context(tiny_model, tmp_path / "a", tmp_path, 3, **preservation) for preservation in ({}, change)]
    contexts.append(make_context(tiny_model, tmp_path / "b", tmp_path, 9))
    first, changed, same = (class_image_key(context, *context.plan.class_image_counts) for context in contexts)
    assert first != changed
    assert first == same


def test_a_batch_is_generated_into_the_store(tiny_model: Path, tmp_path: Path) -> None:
    store = ImageStore(str(tmp_path))
    assert generate_batch(BaseModelRef(id=str(tiny_model)), CONFIG, store, image_requests(2)) == 2
    assert isinstance(store.get("000001"), Image.Image)
