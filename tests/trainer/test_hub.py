"""Models from a hub: what is fetched of them, and which of its failures a user can do something about."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from hubserver import COMMIT, Hub, run_hub
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

import dreambooth_trainer.models.hub
from dreambooth_api.errors import TransientError, UserError
from dreambooth_api.job import BaseModelRef
from dreambooth_trainer.families.registry import family_name, local_folder, open_family, pinned, weights_digest
from dreambooth_trainer.metrics.pretrained import load_dino
from dreambooth_trainer.planning.model_facts import model_size

MODEL = BaseModelRef(id="team/model")
LOADED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process uses, with a cache of its own and without pauses between tries."""
    from huggingface_hub import constants

    with run_hub() as (hub, url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        dreambooth_trainer.models.hub._fetch_commit.cache_clear()
        yield hub
    dreambooth_trainer.models.hub._fetch_commit.cache_clear()


@pytest.fixture
def crowded(tiny_model: Path, tmp_path: Path) -> Path:
    """A model as hub repositories hold it: other formats beside the weights, and a safety checker."""
    folder = shutil.copytree(tiny_model, tmp_path / "crowded")
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        weights = folder / part / f"{stem}.safetensors"
        for name in (f"{stem}.fp16.safetensors", f"{stem}.non_ema.safetensors", f"{stem}.bin", "flax_model.msgpack"):
            shutil.copy(weights, folder / part / name)
        shutil.copy(weights, folder / part / f"{stem}.fp16-00001-of-00001.safetensors")
        (folder / part / f"{stem}.safetensors.index.fp16.json").write_text('{"weight_map": {}}')
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    shutil.copy(folder / "text_encoder" / "model.safetensors", folder / "safety_checker")
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "v1-5-pruned.safetensors")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_only_what_is_loaded_is_fetched(hub: Hub, crowded: Path, tiny_model: Path) -> None:
    hub.serve(crowded)
    folder = local_folder(MODEL)
    assert hub.downloaded == LOADED
    assert open_family(folder).pipeline(folder, torch.float32).unet.dtype == torch.float32
    assert open_family(folder).load(folder, with_vae=True).vae is not None
    assert weights_digest(folder) == weights_digest(tiny_model)


def test_a_commit_in_the_cache_needs_no_hub(hub: Hub, tiny_model: Path) -> None:
    hub.serve(tiny_model)
    model = pinned(MODEL)
    assert model.revision == COMMIT
    hub.requests.clear()
    dreambooth_trainer.models.hub._fetch_commit.cache_clear()  # another process
    assert local_folder(model).name == COMMIT
    assert hub.requests == []


def test_a_model_of_another_family_is_refused_before_its_weights_are_fetched(hub: Hub, crowded: Path) -> None:
    (crowded / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    hub.serve(crowded)
    with pytest.raises(
        UserError, match=r"spec\.model\.id: 'team/model': is a FluxPipeline, which is not supported; use a"
    ):
        local_folder(MODEL)
    assert hub.downloaded == {"model_index.json"}


def test_a_repository_that_is_no_pipeline_is_refused(hub: Hub) -> None:
    hub.files = {"config.json": b"{}", "model.safetensors": b"x" * 1000}
    with pytest.raises(UserError, match=r"'team/model': is on the hub, but has no model_index\.json"):
        local_folder(MODEL)
    assert hub.downloaded == set()


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        ((401, ""), "is not on the hub, or is private; check the id; for a private model set HF_TOKEN"),
        ((401, "RepoNotFound"), "is not on the hub, or is private; check the id; for a private model set HF_TOKEN"),
        ((404, "RepoNotFound"), "is not on the hub, or is private; check the id; for a private model set HF_TOKEN"),
        ((403, ""), "is not on the hub, or is private; check the id; for a private model set HF_TOKEN"),
        ((403, "GatedRepo"), "is open only to those who accept its license; accept its license at http"),
    ],
)
def test_what_a_user_can_mend_is_a_users_error(hub: Hub, refusal: tuple[int, str], sentence: str) -> None:
    hub.refusal = refusal
    with pytest.raises(UserError, match=rf"spec\.model\.id: 'team/model': {sentence}"):
        local_folder(MODEL)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_outage_passes(hub: Hub, tiny_model: Path, status: int) -> None:
    hub.serve(tiny_model)
    hub.refusal = (status, "")
    for load in (lambda: local_folder(MODEL), lambda: load_dino("team/model", "cpu")):
        with pytest.raises(TransientError, match=rf"'team/model': cannot be fetched from http.* now .*{status}"):
            load()
    hub.refusal = None
    assert local_folder(MODEL).name == COMMIT


def test_a_file_that_breaks_off_is_fetched_again(hub: Hub, tiny_model: Path) -> None:
    hub.serve(tiny_model)
    hub.truncated = "unet/diffusion_pytorch_model.safetensors"
    with pytest.raises(TransientError, match="'team/model': cannot be fetched from http"):
        local_folder(MODEL)
    hub.truncated = ""
    assert weights_digest(local_folder(MODEL)) == weights_digest(tiny_model)


def test_a_hub_that_cannot_be_reached_passes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        TransientError, match=r"spec\.model\.id: 'team/model': cannot be fetched from http://127.0.0.1:9"
    ):
        local_folder(MODEL)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (MODEL.model_copy(update={"revision": "v9"}), "'team/model': has no revision 'v9' on the hub; write a commit"),
        (MODEL.model_copy(update={"revision": "d" * 40}), f"'team/model': has no revision '{'d' * 40}' on the hub"),
        (
            BaseModelRef(id="/nowhere/model"),
            "'/nowhere/model': is neither a folder here nor an id on the hub",
        ),
        (BaseModelRef(id="team/other"), "'team/other': is not on the hub, or is private"),
    ],
)
def test_a_wrong_name_is_a_users_error(hub: Hub, tiny_model: Path, model: BaseModelRef, sentence: str) -> None:
    hub.serve(tiny_model)
    with pytest.raises(UserError, match=rf"spec\.model\.id: {sentence}"):
        local_folder(model)


def test_a_user_who_wants_no_network_is_told_what_is_missing(
    hub: Hub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.serve(tiny_model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="is not in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset"):
        local_folder(MODEL)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    local_folder(MODEL)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert local_folder(MODEL).name == COMMIT


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A random ViT as hub repositories hold it."""
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "pytorch_model.bin").write_bytes(b"x" * 1000)
    return tmp_path / "vit"


def test_an_encoder_is_fetched_without_its_other_formats(hub: Hub, encoder: Path) -> None:
    hub.serve(encoder)
    assert load_dino("team/model", "cpu").name == "team/model"
    assert hub.downloaded == {"config.json", "model.safetensors"}


def test_an_encoder_is_taken_from_the_bots_pull_request(hub: Hub, encoder: Path) -> None:
    hub.serve(encoder)
    hub.converted = dict(hub.files)
    del hub.files["model.safetensors"]
    assert load_dino("team/model", "cpu").name == "team/model"
    hub.converted = {}
    with pytest.raises(UserError, match="no ViTModel with safetensors weights"):
        load_dino("team/model", "cpu")


def test_other_formats_in_a_folder_are_neither_hashed_nor_counted_nor_published(
    crowded: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert weights_digest(crowded) == weights_digest(tiny_model)
    sizes = [model_size(f, resolution=32, train_text_encoder=True, lora_rank=None) for f in (crowded, tiny_model)]
    assert sizes[0] == sizes[1]
    for folder, name in ((crowded, "a"), (tiny_model, "b")):
        open_family(folder).save_single_file(folder, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_hashed_is_what_is_loaded(crowded: Path, tiny_model: Path) -> None:
    ours, plain = (open_family(f).pipeline(f, torch.float32) for f in (crowded, tiny_model))
    for part in ("unet", "vae", "text_encoder"):
        for name, tensor in getattr(plain, part).state_dict().items():
            assert torch.equal(getattr(ours, part).state_dict()[name], tensor)


@pytest.mark.parametrize("where", ["hub", "folder"])
def test_a_model_in_pickles_only_is_refused(hub: Hub, crowded: Path, where: str) -> None:
    for path in (crowded / "unet").glob("*.safetensors"):
        path.unlink()
    hub.serve(crowded)
    with pytest.raises(UserError, match="has no safetensors weights in unet; other formats can contain code; save the"):
        family_name(local_folder(MODEL if where == "hub" else BaseModelRef(id=str(crowded))))
    assert hub.downloaded <= {"model_index.json"}


def test_of_shards_those_count_that_the_index_names(tiny_model: Path, tmp_path: Path) -> None:
    sharded = shutil.copytree(tiny_model, tmp_path / "sharded")
    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet")
    shutil.rmtree(sharded / "unet")
    unet.save_pretrained(sharded / "unet", max_shard_size="50KB")
    assert len(list((sharded / "unet").glob("*.safetensors"))) > 1
    # What an earlier save has left.
    save_file({"x": torch.zeros(1000)}, sharded / "unet" / "diffusion_pytorch_model-00001-of-00099.safetensors")
    save_file({"x": torch.zeros(1000)}, sharded / "unet" / "diffusion_pytorch_model.safetensors")
    sizes = [model_size(f, resolution=32, train_text_encoder=True, lora_rank=None) for f in (sharded, tiny_model)]
    assert sizes[0] == sizes[1]
    open_family(sharded).save_single_file(sharded, tmp_path / "file")
    open_family(tiny_model).save_single_file(tiny_model, tmp_path / "plain")
    ours, plain = load_file(tmp_path / "file"), load_file(tmp_path / "plain")
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    read = open_family(sharded).load(sharded, with_vae=False).denoiser.state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in unet.state_dict().items())


def test_the_command_ends_with_one_in_an_outage(tmp_path: Path) -> None:
    job = {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "DreamBoothJob",
        "metadata": {"name": "pink-dog"},
        "spec": {
            "subject": {"class": "dog", "images": {"uri": "builtin:sprites/dog-pink-blue"}},
            "model": {"id": "a/b"},
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        hub = {
            "HF_ENDPOINT": f"http://127.0.0.1:{closed.getsockname()[1]}",
            "HF_HUB_OFFLINE": "",
            "HF_HOME": str(tmp_path),
        }
        done = subprocess.run(
            [sys.executable, "-m", "dreambooth_trainer", "plan", "job.yaml"],
            cwd=tmp_path, env={**os.environ, **hub}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "'a/b': cannot be fetched from" in done.stderr
