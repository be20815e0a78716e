"""`dreambooth generate`: generates images with a published model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import click


@click.command()
@click.option(
    "--model",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of a job or of its published model. The base model of a LoRA adapter is loaded as well.",
)
@click.option("--prompt", "prompts", multiple=True, required=True, help="Prompt to generate images for.")
@click.option("--count", default=4, show_default=True, type=click.IntRange(1, 1000), help="Images per prompt.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the noise.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps. Defaults to the job's.")
@click.option("--guidance", type=click.FloatRange(1, 50), help="Classifier-free guidance scale. Defaults to the job's.")
@click.option(
    "--out",
    default="images",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for PNG files. Existing files are kept.",
)
def generate(
    folder: Path, prompts: tuple[str, ...], count: int, seed: int, steps: int | None, guidance: float | None, out: Path
) -> None:
    """Generate images with a trained model."""
    from rich.progress import track

    from dreambooth_trainer.sampling.from_published import open_with_settings
    from dreambooth_trainer.sampling.pipeline import ImageRequest, noise_seed, sample_batch

    pipeline, config, note = open_with_settings(folder)
    if note:
        click.echo(note, err=True)
    sampler = config.sampler
    update = {"steps": steps or sampler.steps, "guidance_scale": guidance or sampler.guidance_scale}
    config = replace(config, sampler=sampler.model_copy(update=update))
    out.mkdir(parents=True, exist_ok=True)
    requests = [
        ImageRequest(f"{number:02d}-{image:03d}", prompt, noise_seed(seed, image))
        for number, prompt in enumerate(prompts, next_number(out))
        for image in range(count)
    ]
    batches = [requests[i : i + config.batch_size] for i in range(0, len(requests), config.batch_size)]
    for batch in track(batches, "generating", transient=True):
        for request, image in zip(batch, sample_batch(pipeline, config, batch), strict=True):
            # Mode "x": a file that was created in the meantime is not overwritten.
            with (out / f"{request.name}.png").open("xb") as file:
                image.save(file, "PNG")
    click.echo(f"wrote {len(requests)} images to {out}")


def next_number(out: Path) -> int:
    """The number of the next prompt: one more than the highest number of an image in a folder, which may have gaps."""
    used = [int(match[1]) for path in out.iterdir() if (match := re.match(r"(\d+)-\d{3}\.png$", path.name))]
    return max(used, default=-1) + 1
