"""The model card: the README.md of a model on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from dreambooth_api import layout
from dreambooth_api.output import Format
from dreambooth_trainer.report.contents import Report, ScoreRow, SubjectReport
from dreambooth_trainer.report.page import template_environment

MAX_GALLERY_IMAGES = 6
"""Of each subject."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


# Tags by which the Hub groups models, as in the example scripts of diffusers.
_FAMILY_TAGS = {
    "StableDiffusionPipeline": "stable-diffusion",
    "StableDiffusionXLPipeline": "stable-diffusion-xl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "ZImagePipeline": "z-image",
}


@dataclass(frozen=True)
class GalleryImage:
    """An image that the Hub shows in the gallery and beside the prompt field.

    Attributes:
        file: path in the folder of the card.
    """

    prompt: str
    file: str


def model_card(
    report: Report,
    grid: str | None = None,
    *,
    gallery: Sequence[GalleryImage] = (),
    formats: Collection[Format] = ("diffusers",),
    license_fields: Mapping[str, str] | None = None,
) -> ModelCard:
    """Build the model card. `card.save(folder / "README.md")` writes it.

    Args:
        grid: name of an image file to show, in the folder of the card.
        formats: that are published.
        license_fields: those of the base model's card, which also apply to the trained model: license, license_name
            and license_link.
    """
    licensed = license_fields or {}
    complete = {"diffusers", "safetensors"}.intersection(formats)
    # The Hub rejects cards whose base_model is a folder or builtin:sprites.
    base = report.base_model if _HUB_ID.fullmatch(report.base_model) else None
    family = _FAMILY_TAGS.get(report.pipeline_class)
    data = ModelCardData(
        base_model=base,
        base_model_relation=None if base is None else "finetune" if complete else "adapter",
        instance_prompt=report.subjects[0].instance_prompt,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        widget=[{"text": image.prompt, "output": {"url": image.file}} for image in gallery] or None,
        tags=[
            *("text-to-image", "diffusers", "dreambooth"),
            *([family, f"{family}-diffusers"] if family else []),
            # The template makes the Hub show how to use an adapter.
            *(["lora", "template:sd-lora"] if "lora" in formats else []),
            *(["textual_inversion"] if "embeddings" in formats else []),
            *(["ip-adapter"] if "ip-adapter" in formats else []),
        ],
        license=licensed.get("license"),
        license_name=licensed.get("license_name"),
        license_link=licensed.get("license_link"),
    )
    # Not ModelCard.from_template: its environment keeps the lines of {% %} tags, and a blank line would end a table.
    environment = template_environment(autoescape=False)
    environment.filters["code"] = code_span
    body = environment.get_template("card.md.j2").render(
        report=report,
        gallery=bool(gallery),
        grid=grid,
        code=code_span,
        fence=code_fence(report.loading_code),
        score=_score_line,
        after=_score_after,
        class_images=_class_images(report),
        cell=lambda text: code_span(text).replace("|", "\\|"),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def save_gallery(report: Report, folder: Path) -> list[GalleryImage]:
    """Write the first image of some prompts by the trained model, and return them in the order of the gallery."""
    images: list[GalleryImage] = []
    for subject in report.subjects:
        # By prompt: the instance prompt may be an evaluation prompt, too.
        own = {one.prompt: one.after[0] for one in (subject.comparison, *subject.prompt_comparisons) if one.after}
        for prompt, shown in list(own.items())[:MAX_GALLERY_IMAGES]:
            (folder / layout.GALLERY).mkdir(exist_ok=True)
            image = GalleryImage(prompt, f"{layout.GALLERY}/{len(images):02}.png")
            shown.save(folder / image.file)
            images.append(image)
    return images


def code_span(text: str) -> str:
    """Markdown that shows `text` verbatim: HTML, links and backticks in a prompt are not interpreted."""
    line = " ".join(text.split())
    ticks = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    padding = " " if "`" in line else ""
    return f"{ticks}{padding}{line}{padding}{ticks}"


def code_fence(text: str) -> str:
    """A code fence that is longer than any sequence of backticks in `text`."""
    return "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)


def _score_line(row: ScoreRow) -> str:
    values = map(_number, (row.before, row.after, row.real_images))
    return f"| {row.name} | {' | '.join(values)} | {row.normal or '-'} | {row.meaning} |"


def _score_after(subject: SubjectReport, name: str) -> str:
    return _number(next((row.after for row in subject.scores if row.name == name), None))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _class_images(report: Report) -> str:
    """Number and prompt of the class images, for example "800 class images of `a dog`"; empty without any."""
    counts = {subject.class_prompt: subject.num_class_images for subject in report.subjects}
    return " and ".join(f"{count} class images of {code_span(prompt)}" for prompt, count in counts.items() if count)
