"""Downloads from a Hub: the files that are downloaded, and the conversion of errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from hubserver import COMMIT, PULL_REQUEST, Failure, Hub, Repository
from safetensors.torch import load_file, save_file

import dreambooth_trainer.models.hub
from dreambooth_api.errors import TransientError, UserError
from dreambooth_api.model import BaseModelRef
from dreambooth_trainer.families.registry import (
    base_digest,
    config_folder,
    local_folder,
    open_family,
    pinned,
    weights_digest,
)
from dreambooth_trainer.metrics.encoder_files import CLIP, DINO, pinned_commit
from dreambooth_trainer.metrics.pretrained import load_dino
from dreambooth_trainer.models.files import model_files

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


def endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def test_only_loaded_files_are_downloaded(hub: Hub, multi_format_model: Path, tiny_model: Path) -> None:
    hub.serve(multi_format_model)
    folder = local_folder(MODEL)
    assert hub.downloaded == LOADED
    assert open_family(folder).pipeline(folder, torch.float32).unet.dtype == torch.float32
    assert open_family(folder).open(folder, ["vae"]).modules.keys() == {"vae"}
    assert weights_digest(folder) == weights_digest(tiny_model)


def test_a_cached_commit_needs_no_request(hub: Hub, tiny_model: Path) -> None:
    hub.serve(tiny_model)
    model = pinned(MODEL)
    assert model.revision == COMMIT
    assert hub.downloaded == {"model_index.json"}
    local_folder(model)
    hub.requests.clear()
    dreambooth_trainer.models.hub._fetch_commit.cache_clear()  # another process
    assert local_folder(model).name == COMMIT
    assert hub.requests == []


def test_an_unsupported_family_is_rejected_before_weights_are_downloaded(hub: Hub, multi_format_model: Path) -> None:
    (multi_format_model / "model_index.json").write_text('{"_class_name": "PixArtPipeline"}')
    hub.serve(multi_format_model)
    with pytest.raises(
        UserError, match=r"spec\.model\.id: 'team/model': is a PixArtPipeline, which is not supported; use a"
    ):
        local_folder(MODEL)
    assert hub.downloaded == {"model_index.json"}


def test_a_repository_without_a_pipeline_is_rejected(hub: Hub) -> None:
    hub.model.files = {"config.json": b"{}", "model.safetensors": b"x" * 1000}
    with pytest.raises(UserError, match=r"'team/model': has no model_index\.json on the Hub"):
        local_folder(MODEL)
    assert hub.downloaded == set()


ON_A_CLUSTER = "on a cluster, in the Secret of the runtime's storage.credentialsSecret"
NOT_FOUND = (
    "was not found, neither as a local folder nor on the Hub; check the ID; for a private model, set HF_TOKEN "
    f"({ON_A_CLUSTER})"
)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (Failure(401), NOT_FOUND),
        (Failure(401, "RepoNotFound"), NOT_FOUND),
        (Failure(404, "RepoNotFound"), NOT_FOUND),
        (
            Failure(401, message="Invalid credentials in Authorization header"),
            "the Hub rejects the access token: Invalid credentials in Authorization header; set HF_TOKEN to a valid "
            f"token of URL/settings/tokens ({ON_A_CLUSTER}), or unset it",
        ),
        (
            Failure(403, message="Your token lacks\x1b[31m a scope"),
            "the Hub denies access: Your token lacks a scope; set HF_TOKEN to a token that may read this model "
            f"({ON_A_CLUSTER})",
        ),
    ],
    ids=["401", "401 not found", "404", "invalid token", "403"],
)
def test_errors_that_a_user_can_fix_are_user_errors(hub: Hub, failure: Failure, message: str) -> None:
    hub.failure = failure
    with pytest.raises(UserError) as caught:
        local_folder(MODEL)
    assert str(caught.value) == f"spec.model.id: 'team/model': {message.replace('URL', endpoint())}"
    assert len(hub.requests) == 1, "not retried"


def test_a_missing_model_behind_a_redirecting_mirror_is_a_user_error(hub: Hub) -> None:
    other_host = endpoint().replace("127.0.0.1", "localhost")
    hub.failures = [Failure(302, headers={"Location": f"{other_host}/api/models/team/missing"})]
    with pytest.raises(UserError, match="was not found, neither as a local folder nor on the Hub"):
        local_folder(MODEL)


def test_a_disabled_model_is_a_user_error(hub: Hub) -> None:
    hub.failure = Failure(403, message="Access to this resource is disabled.")
    with pytest.raises(UserError, match=r"'team/model': is disabled on the Hub; use another model$"):
        local_folder(MODEL)


def test_a_gated_model_is_a_user_error_that_names_its_license(hub: Hub, tiny_model: Path) -> None:
    repository = hub.serve(tiny_model)
    repository.gated, repository.card = True, {"license": "other", "license_name": "community-license"}
    with pytest.raises(UserError) as caught:
        pinned(MODEL)
    assert str(caught.value) == (
        "spec.model.id: 'team/model': is a gated model (license community-license); accept its license at "
        f"{endpoint()}/team/model, and set HF_TOKEN to a token of that account ({ON_A_CLUSTER})"
    )


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_outage_is_a_transient_error(hub: Hub, tiny_model: Path, status: int) -> None:
    hub.serve(tiny_model)
    hub.failure = Failure(status)
    for load in (lambda: local_folder(MODEL), lambda: load_dino("team/model", "cpu")):
        with pytest.raises(TransientError, match=rf"'team/model': cannot be downloaded from http.* .*{status}"):
            load()
    hub.failure = None
    assert local_folder(MODEL).name == COMMIT


@pytest.mark.parametrize(
    ("headers", "wait"), [({}, 1), ({"Retry-After": "30"}, 30), ({"ratelimit": '"api";r=0;t=55'}, 55)]
)
def test_a_short_outage_is_survived(
    hub: Hub,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
    wait: int,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    hub.serve(tiny_model)
    hub.failures = [Failure(429, headers=headers), Failure(503)]
    assert pinned(MODEL).revision == COMMIT
    assert waits == [wait, 2]
    assert f"retrying in {wait} s" in caplog.text


@pytest.mark.parametrize("fault", ["truncated", "reset"])
def test_a_file_that_is_cut_off_is_downloaded_again(hub: Hub, tiny_model: Path, fault: str) -> None:
    hub.serve(tiny_model)
    setattr(hub, fault, "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(TransientError, match="'team/model': cannot be downloaded from http"):
        local_folder(MODEL)
    setattr(hub, fault, "")
    assert weights_digest(local_folder(MODEL)) == weights_digest(tiny_model)


def test_an_unreachable_hub_is_a_transient_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        TransientError, match=r"spec\.model\.id: 'team/model': cannot be downloaded from http://127.0.0.1:9"
    ):
        local_folder(MODEL)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MODEL.model_copy(update={"revision": "v9"}), "'team/model': has no revision 'v9' on the Hub; use an existing"),
        (MODEL.model_copy(update={"revision": "d" * 40}), f"'team/model': has no revision '{'d' * 40}' on the Hub"),
        (
            BaseModelRef(id="/nowhere/model"),
            "'/nowhere/model': was not found as a local folder, and is not a valid Hub ID",
        ),
        (BaseModelRef(id="team/other"), "'team/other': was not found, neither as a local folder nor on the Hub"),
    ],
)
def test_a_wrong_id_is_a_user_error(hub: Hub, tiny_model: Path, model: BaseModelRef, message: str) -> None:
    hub.serve(tiny_model)
    with pytest.raises(UserError, match=rf"spec\.model\.id: {message}"):
        local_folder(model)


def test_in_offline_mode_a_missing_model_is_a_user_error(
    hub: Hub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.serve(tiny_model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="is not in the cache, and HF_HUB_OFFLINE is set; unset"):
        local_folder(MODEL)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    local_folder(MODEL)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert local_folder(MODEL).name == COMMIT


@pytest.fixture
def hub_encoder(hub: Hub, encoder: Path) -> Hub:
    """A Hub with a ViT as team/model."""
    hub.serve(encoder)
    return hub


def test_only_the_safetensors_of_an_encoder_are_downloaded(hub_encoder: Hub) -> None:
    assert pinned_commit(DINO, "team/model") == COMMIT
    assert hub_encoder.downloaded == {"config.json"}
    assert load_dino("team/model", "cpu", COMMIT).name == "team/model"
    assert hub_encoder.downloaded == {"config.json", "model.safetensors"}
    hub_encoder.requests.clear()
    assert load_dino("team/model", "cpu", COMMIT).name == "team/model"
    assert hub_encoder.requests == []


def test_an_encoder_is_downloaded_from_the_pull_request_of_the_bot(
    hub_encoder: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hub_encoder.model
    model.converted = dict(model.files)
    del model.files["model.safetensors"]
    commit = pinned_commit(DINO, "team/model")
    assert commit == PULL_REQUEST
    assert load_dino("team/model", "cpu", commit).name == "team/model"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pinned_commit(DINO, "team/model") == PULL_REQUEST
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    model.converted = {}
    with pytest.raises(UserError, match="no ViTModel with safetensors weights"):
        load_dino("team/model", "cpu")


@pytest.mark.parametrize("status", [403, 404], ids=["disabled by the owner", "not supported by a mirror"])
def test_an_encoder_without_pull_requests_has_no_converted_weights(hub_encoder: Hub, status: int) -> None:
    del hub_encoder.model.files["model.safetensors"]
    hub_encoder.model.discussions = status
    with pytest.raises(UserError, match="no ViTModel with safetensors weights"):
        pinned_commit(DINO, "team/model")


def test_an_encoder_of_another_kind_is_rejected_before_weights_are_downloaded(hub_encoder: Hub) -> None:
    rule = r"encoders\.clip: 'team/model': is not a CLIPModel: config\.json has model_type 'vit'; set a local folder"
    with pytest.raises(UserError, match=rule):
        pinned_commit(CLIP, "team/model")
    hub_encoder.repositories["team/clip"] = Repository(
        {"config.json": b'{"model_type": "clip"}', "model.safetensors": b"x"}
    )
    with pytest.raises(UserError, match=r"has no tokenizer \(tokenizer.json or vocab.json\); set a local folder"):
        pinned_commit(CLIP, "team/clip")
    assert not [name for name in hub_encoder.sent_bytes if name.endswith(".safetensors")]


def test_other_formats_are_not_hashed_or_published(multi_format_model: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert weights_digest(multi_format_model) == weights_digest(tiny_model)
    for folder, name in ((multi_format_model, "a"), (tiny_model, "b")):
        open_family(folder).save_single_file(folder, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_loaded_weights_do_not_depend_on_other_formats(multi_format_model: Path, tiny_model: Path) -> None:
    actual, expected = (open_family(f).pipeline(f, torch.float32) for f in (multi_format_model, tiny_model))
    for part in ("unet", "vae", "text_encoder"):
        for name, tensor in getattr(expected, part).state_dict().items():
            assert torch.equal(getattr(actual, part).state_dict()[name], tensor)


@pytest.mark.parametrize("location", ["hub", "folder"])
def test_a_model_with_pickled_weights_only_is_rejected(hub: Hub, multi_format_model: Path, location: str) -> None:
    for path in (multi_format_model / "unet").glob("*.safetensors"):
        path.unlink()
    hub.serve(multi_format_model)
    with pytest.raises(UserError, match="has no safetensors weights in unet; other formats can contain code; save the"):
        config_folder(MODEL if location == "hub" else BaseModelRef(id=str(multi_format_model)))
    assert hub.downloaded <= {"model_index.json"}


def test_the_chat_template_of_a_tokenizer_is_loaded() -> None:
    names = ["tokenizer.json", "chat_template.jinja", "tokenizer.py"]
    assert model_files(names, lambda name: "") == ["chat_template.jinja", "tokenizer.json"]


def test_only_the_shards_in_the_index_are_loaded(tiny_model: Path, tmp_path: Path) -> None:
    sharded = shutil.copytree(tiny_model, tmp_path / "sharded")
    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet")
    shutil.rmtree(sharded / "unet")
    unet.save_pretrained(sharded / "unet", max_shard_size="50KB")
    assert len(list((sharded / "unet").glob("*.safetensors"))) > 1
    # Files of an earlier save.
    save_file({"x": torch.zeros(1000)}, sharded / "unet" / "diffusion_pytorch_model-00001-of-00099.safetensors")
    save_file({"x": torch.zeros(1000)}, sharded / "unet" / "diffusion_pytorch_model.safetensors")
    open_family(sharded).save_single_file(sharded, tmp_path / "file")
    open_family(tiny_model).save_single_file(tiny_model, tmp_path / "plain")
    actual, expected = load_file(tmp_path / "file"), load_file(tmp_path / "plain")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    read = open_family(sharded).open(sharded, ["unet"]).modules["unet"].state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in unet.state_dict().items())


def test_the_digest_of_a_model_needs_no_weights(hub: Hub, multi_format_model: Path) -> None:
    hub.serve(multi_format_model)
    assert base_digest(pinned(MODEL)) == weights_digest(multi_format_model)
    assert len(hub.requests) == len(set(hub.requests))
    assert not [name for name in hub.downloaded if name.endswith(".safetensors")]


def test_the_digest_of_other_weights_is_another(hub: Hub, multi_format_model: Path) -> None:
    files = hub.serve(multi_format_model).files
    name = "unet/diffusion_pytorch_model.safetensors"
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    assert base_digest(pinned(MODEL)) != weights_digest(multi_format_model)


def test_the_digest_of_a_downloaded_model_needs_no_request(hub: Hub, multi_format_model: Path) -> None:
    hub.serve(multi_format_model)
    model = pinned(MODEL)
    local_folder(model)
    hub.requests.clear()
    assert base_digest(model) == weights_digest(multi_format_model)
    assert hub.requests == []


def test_a_mirror_without_checksums_is_downloaded_from(hub: Hub, multi_format_model: Path) -> None:
    hub.serve(multi_format_model)
    hub.checksums = False
    assert base_digest(pinned(MODEL)) == weights_digest(multi_format_model)
