"""Model families: shapes, loss targets, and round trips through diffusers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from randomtraining import random_result
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_plan import make_plan

from dreambooth_api.errors import UserError
from dreambooth_api.model import BaseModelRef
from dreambooth_trainer.families.base import AdapterInfo, Stage
from dreambooth_trainer.families.ddpm import loss_target
from dreambooth_trainer.families.registry import local_folder, open_family, weights_digest
from dreambooth_trainer.methods.registry import open_method
from dreambooth_trainer.phases import publish
from dreambooth_trainer.sprites import WEIGHTS
from dreambooth_trainer.sprites.examples import EXAMPLES, example_images

pytestmark = pytest.mark.trainer

LORA = {"method": "LoRA", "lora": {"rank": 4, "alpha": 10}}
INFO = AdapterInfo("my-dog", "stable-diffusion-v1-5", "a sks dog", 512)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def open_all(folder: Path) -> Stage:
    """A stage with all modules."""
    family = open_family(folder)
    return family.open(folder, (family.denoiser, *family.text_encoders, *family.image_encoders))


def predict(unet: Any, noisy: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return unet(noisy, torch.tensor([500]), encoder_hidden_states=text).sample


def test_shapes(tiny_model: Path, images: list[Image.Image]) -> None:
    family = open_family(tiny_model)
    stage = open_all(tiny_model)
    encoded = stage.encode_images(images)
    assert {name: tuple(tensor.shape[1:]) for name, tensor in encoded.items()} == family.image_shapes(tiny_model, 32)
    assert {len(tensor) for tensor in encoded.values()} == {3}
    prompts = ["a sks dog", "a dog on the beach", "a dog"]
    for live in ((), family.text_encoders):
        examples = encoded | stage.encode_prompts(prompts, live)
        noise = {name: torch.randn(3, *shape) for name, shape in stage.noise_shapes(examples).items()}
        assert stage.denoise(stage.modules, examples, noise, torch.tensor([0.0, 0.5, 0.999])).errors().shape == (3,)


def test_latents_decode_to_the_encoded_images() -> None:
    stage = open_all(WEIGHTS)
    pixels = np.stack([image for name in EXAMPLES for image in example_images(name)])
    mean, vae = stage.encode_images([Image.fromarray(image) for image in pixels])["latent_mean"], stage.modules["vae"]
    with torch.no_grad():
        decoded = vae.decode(mean / vae.config.scaling_factor).sample
    error = (decoded.permute(0, 2, 3, 1).numpy() * 127.5 + 127.5).clip(0, 255) - pixels
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 22, "decibels"


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_latents_can_be_recovered_from_the_loss_target(make_model, prediction_type: str) -> None:
    folder = make_model(prediction_type)
    scheduler = open_family(folder).open(folder, ()).noise_scheduler
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    timesteps = torch.tensor([10, 700])
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = loss_target(scheduler, latents, noise, timesteps)
    alpha = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    if prediction_type == "epsilon":
        recovered = (noisy - (1 - alpha).sqrt() * target) / alpha.sqrt()
    else:
        recovered = alpha.sqrt() * noisy - (1 - alpha).sqrt() * target
    torch.testing.assert_close(recovered, latents, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("force_upcast", [True, False])
def test_the_autoencoder_runs_in_fp32_if_its_configuration_requires_it(
    tiny_model: Path, tmp_path: Path, force_upcast: bool
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": force_upcast}))
    pipeline = open_family(folder).pipeline(folder, torch.bfloat16)
    assert pipeline.unet.dtype == torch.bfloat16
    assert pipeline.vae.dtype == (torch.float32 if force_upcast else torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a dog", num_inference_steps=1, height=32, width=32).images[0].size == (32, 32)


def test_adapters_for_other_tools_do_not_tell_where_the_base_model_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Writer:
        def save_kohya_adapter(self, folder: Path, target: Path, info: AdapterInfo) -> None:
            target.write_text(info.base_model)

    monkeypatch.setattr(publish, "open_family", lambda folder: Writer())
    for model, name in (("/home/grandma/models/base", "base"), ("team/model", "team/model")):
        plan = make_plan({"model": {"id": model}, "training": LORA})
        assert publish._save_kohya_adapter(plan, tmp_path, tmp_path / "adapter")
        assert (tmp_path / "adapter").read_text() == name


def test_saved_configurations_do_not_tell_where_the_base_model_is(tiny_model: Path, tmp_path: Path) -> None:
    stage = open_family(tiny_model).open(tiny_model, ["unet"])
    open_family(tiny_model).save(tiny_model, stage.modules, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert {"model_index.json", "unet/config.json", "vae/config.json"} <= {str(f.relative_to(tmp_path)) for f in files}
    assert not [path for path in files if str(tiny_model).encode() in path.read_bytes()]
    assert local_folder(BaseModelRef(id=str(tmp_path))) == tmp_path
    open_family(tmp_path).open(tmp_path, ["unet", "vae"])


@pytest.mark.parametrize("side", [768, 1024])
def test_images_above_768_pixels_are_encoded_and_decoded_in_tiles(tiny_model: Path, side: int) -> None:
    family = open_family(tiny_model)
    stage = family.open(tiny_model, family.image_encoders)
    vae = family.pipeline(tiny_model, torch.float32).vae
    largest: list[int] = []
    for module in (stage.modules["vae"].encoder, vae.decoder):
        module.register_forward_pre_hook(lambda module, inputs: largest.append(inputs[0].shape[-1]))
    stage.encode_images([Image.new("RGB", (side, side))])
    encoded, largest[:] = max(largest), []
    with torch.no_grad():
        assert vae.decode(torch.randn(1, 4, side // 4, side // 4)).sample.shape == (1, 3, side, side)
    assert (encoded, max(largest)) == (768, 768 // 4)


def component_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of all components of a diffusers folder."""
    return {
        f"{path.parent.name}.{name}": tensor
        for path in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in load_file(path).items()
    }


MIXED = {"unet": torch.bfloat16, "text_encoder": torch.float16, "vae": torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, MIXED], ids=lambda d: str(d)[:20])
def test_a_saved_model_has_the_weights_and_number_formats_of_its_base(
    tiny_model: Path, tmp_path: Path, dtype: torch.dtype | dict[str, torch.dtype]
) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    StableDiffusionPipeline.from_pretrained(tiny_model, dtype=dtype).save_pretrained(base, safe_serialization=True)
    family = open_family(base)
    trained = family.open(base, ["unet", "text_encoder"]).modules
    family.save(base, trained, saved)
    expected, actual = component_weights(base), component_weights(saved)
    assert expected.keys() == actual.keys()
    assert {name: tensor.dtype for name, tensor in actual.items()} == {n: t.dtype for n, t in expected.items()}
    assert [name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)] == []
    family.save_single_file(saved, saved / "model.safetensors")
    stored = {tensor.dtype for tensor in load_file(saved / "model.safetensors").values()}
    assert stored == {tensor.dtype for tensor in expected.values()}


def test_a_module_in_several_number_formats_is_saved_in_fp32(tiny_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (file,) = (base / "unet").glob("*.safetensors")
    weights = {n: t if n.startswith("conv_in") else t.half() for n, t in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    family = open_family(base)
    family.save(base, {}, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "unet" / file.name)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert all(torch.equal(saved[name], tensor.float()) for name, tensor in weights.items())


@pytest.mark.parametrize(
    "schedule",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    ],
    ids=["SD 1.5", "linear"],
)
def test_training_uses_the_noise_schedule_of_the_model(tiny_model: Path, tmp_path: Path, schedule: dict) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **schedule}))
    family = open_family(folder)
    sampling = family.pipeline(folder, torch.float32).scheduler
    assert torch.equal(family.open(folder, ()).noise_scheduler.alphas_cumprod, sampling.alphas_cumprod)


@pytest.mark.parametrize("like_sd2", [None, False, True], ids=["sprites", "Stable Diffusion 1", "Stable Diffusion 2"])
def test_diffusers_reads_the_single_file(like_sd2: bool | None, make_model, tmp_path: Path) -> None:
    folder = WEIGHTS if like_sd2 is None else make_model(attention_in_vae=True, like_sd2=like_sd2)
    open_family(folder).save_single_file(folder, tmp_path / "model.safetensors")
    loaded = StableDiffusionPipeline.from_single_file(
        tmp_path / "model.safetensors", config=str(folder), safety_checker=None, local_files_only=True
    )
    expected = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    for component in ("unet", "vae", "text_encoder"):
        actual, original = getattr(loaded, component).state_dict(), getattr(expected, component).state_dict()
        assert actual.keys() == original.keys()
        for name, tensor in original.items():
            assert torch.equal(actual[name].float(), tensor.float()), f"{component}.{name}"


def test_the_text_encoder_of_stable_diffusion_2_has_the_names_of_openclip(make_model, tmp_path: Path) -> None:
    folder = make_model("v_prediction", like_sd2=True)
    open_family(folder).save_single_file(folder, tmp_path / "model.safetensors")
    prefix = "cond_stage_model.model."
    shapes = {
        name.removeprefix(prefix): tuple(tensor.shape)
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
        if name.startswith("cond_stage_model.")
    }
    layer = {
        "attn.in_proj_bias": (96,),
        "attn.in_proj_weight": (96, 32),
        "attn.out_proj.bias": (32,),
        "attn.out_proj.weight": (32, 32),
        "ln_1.bias": (32,),
        "ln_1.weight": (32,),
        "ln_2.bias": (32,),
        "ln_2.weight": (32,),
        "mlp.c_fc.bias": (32,),
        "mlp.c_fc.weight": (32, 32),
        "mlp.c_proj.bias": (32,),
        "mlp.c_proj.weight": (32, 32),
    }
    layers = {f"transformer.resblocks.{n}.{name}": shape for n in range(2) for name, shape in layer.items()}
    rest = {name: shape for name, shape in shapes.items() if name not in layers}
    assert {name: shapes.get(name) for name in layers} == layers
    assert set(rest) == {"positional_embedding", "token_embedding.weight", "ln_final.bias", "ln_final.weight"}


def test_lora_starts_as_the_base_model_and_merges_into_it(tiny_model: Path) -> None:
    family, method = open_family(tiny_model), open_method("LoRA")
    plan = make_plan({"training": {"method": "LoRA", "lora": {"rank": 4}}})
    stage = open_all(tiny_model)
    unet, text = stage.modules["unet"], stage.encode_prompts(["a dog"])["text_embeds"]
    noisy = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        before = predict(unet, noisy, text)
        names = set(unet.state_dict())
        stage.modules = {"unet": unet}
        method.prepare(stage, plan, family.lora_target_modules())
        torch.testing.assert_close(predict(unet, noisy, text), before)
        trained = {name: p + 0.05 for name, p in unet.named_parameters() if p.requires_grad}
        assert 0 < sum(p.numel() for p in trained.values()) < sum(p.numel() for p in unet.parameters()) / 2
        unet.load_state_dict(trained, strict=False)
        adapted = predict(unet, noisy, text)
        assert (adapted - before).abs().max() > 1e-3
        merged = method.result(stage, plan, {"unet": trained}).modules["unet"]
        assert set(merged.state_dict()) == names
        torch.testing.assert_close(predict(merged, noisy, text), adapted, atol=1e-4, rtol=1e-3)


@pytest.mark.filterwarnings("error:While injecting the PEFT adapters")
@pytest.mark.parametrize("trained", [("unet",), ("text_encoder",), ("unet", "text_encoder")], ids="+".join)
def test_the_adapter_on_the_base_model_generates_the_same_images_as_the_merged_model(
    tiny_model: Path, trained: tuple[str, ...], tmp_path: Path
) -> None:
    family, result = open_family(tiny_model), random_result(tiny_model, LORA, trained)
    family.save(tiny_model, result.modules, tmp_path)
    family.save_adapter(result.adapters, tmp_path)
    # A published folder can also contain these files.
    family.save_single_file(tmp_path, tmp_path / "a-dog-merged.safetensors")
    family.save_kohya_adapter(tmp_path, tmp_path / "a-dog.safetensors", INFO)

    def generate(folder: Path, adapter: Path | dict[str, torch.Tensor] | None = None) -> np.ndarray:
        if folder.is_file():
            pipeline = StableDiffusionPipeline.from_single_file(
                folder, config=str(tiny_model), safety_checker=None, local_files_only=True, dtype=torch.float32
            )
        else:
            pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
        if adapter is not None:
            pipeline.load_lora_weights(adapter)
        noise = torch.Generator().manual_seed(0)
        return pipeline(["a sks dog"] * 4, num_inference_steps=4, generator=noise, output_type="np").images

    merged, adapted = generate(tmp_path), generate(tiny_model, tmp_path)
    np.testing.assert_allclose(adapted, merged, rtol=0, atol=1e-4)
    np.testing.assert_allclose(generate(tiny_model, tmp_path / "a-dog.safetensors"), adapted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(generate(tmp_path / "a-dog-merged.safetensors"), merged, rtol=0, atol=1e-5)
    weights_only = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert {weights.dtype for weights in weights_only.values()} == {torch.float32}
    for other in (generate(tiny_model), generate(tiny_model, weights_only)):
        # Without the adapter, and with alpha = rank, the default for weights without metadata.
        assert np.abs(other - merged).max() > 10 / 255


def test_the_kohya_adapter_has_the_names_and_the_metadata_that_other_tools_read(
    tiny_model: Path, tmp_path: Path
) -> None:
    family, result = open_family(tiny_model), random_result(tiny_model, LORA, ("unet", "text_encoder"))
    family.save(tiny_model, result.modules, tmp_path)
    family.save_adapter(result.adapters, tmp_path)
    family.save_kohya_adapter(tmp_path, tmp_path / "my-dog.safetensors", INFO)
    with safe_open(tmp_path / "my-dog.safetensors", "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
        alphas = {file.get_tensor(name).item() for name in names if name.endswith(".alpha")}
    assert alphas == {10}
    layers = {name.partition(".")[0] for name in names}
    assert names == {f"{name}.{kind}" for name in layers for kind in ("alpha", "lora_down.weight", "lora_up.weight")}
    assert {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_down_blocks_0_resnets_0_conv1",
        "lora_unet_mid_block_attentions_0_proj_in",
    } < layers
    assert metadata == {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "10.0",
        "ss_network_args": '{"conv_dim": 4, "conv_alpha": 10.0}',
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_sd_model_name": "stable-diffusion-v1-5",
        "ss_output_name": "my-dog",
        "ss_resolution": "(512, 512)",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "my-dog",
        "modelspec.trigger_phrase": "a sks dog",
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "512x512",
    }


def test_unsupported_models_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"spec\.model\.id: .*has no readable model_index\.json"):
        open_family(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixArtPipeline"}')
    with pytest.raises(
        UserError, match=r"is a PixArtPipeline, which is not supported; use .*: StableDiffusionPipeline"
    ):
        open_family(tmp_path)
    with pytest.raises(UserError, match=r"spec\.model\.id: '/nowhere/model': was not found as a local folder"):
        local_folder(BaseModelRef(id="/nowhere/model"))


def test_the_digest_depends_on_file_contents_only(make_model) -> None:
    assert weights_digest(make_model()) == weights_digest(make_model()) != weights_digest(make_model("v_prediction"))
