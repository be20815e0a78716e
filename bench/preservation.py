"""Effect of prior preservation with the built-in base model: `python bench/preservation.py`.

Trains each subject with and without prior preservation, and prints a table of scores. Variant DPMSolverMultistep
generates the class images with that noise scheduler in half the steps. With prior preservation, class images stay
diverse (class diversity) and different from the subject (PRES), as in the paper. Subject fidelity is high in both.

Takes about two minutes per row on two cores. Finished runs are kept in --out and not repeated.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from dreambooth_api.job import DreamBoothJob
from dreambooth_api.metrics import METRICS
from dreambooth_trainer.cluster.session import ray_cluster
from dreambooth_trainer.progress.console import LineReporter
from dreambooth_trainer.runner import prepare_job, run_job
from dreambooth_trainer.store.folder import JobFolder

WITH = "prior preservation"
VARIANTS: dict[str, dict[str, Any]] = {
    WITH: {},
    "no prior preservation": {"mode": "None"},
    # Half the steps of the default.
    "DPMSolverMultistep": {"sampler": {"scheduler": "DPMSolverMultistep", "steps": 10}},
}
SUBJECTS = ("dog-pink-blue", "cat-lime-purple", "teapot-slate-orange", "robot-lime-magenta")
ARROWS = {True: "↑", False: "↓"}
# DIV is not computed with the encoder for sprites.
COLUMNS = {
    m.name: f"{m.label} {ARROWS[m.higher_is_better]}"
    for m in METRICS
    if m.higher_is_better is not None and m.name != "div"
}


def make_job(subject: str, seed: int, variant: str) -> DreamBoothJob:
    """The job of one row."""
    return DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": subject},
            "spec": {
                "subject": {"class": subject.partition("-")[0], "images": {"uri": f"builtin:sprites/{subject}"}},
                "priorPreservation": VARIANTS[variant],
                "training": {"seed": seed},
            },
        }
    )


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/preservation"), show_default=True)
@click.option("--seeds", default=2, show_default=True)
@click.option("--subject", "subjects", multiple=True, default=SUBJECTS, show_default=True)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(list(VARIANTS)),
    default=list(VARIANTS)[:2],
    show_default=True,
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the scores to this file.")
def main(out: Path, seeds: int, subjects: tuple[str, ...], variants: tuple[str, ...], json_file: Path | None) -> None:
    console = Console()
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    table = Table("Run", *COLUMNS.values(), title="Scores with and without prior preservation")
    with ray_cluster():
        for subject in subjects:
            for seed in range(seeds):
                for variant in variants:
                    folder = JobFolder((out / f"{subject}-{seed}-{variant.split()[0]}").resolve())
                    prepared = prepare_job(make_job(subject, seed, variant))
                    console.print(f"[bold]{subject}, seed {seed}, {variant}")
                    run_job(prepared, folder, str((out / "store").resolve()), LineReporter(console))
                    scores = json.loads(folder.scores.read_text())
                    before, after = scores["before"]["values"], scores["after"]["values"]
                    if variant == WITH:
                        rows["base model"].append(before)
                    rows[variant].append(after)
                    table.add_row(f"{subject} {seed} {variant}", *(f"{after[name]:.3f}" for name in COLUMNS))
    table.add_section()
    for name, scores in rows.items():
        table.add_row(f"[bold]{name}", *(_mean_and_deviation([s[metric] for s in scores]) for metric in COLUMNS))
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1))


def _mean_and_deviation(values: list[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


if __name__ == "__main__":
    main()
