"""How to load the published model in diffusers, ComfyUI and AUTOMATIC1111, for the report and the model card."""

from __future__ import annotations

from collections.abc import Collection

from dreambooth_api.model import ModelSource
from dreambooth_api.uris import BUILTIN_SPRITES, VOLUME, hub_repository, is_url
from dreambooth_api.words import without_word
from dreambooth_trainer.models.clip_pooling import LEGACY_EOS
from dreambooth_trainer.models.files import (
    ADAPTER_FILE,
    IMAGE_EMBEDS_FILE,
    IP_ADAPTER_FILE,
    POOLING_COMPONENTS,
    TOKEN_COMPONENTS,
    embeddings_file,
)
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
    single_file = not {"diffusers", "lora", "embeddings", "ip-adapter"}.intersection(plan.formats)
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
    elif plan.image_prompts is not None:
        code = _image_prompts(plan, location, folder, pipeline_class, imports)
        return "\n".join([*imports, "", *lines, f"pipeline = {pipeline}.from_pretrained({base}{revision})", *code])
    elif {"lora", "embeddings"} & set(plan.formats):
        lines.append(f"pipeline = {pipeline}.from_pretrained({base}{revision})")
        if "lora" in plan.formats:
            lines.append(f"pipeline.load_lora_weights({folder!r}, weight_name={ADAPTER_FILE!r})")
            if pipeline_class == "IFPipeline":
                lines.append(_fixed_variance("pipeline"))
        for index, token in enumerate(plan.new_tokens if "embeddings" in plan.formats else ()):
            components = TOKEN_COMPONENTS.get(pipeline_class)
            if components is None:
                name = f"weight_name={embeddings_file(index)!r}, token={token!r}"
                lines.append(f"pipeline.load_textual_inversion({folder!r}, {name})")
                continue
            if index == 0:
                imports.append("from safetensors.torch import load_file")
                lines += _pooling(pipeline_class)
            path = _file(location, folder, embeddings_file(index), imports)
            lines.append(f"embeddings = load_file({path})")
            for key, (encoder, tokenizer) in components.items():
                parts = f"text_encoder=pipeline.{encoder}, tokenizer=pipeline.{tokenizer}"
                lines.append(f"pipeline.load_textual_inversion(embeddings[{key!r}], token={token!r}, {parts})")
    else:
        path = _file(location, folder, single_file_name(plan), imports)
        lines.append(f"pipeline = {pipeline}.from_single_file({path}, config={base})")
    for prompt, file in zip(plan.instance_prompts, _image_files(plan), strict=True):
        lines.append(f"pipeline({prompt!r}, {_sampling(plan, pipeline_class)}).images[0].save({file!r})")
    return "\n".join([*imports, "", *lines])


def _image_prompts(plan: Plan, location: str, folder: str, pipeline_class: str, imports: list[str]) -> list[str]:
    """Lines that load an image-prompt adapter, and generate an image of each subject from its embeddings."""
    assert plan.image_prompts is not None
    imports.append("from safetensors.torch import load_file")
    embeds = _file(location, folder, IMAGE_EMBEDS_FILE, imports)
    options = f"subfolder='', weight_name={IP_ADAPTER_FILE!r}, image_encoder_folder=None"
    lines = [
        f"pipeline.load_ip_adapter({folder!r}, {options})",
        f"pipeline.set_ip_adapter_scale({plan.image_prompts.scale:g})",
        f"subjects = load_file({embeds})",
    ]
    for subject, file in zip(plan.subjects, _image_files(plan), strict=True):
        prompt = without_word(subject.instance_prompt, subject.identifier)
        images = f"ip_adapter_image_embeds=[subjects[{subject.identifier!r}]]"
        lines.append(f"pipeline({prompt!r}, {images}, {_sampling(plan, pipeline_class)}).images[0].save({file!r})")
    return lines


def _image_files(plan: Plan) -> list[str]:
    return ["image.png"] if len(plan.subjects) == 1 else [f"image-{n + 1}.png" for n in range(len(plan.subjects))]


def _pooling(pipeline_class: str) -> list[str]:
    """Lines that let the text encoder whose pooled output is used find the end of prompts with new tokens."""
    encoder, tokenizer = POOLING_COMPONENTS[pipeline_class]
    return [
        f"for part in pipeline.{encoder}.modules():  # older configurations do not work with new tokens",
        f'    if getattr(part, "eos_token_id", None) == {LEGACY_EOS}:',
        f"        part.eos_token_id = pipeline.{tokenizer}.eos_token_id",
    ]


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
    for prompt, file in zip(plan.instance_prompts, _image_files(plan), strict=True):
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


def tool_files(plan: Plan, published: Collection[str], pipeline_class: str) -> tuple[ToolFile, ...]:
    """The published files that ComfyUI and AUTOMATIC1111 load, and the folders that they belong into.

    Args:
        published: names of the files of the published model.
        pipeline_class: class of diffusers that the model is for.
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
    # The key of T5 is diffusers' own.
    others_read = "embeddings" in plan.formats and "t5" not in TOKEN_COMPONENTS.get(pipeline_class, ())
    for index, subject in enumerate(plan.subjects if others_read else ()):
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
