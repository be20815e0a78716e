"""The code that the report and the model card show for loading the published model."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dreambooth_api.job import DreamBoothJob
from dreambooth_trainer.planning.plan import Plan, SamplerSettings, fill_defaults
from dreambooth_trainer.report.loading import loading_code, tool_files


def plan(method: str, formats: list[str] | None, model: str = "a/b", prompt: str = "a sks dog") -> Plan:
    job = DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": "my-dog"},
            "spec": {
                "model": {"id": model, "revision": "abc"},
                "subject": {"images": {"uri": "photos"}, "class": "dog", "instancePrompt": prompt},
                "training": {"method": method},
                "output": {"formats": formats},
            },
        }
    )
    return fill_defaults(job, image_count=4, identifiers=["sks"], zero_stage=1, precision="fp32")


def test_the_default_formats_depend_on_the_method() -> None:
    assert plan("LoRA", None).formats == ("lora",)
    assert plan("Full", None).formats == ("diffusers", "safetensors")
    assert plan("LoRA", ["safetensors"]).formats == ("safetensors",)


@pytest.mark.parametrize(
    ("method", "formats", "line"),
    [
        ("Full", None, "pipeline = DiffusionPipeline.from_pretrained('out')"),
        ("LoRA", ["lora", "diffusers"], "pipeline = DiffusionPipeline.from_pretrained('out')"),
        ("LoRA", None, "pipeline = DiffusionPipeline.from_pretrained('a/b', revision='abc')"),
        ("LoRA", None, "pipeline.load_lora_weights('out', weight_name='pytorch_lora_weights.safetensors')"),
        ("Full", ["safetensors"], "from_single_file('out/my-dog.safetensors', config='a/b')"),
        (
            "TextualInversion",
            None,
            "load_textual_inversion('out', weight_name='learned_embeds.safetensors', token=",
        ),
        ("TextualInversion", ["diffusers"], "pipeline = DiffusionPipeline.from_pretrained('out')"),
        ("LoRA", ["safetensors"], "from_single_file('out/my-dog-merged.safetensors', config='a/b')"),
    ],
)
def test_the_code_loads_a_format_that_is_published(method: str, formats: list[str] | None, line: str) -> None:
    assert line in loading_code(plan(method, formats), "out", "StableDiffusionPipeline")


def test_the_code_uses_the_sampling_settings_of_the_evaluation() -> None:
    own = plan("Full", None).model_copy(update={"sampler": SamplerSettings(steps=4, guidance_scale=1)})
    for pipeline, scale in (("StableDiffusionPipeline", 1), ("ZImagePipeline", 0)):
        line = f"pipeline('a sks dog', num_inference_steps=4, guidance_scale={scale})"
        assert line in loading_code(own, "out", pipeline)


def test_a_model_in_an_object_store_is_downloaded_first(tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "model_index.json").write_text("{}")
    code = loading_code(plan("Full", None), f"file://{tmp_path}/published", "StableDiffusionPipeline")
    assert "from_pretrained('model')" in code
    download = "\n".join(line for line in code.splitlines() if "diffusers" not in line and "pipeline" not in line)
    subprocess.run([sys.executable, "-c", download], cwd=tmp_path, check=True)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model_index.json"]


def test_a_model_on_a_claim_is_shown_with_the_claim() -> None:
    code = loading_code(plan("Full", None), "pvc://models/dog/model", "StableDiffusionPipeline")
    assert code.count("pvc://models/dog/model") == 2
    compile(code, "snippet", "exec")


@pytest.mark.parametrize("method", ["Full", "LoRA"])
def test_the_code_is_valid_for_any_prompt_path_and_model(method: str) -> None:
    prompt = 'it\'s a sks "dog"'
    for location in ("out/a'b", "out/a\n'b", "s3://a/b'c"):
        for model in ("a'b", "builtin:sprites"):
            code = loading_code(plan(method, None, model, prompt), location, "StableDiffusionPipeline")
            compile(code, "snippet", "exec")
            assert repr(prompt) in code


def test_the_code_for_sdxl_uses_its_pipeline_and_both_text_encoders() -> None:
    single = loading_code(plan("Full", ["safetensors"]), "out", "StableDiffusionXLPipeline")
    assert "StableDiffusionXLPipeline.from_single_file" in single
    code = loading_code(plan("TextualInversion", None), "out", "StableDiffusionXLPipeline")
    assert "pipeline = DiffusionPipeline.from_pretrained('a/b', revision='abc')" in code
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        parts = f"text_encoder=pipeline.text_encoder{suffix}, tokenizer=pipeline.tokenizer{suffix}"
        assert f"load_textual_inversion(embeddings['{key}'], token='sks', {parts})" in code
    compile(code, "snippet", "exec")


def test_the_code_for_flux_loads_tokens_into_clip_and_t5() -> None:
    code = loading_code(plan("TextualInversion", None), "out", "FluxPipeline")
    for key, suffix in (("clip_l", ""), ("t5", "_2")):
        parts = f"text_encoder=pipeline.text_encoder{suffix}, tokenizer=pipeline.tokenizer{suffix}"
        assert f"load_textual_inversion(embeddings['{key}'], token='sks', {parts})" in code
    encoder = SimpleNamespace(modules=lambda: [SimpleNamespace(eos_token_id=2), SimpleNamespace()])
    pipeline = SimpleNamespace(text_encoder=encoder, tokenizer=SimpleNamespace(eos_token_id=49407))
    seen = [*encoder.modules()]
    encoder.modules = lambda: seen
    lines = code.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("for part in"))
    exec("\n".join(lines[start : start + 3]), {"pipeline": pipeline})
    assert [getattr(part, "eos_token_id", None) for part in seen] == [49407, None]


def test_a_model_on_the_hub_is_loaded_by_its_id() -> None:
    location = "hf://team/my-dog"
    assert "from_pretrained('team/my-dog')" in loading_code(plan("Full", None), location, "StableDiffusionPipeline")
    lora = loading_code(plan("LoRA", None), location, "StableDiffusionPipeline")
    assert "load_lora_weights('team/my-dog', weight_name='pytorch_lora_weights.safetensors')" in lora
    single = loading_code(plan("Full", ["safetensors"]), location, "StableDiffusionPipeline")
    assert "from_single_file(hf_hub_download('team/my-dog', 'my-dog.safetensors'), config='a/b')" in single
    tokens = loading_code(plan("TextualInversion", None), location, "StableDiffusionXLPipeline")
    assert "load_file(hf_hub_download('team/my-dog', 'learned_embeds.safetensors'))" in tokens
    for code in (single, tokens):
        assert code.count("from huggingface_hub import hf_hub_download\n") == 1
        compile(code, "snippet", "exec")


@pytest.mark.parametrize(
    ("method", "formats", "published", "expected"),
    [
        ("Full", None, "my-dog.safetensors", [("my-dog.safetensors", "models/checkpoints/my-dog.safetensors")]),
        ("LoRA", None, "my-dog.safetensors", [("my-dog.safetensors", "models/loras/my-dog.safetensors")]),
        (
            "LoRA",
            ["lora", "safetensors"],
            "my-dog.safetensors my-dog-merged.safetensors",
            [
                ("my-dog-merged.safetensors", "models/checkpoints/my-dog-merged.safetensors"),
                ("my-dog.safetensors", "models/loras/my-dog.safetensors"),
            ],
        ),
        (
            "PivotalTuning",
            None,
            "my-dog.safetensors learned_embeds.safetensors",
            [
                ("my-dog.safetensors", "models/loras/my-dog.safetensors"),
                ("learned_embeds.safetensors", "models/embeddings/my-dog.safetensors"),
            ],
        ),
        # Families without these layouts, and methods whose adapter has no such file.
        ("Full", None, "model_index.json", []),
        ("DoRA", None, "pytorch_lora_weights.safetensors", []),
    ],
)
def test_files_for_other_tools_are_those_that_were_published(
    method: str, formats: list[str] | None, published: str, expected: list[tuple[str, str]]
) -> None:
    files = tool_files(plan(method, formats), published.split(), "StableDiffusionPipeline")
    assert [(file.file, file.comfyui) for file in files] == expected


def test_other_tools_do_not_know_the_embedded_base_model() -> None:
    assert tool_files(plan("Full", None, "builtin:sprites"), ["my-dog.safetensors"], "StableDiffusionPipeline") == ()


def test_an_embedding_is_named_after_its_file_in_other_tools() -> None:
    published = ["learned_embeds.safetensors"]
    (file,) = tool_files(plan("TextualInversion", None), published, "StableDiffusionXLPipeline")
    assert file.a1111 == "embeddings/my-dog.safetensors"
    assert file.prompt == "a my-dog dog"
    assert file.note == "my-dog replaces sks in prompts; in ComfyUI write embedding:my-dog"
    assert tool_files(plan("TextualInversion", None), published, "FluxPipeline") == ()
