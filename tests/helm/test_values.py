"""Values of the chart that others' charts have too, its README, and its metadata."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import ControlPlane, ProcessError, helm

from dreambooth_api.job import DreamBoothJob
from dreambooth_api.runtime import RuntimeSpec

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "dreambooth-operator"
SYSTEM = "dreambooth-system"
_SPEC = importlib.util.spec_from_file_location("generate_chart", ROOT / "docs" / "generate_chart.py")
assert _SPEC
assert _SPEC.loader
generate_chart = importlib.util.module_from_spec(_SPEC)
sys.modules["generate_chart"] = generate_chart
_SPEC.loader.exec_module(generate_chart)


def render(tmp_path: Path, values: dict[str, Any], *arguments: str) -> dict[str, dict[str, Any]]:
    """The chart's objects with these values, by kind and name."""
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    text = helm(None, "template", "db", str(CHART), "-n", SYSTEM, "-f", str(file), *arguments)
    return {f"{obj['kind']}/{obj['metadata']['name']}": obj for obj in yaml.safe_load_all(text) if obj}


def test_values_shape_the_operator(tmp_path: Path) -> None:
    values = {
        "affinity": {"nodeAffinity": {}},
        "annotations": {"a": "1"},
        "podAnnotations": {"b": "2"},
        "labels": {"team": "ml", "app.kubernetes.io/name": "mine"},
        "priorityClassName": "system-cluster-critical",
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn"}},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "strategy": {"type": "Recreate"},
    }
    rendered = render(tmp_path, values)
    deployment = rendered["Deployment/dreambooth-operator"]
    pod = deployment["spec"]["template"]
    assert deployment["metadata"]["annotations"] == {"a": "1"}
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert pod["metadata"]["annotations"] == {"b": "2"}
    assert pod["spec"]["affinity"] == {"nodeAffinity": {}}
    assert pod["spec"]["priorityClassName"] == "system-cluster-critical"
    assert pod["spec"]["containers"][0]["env"][1:] == values["extraEnv"]
    account = rendered["ServiceAccount/dreambooth-operator"]["metadata"]
    assert account["annotations"] == values["serviceAccount"]["annotations"]
    others = {n: o for n, o in rendered.items() if "CustomResource" not in n and "dreambooth-bounds" not in n}
    assert {obj["metadata"]["labels"]["team"] for obj in [*others.values(), pod]} == {"ml"}
    assert {obj["metadata"]["labels"]["app.kubernetes.io/name"] for obj in others.values()} == {"dreambooth-operator"}


def test_name_override_names_all_objects_consistently(tmp_path: Path) -> None:
    default, renamed = render(tmp_path, {}), render(tmp_path, {"nameOverride": "finetune"})
    changed = {name for name in renamed if "finetune" in name}
    assert "finetune" not in {name.partition("/")[2] for name in default}
    kept = {name for name in renamed if "dreambooth-operator" in name}
    assert kept == {"Secret/dreambooth-operator-ca"}, "the operator knows its name"
    assert {name.replace("finetune", "dreambooth-operator") for name in changed} | kept == {
        name for name in default if "dreambooth-operator" in name
    }
    pod = renamed["Deployment/finetune"]["spec"]["template"]
    assert pod["metadata"]["labels"]["app.kubernetes.io/name"] == "dreambooth-operator", (
        "NetworkPolicies of jobs select it"
    )
    assert "--progress-url=https://finetune.dreambooth-system.svc:8082" in pod["spec"]["containers"][0]["args"]
    policy = renamed["ValidatingAdmissionPolicy/finetune"]["spec"]["matchConditions"][0]["expression"]
    assert "'system:serviceaccount:dreambooth-system:finetune'" in policy


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nameOverride=Bad_Name", "nameOverride"),
        ("extraEnv[0].value=x", "extraEnv"),
        ("serviceMonitor.interval=soon", "interval"),
        ("prometheusRule.runbookUrl=ftp://x", "runbookUrl"),
        ("labels.a=1", "labels"),
    ],
)
def test_malformed_values_are_rejected(setting: str, message: str) -> None:
    with pytest.raises(ProcessError, match=message):
        helm(None, "template", str(CHART), "--set", setting)


@pytest.fixture(scope="module")
def empty() -> Iterator[ControlPlane]:
    """A control plane without our CRDs."""
    with ControlPlane() as plane:
        plane.start_controllers()
        yield plane


def test_runtimes_are_created_by_the_second_installation_and_kept(empty: ControlPlane, tmp_path: Path) -> None:
    def install(spec: dict[str, Any]) -> str:
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump({"runtimes": {"gpu": spec}}))
        arguments = ("dreambooth-operator", str(CHART), "-n", SYSTEM, "--create-namespace", "-f", str(file))
        return helm(empty, "upgrade", "--install", *arguments)

    sprites = {"image": "trainer:1", "model": {"id": "sprites"}}
    assert "NOT YET CREATED: runtimes gpu" in install(sprites)
    assert "Runtimes: gpu" in install(sprites)
    assert empty.get("dbr", "gpu")["spec"]["model"]["id"] == "sprites"
    install({**sprites, "image": "trainer:2"})
    assert empty.get("dbr", "gpu")["spec"]["image"] == "trainer:2"
    with pytest.raises(ProcessError, match="steps"):
        install({**sprites, "defaults": {"steps": -1}})
    helm(empty, "uninstall", "dreambooth-operator", "-n", SYSTEM, "--wait")
    assert empty.get("dbr", "gpu")["spec"]["image"] == "trainer:2"


@pytest.mark.unit
def test_generated_tables_are_up_to_date() -> None:
    for path, content in generate_chart.render().items():
        assert path.read_text() == content, "run make generate"


@pytest.mark.unit
def test_every_value_has_a_description() -> None:
    text = (CHART / "values.yaml").read_text()
    documented = {value.key for value in generate_chart.read_values(text)}
    assert generate_chart.undocumented(yaml.safe_load(text), documented) == []


@pytest.mark.unit
def test_values_are_read_as_helm_docs_reads_them() -> None:
    text = "# A group.\na:\n  # -- First\n  # line.\n  b: 1\n  c: {}\n# -- Rest.\nd:\n  e: true\n"
    values = generate_chart.read_values(text)
    assert [(v.key, v.default, v.description) for v in values] == [
        ("a.b", 1, "First line."),
        ("d", {"e": True}, "Rest."),
    ]
    assert generate_chart.undocumented(yaml.safe_load(text), {"a.b", "d"}) == ["a.c"]


@pytest.mark.unit
def test_artifact_hub_knows_the_crds_and_valid_examples() -> None:
    annotations = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]
    crds = [yaml.safe_load(path.read_text()) for path in (ROOT / "manifests" / "crd").glob("*dev.yaml")]
    listed = {(crd["name"], crd["kind"], crd["version"]) for crd in yaml.safe_load(annotations["artifacthub.io/crds"])}
    assert listed == {
        (crd["metadata"]["name"], crd["spec"]["names"]["kind"], crd["spec"]["versions"][0]["name"]) for crd in crds
    }
    job, runtime = yaml.safe_load(annotations["artifacthub.io/crdsExamples"])
    DreamBoothJob.model_validate(job)
    RuntimeSpec.model_validate(runtime["spec"])
