"""How to load the published model in diffusers, ComfyUI and AUTOMATIC1111, for the report and the model card."""

from __future__ import annotations

from collections.abc import Collection

from dreambooth_api.model import ModelSource
from dreambooth_api.uris import BUILTIN_SPRITES, VOLUME, hub_repository, is_url
from dreambooth_trainer.models.files import ADAPTER_FILE, TOKEN_COMPONENTS, embeddings_file
from dreambooth_trainer.planning.cascade import NOISE_LEVEL, SUPER_RESOLUTION
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.report.contents import ToolFile
from dreambooth_trainer.store.published import single_file_name

# Local name of a model that is downloaded first.
_DOWNLOADED = "model"
_DOWNLOAD = "from huggingface_hub import hf_hub_download"


def loading_code(plan: Plan, location: str, pipeline_class: str) -> str:
    """Python code that generates one image of each subject with the published model.

    Args:
        location: folder of the model, or its URI for users outside the pod.
        pipeline_class: class of diffusers that the model is for.
    """
    single_file = not {"diffusers", "lora", "embeddings"}.intersection(plan.formats)
    pipeline = pipeline_class if single_file else "DiffusionPipeline"
    imports, lines, folder = [f"from diffusers import {pipeline}"], list[str](), location
    if location.startswith(VOLUME):
        lines.append(f"# {location!r} is on a PersistentVolumeClaim: replace it by the path of the mounted folder.")
    elif (repository := hub_repository(location)) is not None and plan.super_resolution is None:
        folder = repository
    elif is_url(location):
        folder = _DOWNLOADED
        imports.insert(0, "import fsspec")
        lines += [
            f"files, path = fsspec.url_to_fs({location.rstrip('/')!r})",
            f"files.get(f'{{path}}/', '{folder}/', recursive=True)",
        ]
    if plan.super_resolution is not None:
        imports[-1] = "from diffusers import IFPipeline, IFSuperResolutionPipeline"
        return "\n".join([*imports, "", *lines, *_cascade(plan, folder)])
    base, revision = repr(plan.model.id), f", revision={plan.model.revision!r}" if plan.model.revision else ""
    if plan.model.id == BUILTIN_SPRITES and "diffusers" not in plan.formats:
        base = "WEIGHTS"
        imports.append("from dreambooth_trainer.sprites import WEIGHTS")
    # !r: prompts and paths may contain quotes.
    if "diffusers" in plan.formats:
        lines.append(f"pipeline = {pipeline}.from_pretrained({folder!r})")
    elif {"lora", "embeddings"} & set(plan.formats):
        lines.append(f"pipeline = {pipeline}.from_pretrained({base}{revision})")
        if "lora" in plan.formats:
            lines.append(f"pipeline.load_lora_weights({folder!r}, weight_name={ADAPTER_FILE!r})")
            if pipeline_class == "IFPipeline":
                lines.append(_fixed_variance("pipeline"))
        for index, token in enumerate(plan.new_tokens if "embeddings" in plan.formats else ()):
            if pipeline_class != "StableDiffusionXLPipeline":
                name = f"weight_name={embeddings_file(index)!r}, token={token!r}"
                lines.append(f"pipeline.load_textual_inversion({folder!r}, {name})")
                continue
            if index == 0:
                imports.append("from safetensors.torch import load_file")
            path = _file(location, folder, embeddings_file(index), imports)
            lines.append(f"embeddings = load_file({path})")
            for key, (encoder, tokenizer) in TOKEN_COMPONENTS.items():
                parts = f"text_encoder=pipeline.{encoder}, tokenizer=pipeline.{tokenizer}"
                lines.append(f"pipeline.load_textual_inversion(embeddings[{key!r}], token={token!r}, {parts})")
    else:
        path = _file(location, folder, single_file_name(plan), imports)
        lines.append(f"pipeline = {pipeline}.from_single_file({path}, config={base})")
    files = ["image.png"] if len(plan.subjects) == 1 else [f"image-{n + 1}.png" for n in range(len(plan.subjects))]
    for prompt, file in zip(plan.instance_prompts, files, strict=True):
        lines.append(f"pipeline({prompt!r}, {_sampling(plan, pipeline_class)}).images[0].save({file!r})")
    return "\n".join([*imports, "", *lines])


def _cascade(plan: Plan, folder: str) -> list[str]:
    """The same for the two stages of DeepFloyd IF, of which the second gets the embeddings and images of the first."""
    root, second = folder.rstrip("/"), plan.model.super_resolution
    assert second is not None
    lines: list[str] = []
    stages: tuple[tuple[str, str, ModelSource, str, str], ...] = (
        ("base", "IFPipeline", plan.model, root, ""),
        ("upscaler", "IFSuperResolutionPipeline", second, f"{root}/{SUPER_RESOLUTION}", ", text_encoder=None"),
    )
    for name, pipeline, source, published, options in stages:
        if "diffusers" in plan.formats:
            lines.append(f"{name} = {pipeline}.from_pretrained({published!r})")
            continue
        revision = f", revision={source.revision!r}" if source.revision else ""
        lines.append(f"{name} = {pipeline}.from_pretrained({source.id!r}{revision}{options})")
        lines.append(f"{name}.load_lora_weights({published!r}, weight_name={ADAPTER_FILE!r})")
        lines.append(_fixed_variance(name))
    files = ["image.png"] if len(plan.subjects) == 1 else [f"image-{n + 1}.png" for n in range(len(plan.subjects))]
    for prompt, file in zip(plan.instance_prompts, files, strict=True):
        lines += [
            f"text, no_text = base.encode_prompt({prompt!r})",
            'prompt = {"prompt_embeds": text, "negative_prompt_embeds": no_text}',
            'image = base(**prompt, output_type="pt").images',
            f"upscaler(image=image, **prompt, noise_level={NOISE_LEVEL}).images[0].save({file!r})",
        ]
    return lines


def _fixed_variance(pipeline: str) -> str:
    """A line that sets the scheduler for an adapter of DeepFloyd IF: its variance was not trained."""
    scheduler = f"{pipeline}.scheduler"
    return f'{scheduler} = {scheduler}.from_config({scheduler}.config, variance_type="fixed_small")'


def _file(location: str, folder: str, name: str, imports: list[str]) -> str:
    """The expression of the local path of a published file; adds its imports."""
    if hub_repository(location) is None:
        return repr(f"{folder.rstrip('/')}/{name}")
    if _DOWNLOAD not in imports:
        imports.append(_DOWNLOAD)
    return f"hf_hub_download({folder!r}, {name!r})"


def tool_files(plan: Plan, published: Collection[str]) -> tuple[ToolFile, ...]:
    """The published files that ComfyUI and AUTOMATIC1111 load, and the folders that they belong into.

    Args:
        published: names of the files of the published model.
    """
    if plan.model.id == BUILTIN_SPRITES:
        return ()  # its layers do not have the sizes of a Stable Diffusion that these tools know
    name, prompt = plan.job.metadata.name, plan.instance_prompts[0]
    checkpoint, adapter = single_file_name(plan), f"{name}.safetensors"
    files: list[ToolFile] = []
    if "safetensors" in plan.formats and checkpoint in published:
        folders = f"models/checkpoints/{checkpoint}", f"models/Stable-diffusion/{checkpoint}"
        files.append(ToolFile(checkpoint, *folders, "select it as the checkpoint", prompt))
    if "lora" in plan.formats and plan.spec.training.traits.kohya and adapter in published:
        folders = f"models/loras/{adapter}", f"models/Lora/{adapter}"
        note = f"ComfyUI: node Load LoRA. AUTOMATIC1111: add <lora:{name}:1> to the prompt"
        if plan.new_tokens:  # the base model does not know the identifier, and the tools name the token after its file
            token = f"{name}-1" if len(plan.subjects) > 1 else name
            prompt = f"a {token} {next(iter(plan.subjects)).class_}"
        files.append(ToolFile(adapter, *folders, note, prompt))
    for index, subject in enumerate(plan.subjects if "embeddings" in plan.formats else ()):
        if (file := embeddings_file(index)) in published:
            # Both tools name an embedding after its file.
            token = f"{name}-{index + 1}" if len(plan.subjects) > 1 else name
            folders = f"models/embeddings/{token}.safetensors", f"embeddings/{token}.safetensors"
            note = f"{token} replaces {subject.identifier} in prompts; in ComfyUI write embedding:{token}"
            files.append(ToolFile(file, *folders, note, f"a {token} {subject.class_}"))
    return tuple(files)


def _sampling(plan: Plan, pipeline_class: str) -> str:
    """The settings of the evaluation. A distilled model needs other ones than a pipeline's defaults."""
    scale = plan.sampler.guidance_scale - (pipeline_class == "ZImagePipeline")  # see `GuidanceScale`
    return f"num_inference_steps={plan.sampler.steps}, guidance_scale={scale:g}"
