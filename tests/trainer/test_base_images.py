"""Images of the base model in the evaluation: shared between jobs, and few without scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inline_pool import InlinePool
from PIL import Image

from dreambooth_api.job import DreamBoothJob
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.phases.base import Context
from dreambooth_trainer.phases.evaluate import base_image_store, evaluation_store, generate_base_images
from dreambooth_trainer.planning.plan import SamplerSettings, fill_defaults
from dreambooth_trainer.sampling.evaluation_set import MODELS, image_requests
from dreambooth_trainer.store.folder import JobFolder

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = ["a {} on the beach", "a {} in the snow"]


def make_context(model: Path, folder: Path, namespace: str = "team-a", **evaluation: object) -> Context:
    job = DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": folder.name, "namespace": namespace},
            "spec": {
                "model": {"id": str(model)},
                "subject": {"class": "dog", "images": {"uri": "x"}},
                "training": {"resolution": 32},
                "evaluation": {"enabled": False, **evaluation},
            },
        }
    )
    plan = fill_defaults(job, image_count=4, identifiers=["sks"], zero_stage=1, precision="fp32")
    plan = plan.model_copy(update={"sampler": SamplerSettings(steps=1, guidance_scale=1)})
    pool: Any = InlinePool()
    return Context(plan, JobFolder(folder), (), str(folder.parent / "store"), {TrainerPhase.TRAIN: folder.name}, pool)


def generate(context: Context) -> tuple[int, list[int]]:
    """Number of generated batches, and the reported progress."""
    done: list[int] = []
    requests = image_requests(context.plan, "before")
    local = evaluation_store(context, "before")
    generate_base_images(context, local, requests, done.append)
    assert {request.name for request in requests} <= local.names()
    pool: Any = context.pool
    return len(pool.calls), done


def test_a_second_job_copies_the_images_of_the_base_model(tiny_model: Path, tmp_path: Path) -> None:
    first, second = (make_context(tiny_model, tmp_path / name, prompts=PROMPTS) for name in ("a", "b"))
    batches, done = generate(first)
    assert batches > 0
    assert done == sorted(done)
    assert generate(second) == (0, [10])
    assert generate(make_context(tiny_model, tmp_path / "c", namespace="team-b", prompts=PROMPTS))[0] == batches
    more = make_context(tiny_model, tmp_path / "d", prompts=[*PROMPTS, "a red {}"])
    assert generate(more)[0] == 1, "only the new prompt"


@pytest.mark.parametrize("content", [b"", b"no image", "cut", "other size"])
def test_damaged_and_foreign_files_are_generated_again(tiny_model: Path, tmp_path: Path, content: bytes | str) -> None:
    first, second = (make_context(tiny_model, tmp_path / name, prompts=PROMPTS) for name in ("a", "b"))
    generate(first)
    shared = Path(base_image_store(first).url)
    damaged = sorted(shared.glob("*.png"))[3]
    intact = damaged.read_bytes()
    if content == "other size":
        Image.new("RGB", (64, 64)).save(damaged)
    else:
        damaged.write_bytes(intact[:-100] if content == "cut" else bytes(content))  # pyright: ignore[reportArgumentType]
    assert generate(second)[0] == 1
    local = Path(evaluation_store(second, "before").url)
    assert damaged.read_bytes() == intact == (local / damaged.name).read_bytes()


def test_a_job_without_scores_generates_a_handful_of_images(tmp_path: Path) -> None:
    disabled, enabled = (make_context(tmp_path, tmp_path / "a", enabled=enabled).plan for enabled in (False, True))
    assert [len(image_requests(disabled, model)) for model in MODELS] == [12, 12]
    assert [len(image_requests(enabled, model)) for model in MODELS] == [65, 140]
    assert {r.name for r in image_requests(disabled, "after")} < {r.name for r in image_requests(enabled, "after")}
