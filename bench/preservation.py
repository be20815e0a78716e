"""The paper's claim, on the embedded base: `python bench/preservation.py` trains each subject with and without prior
preservation and prints one table. With it, the class stays as diverse as the base's (DIV) and unlike the subject
(PRES); without it, it does not. Subject fidelity is high either way.

Takes about two minutes a row on two cores; what is done is kept in --out and not done again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import click
from rich.console import Console
from rich.table import Table

from dreambooth_api.job import DreamBoothJob
from dreambooth_trainer.cluster.session import ray_cluster
from dreambooth_trainer.progress.console import LineReporter
from dreambooth_trainer.runner import prepare_job, run_job
from dreambooth_trainer.store.folder import JobFolder

SUBJECTS = ("dog-pink-blue", "cat-lime-purple", "teapot-slate-orange", "robot-lime-magenta")
COLUMNS = {"dino": "DINO ↑", "clip_i": "CLIP-I ↑", "clip_t": "CLIP-T ↑", "pres": "PRES ↓", "div_class": "DIV ↑"}


def make_job(subject: str, seed: int, *, preserve: bool) -> DreamBoothJob:
    """One run of the table."""
    return DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": subject},
            "spec": {
                "subject": {"class": subject.partition("-")[0], "images": {"uri": f"builtin:sprites/{subject}"}},
                "priorPreservation": {"enabled": preserve},
                "training": {"seed": seed},
            },
        }
    )


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/preservation"), show_default=True)
@click.option("--seeds", default=2, show_default=True)
@click.option("--subject", "subjects", multiple=True, default=SUBJECTS, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers as well.")
def main(out: Path, seeds: int, subjects: tuple[str, ...], json_file: Path | None) -> None:
    console = Console()
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    table = Table("run", *COLUMNS.values(), title="with and without prior preservation")
    with ray_cluster():
        for subject in subjects:
            for seed in range(seeds):
                for arm, preserve in (("prior preservation", True), ("no prior loss", False)):
                    folder = JobFolder((out / f"{subject}-{seed}-{arm.split()[0]}").resolve())
                    opened = prepare_job(make_job(subject, seed, preserve=preserve))
                    console.print(f"[bold]{subject}, seed {seed}, {arm}")
                    run_job(opened, folder, str((out / "store").resolve()), LineReporter(console))
                    scores = json.loads(folder.scores.read_text())
                    if preserve:
                        rows["base"].append(scores["before"])
                    rows[arm].append(scores["after"])
                    table.add_row(f"{subject} {seed} {arm}", *(f"{scores['after'][key]:.3f}" for key in COLUMNS))
    table.add_section()
    for name, scores in rows.items():
        table.add_row(f"[bold]{name}", *(_mean_and_spread([s[key] for s in scores]) for key in COLUMNS))
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1))


def _mean_and_spread(values: list[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


if __name__ == "__main__":
    main()
