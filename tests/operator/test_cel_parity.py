"""What the API server rejects by a CEL rule, `dreambooth validate` rejects as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from test_crd import INVALID, VALID, with_value

from dreambooth_api.errors import UserError
from dreambooth_operator.crd.rules import JOB_RULES
from dreambooth_trainer.jobfile.load import load_job

# Local paths are valid where the job runs on the machine that has them.
CLUSTER_ONLY = {"local images", "a local output", "a local folder of class images"}
RULES = [
    rule["message"] for path, rules in JOB_RULES.items() for rule in rules if path or "metadata" in rule["message"]
]


@pytest.mark.parametrize("case", INVALID.keys() - CLUSTER_ONLY)
def test_a_local_run_rejects_what_the_api_server_rejects(case: str, tmp_path: Path) -> None:
    path, value, _ = INVALID[case]
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(with_value(path, value)))
    with pytest.raises(UserError):
        load_job(file, ())


@pytest.mark.parametrize("case", VALID)
def test_a_local_run_accepts_what_the_api_server_accepts(case: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(with_value(*VALID[case])))
    load_job(file, ())


@pytest.mark.parametrize("message", RULES)
def test_every_cel_rule_has_an_example(message: str) -> None:
    assert any(sentence in message for _, _, sentence in INVALID.values())
