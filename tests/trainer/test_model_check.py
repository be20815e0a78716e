"""`dreambooth validate` and `dreambooth plan` report the same issues of a base model on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_plan import job_of

from dreambooth_api.errors import UserError
from dreambooth_api.job import DreamBoothJob
from dreambooth_trainer.cli.offline import check_plan
from dreambooth_trainer.runner import prepare_job

pytestmark = pytest.mark.trainer

SUBJECT = {"class": "dog", "images": {"uri": "builtin:sprites/dog-pink-blue"}}
SINGLE_FILE = {"output": {"formats": ["diffusers", "safetensors"]}}


@pytest.mark.parametrize(
    ("model", "spec", "paths"),
    [
        (
            "tiny_z_image_model",
            {**SINGLE_FILE, "training": {"textEncoder": {"train": True}}},
            ["spec.training.textEncoder.train", "spec.output.formats"],
        ),
        ("tiny_sd3_model", {"training": {"method": "TextualInversion"}}, ["spec.training.method"]),
        (
            "tiny_sd3_model",
            {"training": {"method": "None", "imagePrompt": {"adapter": {"id": "builtin:sprites"}}}},
            ["spec.training.method"],
        ),
        (
            "tiny_xl_model",
            {
                "subject": {**SUBJECT, "identifier": "og", "instancePrompt": "a og dog" + " on the beach" * 6},
                "training": {"method": "TextualInversion"},
            },
            ["spec.subject.instancePrompt", "spec.subject.identifier"],
        ),
    ],
)
def test_all_issues_of_a_local_model_are_reported(
    request: pytest.FixtureRequest, model: str, spec: dict[str, Any], paths: list[str]
) -> None:
    folder: Path = request.getfixturevalue(model)
    training = {"resolution": 32, **spec.get("training", {})}
    evaluation = {"prompts": ["a {}"]}  # the tokenizers of the models read few tokens
    job = {"model": {"id": str(folder)}, "evaluation": evaluation, "subject": SUBJECT, **spec, "training": training}
    commands: list[Callable[[DreamBoothJob], object]] = [check_plan, prepare_job]
    for command in commands:
        with pytest.raises(UserError) as caught:
            command(job_of(job))
        assert [issue.path for issue in caught.value.issues] == paths, command
