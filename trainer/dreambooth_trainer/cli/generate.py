"""`dreambooth generate`: pictures from a published model."""

from __future__ import annotations

import re
from pathlib import Path

import click


@click.command()
@click.option(
    "--model", "folder", type=click.Path(path_type=Path), required=True, help="A job's folder, or a diffusers folder."
)
@click.option("--prompt", "prompts", multiple=True, required=True, help="What to draw; may be given several times.")
@click.option("--count", default=4, show_default=True, type=click.IntRange(1, 1000), help="Pictures a prompt.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the noise.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps. Default: the job's.")
@click.option("--guidance", type=click.FloatRange(1, 50), help="Classifier-free guidance. Default: the job's.")
@click.option(
    "--out",
    default="pictures",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for PNGs; earlier ones stay.",
)
def generate(
    folder: Path, prompts: tuple[str, ...], count: int, seed: int, steps: int | None, guidance: float | None, out: Path
) -> None:
    """Draw pictures with a trained model."""
    from rich.progress import track

    from dreambooth_trainer.cluster.hardware import local_devices
    from dreambooth_trainer.sampling.generate import (
        ImageRequest,
        SamplingConfig,
        load_pipeline,
        noise_seed,
        sample_batch,
    )
    from dreambooth_trainer.store.published import open_published

    published = open_published(folder)
    devices, note = local_devices()
    if note:
        click.echo(note, err=True)
    sampler = published.sampler
    style = SamplingConfig(
        sampler.model_copy(
            update={"steps": steps or sampler.steps, "guidance_scale": guidance or sampler.guidance_scale}
        ),
        published.resolution,
        "bf16" if any(device.bf16 for device in devices) else "fp32",
        published.sampling_batch_size,
    )
    pipeline = load_pipeline(published.folder, style.precision, "cuda" if devices else "cpu")
    out.mkdir(parents=True, exist_ok=True)
    drawings = [
        ImageRequest(f"{number:02d}-{image:03d}", prompt, noise_seed(seed, image))
        for number, prompt in enumerate(prompts, first_number(out))
        for image in range(count)
    ]
    orders = [drawings[i : i + style.batch_size] for i in range(0, len(drawings), style.batch_size)]
    for order in track(orders, "drawing", transient=True):
        for drawing, image in zip(order, sample_batch(pipeline, style, order), strict=True):
            # "x": a file that appeared meanwhile is not overwritten either.
            with (out / f"{drawing.name}.png").open("xb") as file:
                image.save(file, "PNG")
    click.echo(f"{len(drawings)} pictures in {out}")


def first_number(out: Path) -> int:
    """The first number of a prompt that no file in a folder begins with, nor a higher one."""
    taken = [int(match[1]) for path in out.iterdir() if (match := re.match(r"(\d+)-\d{3}\.png$", path.name))]
    return max(taken, default=-1) + 1
