"""The model card: the README.md of a model on the Hugging Face Hub."""

from __future__ import annotations

import re

from huggingface_hub import ModelCard, ModelCardData

from dreambooth_trainer.report.contents import Report, ScoreRow, SubjectReport
from dreambooth_trainer.report.page import template_environment

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(
    report: Report, grid: str | None = None, *, lora: bool = False, license_id: str | None = None
) -> ModelCard:
    """Build the model card. `card.save(folder / "README.md")` writes it.

    Args:
        grid: name of an image file to show, in the folder of the card.
        lora: the model is an adapter, not a complete pipeline.
        license_id: license of the base model, which also applies to the trained model, for example
            "creativeml-openrail-m".
    """
    data = ModelCardData(
        # The Hub rejects cards whose base_model is a folder or builtin:sprites.
        base_model=report.base_model if _HUB_ID.fullmatch(report.base_model) else None,
        instance_prompt=report.subjects[0].instance_prompt,
        library_name="diffusers",
        license=license_id,
        pipeline_tag="text-to-image",
        tags=["text-to-image", "diffusers", "dreambooth", *(["lora"] if lora else [])],
    )
    # Not ModelCard.from_template: its environment keeps the lines of {% %} tags, and a blank line would end a table.
    environment = template_environment(autoescape=False)
    environment.filters["code"] = code_span
    body = environment.get_template("card.md.j2").render(
        report=report,
        grid=grid,
        code=code_span,
        fence=code_fence(report.loading_code),
        score=_score_line,
        after=_score_after,
        class_images=_class_images(report),
        cell=lambda text: code_span(text).replace("|", "\\|"),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


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
