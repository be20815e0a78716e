"""Argo CD's health check and actions, run by the Lua interpreter that Argo CD uses, on what the controller writes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import ControlPlane, binary
from scenarios import fail, fail_with_user_error, running, succeed, suspend
from simulation import World, make_job

from dreambooth_api.status import Phase

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
DATA = yaml.safe_load((ROOT / "manifests" / "argocd" / "argocd-cm.yaml").read_text())["data"]
HEALTH = DATA["resource.customizations.health.dreambooth.dev_DreamBoothJob"]
ACTIONS = yaml.safe_load(DATA["resource.customizations.actions.dreambooth.dev_DreamBoothJob"])
# Prints a value as JSON. All tables of the scripts are objects, or arrays without holes.
_PRINT = r"""
local function quoted(text)
  return '"' .. string.gsub(text, '[%c"\\]', function(c) return string.format("\\u%04x", string.byte(c)) end) .. '"'
end
local function encode(value)
  if type(value) == "string" then return quoted(value) end
  if type(value) ~= "table" then return tostring(value) end
  local items = {}
  if #value > 0 then
    for _, item in ipairs(value) do table.insert(items, encode(item)) end
    return "[" .. table.concat(items, ",") .. "]"
  end
  for key, item in pairs(value) do table.insert(items, quoted(key) .. ":" .. encode(item)) end
  return "{" .. table.concat(items, ",") .. "}"
end
print(encode((function()
"""


def literal(value: object) -> str:
    """A JSON value as Lua. Argo CD passes an object as tables, and leaves out null."""
    match value:
        case dict():
            return "{" + ",".join(f"[{literal(k)}]={literal(v)}" for k, v in value.items() if v is not None) + "}"
        case list():
            return "{" + ",".join(map(literal, value)) + "}"
        case str():
            return '"' + "".join(f"\\{byte:03d}" for byte in value.encode()) + '"'
        case _:
            return json.dumps(value)


def run_lua(script: str, obj: dict[str, Any], tmp_path: Path) -> Any:
    """What a script returns for `obj`."""
    file = tmp_path / "script.lua"
    file.write_text(f"obj = {literal(obj)}\n{_PRINT}{script}\nend)()))\n")
    done = subprocess.run([str(binary("glua")), str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


def as_object(world: World) -> dict[str, Any]:
    """The job as the API server would send it."""
    assert world.job
    assert world.job.spec
    return {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "DreamBoothJob",
        "metadata": {"name": "dog", "namespace": "team", "generation": world.job.generation},
        "spec": world.job.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "status": world.status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def rejected() -> World:
    world = World(make_job(), runtime=None)
    world.reconcile()
    return world


def after(*steps: Callable[[World], None], **policy: object) -> World:
    world = World(make_job(**policy))
    world.reconcile()
    for step in steps:
        step(world)
        world.reconcile()
    return world


def collect(world: World) -> None:
    world.collect()


def queued() -> World:
    return after(queueName="batch")


def erasing() -> World:
    world = World(make_job(erase=True))
    world.reconcile()  # sets the finalizer
    world.reconcile()
    running(world)
    world.reconcile()
    world.delete()
    world.reconcile()
    return world


# How each phase comes about, its health, and the actions that are offered.
CASES: dict[Phase, tuple[Callable[[], World], str, set[str]]] = {
    Phase.PENDING: (lambda: World(make_job()), "Progressing", {"suspend"}),
    Phase.REJECTED: (rejected, "Degraded", {"suspend"}),
    Phase.QUEUED: (queued, "Progressing", {"suspend"}),
    Phase.STARTING: (after, "Progressing", {"suspend"}),
    Phase.RUNNING: (lambda: after(running), "Progressing", {"suspend"}),
    Phase.RETRYING: (lambda: after(running, fail), "Progressing", {"suspend"}),
    Phase.SUSPENDING: (lambda: after(running, suspend), "Progressing", {"resume"}),
    Phase.SUSPENDED: (lambda: after(running, suspend, collect), "Suspended", {"resume"}),
    Phase.SUCCEEDED: (lambda: after(running, succeed), "Healthy", set()),
    Phase.FAILED: (lambda: after(running, fail_with_user_error), "Degraded", set()),
    Phase.ERASING: (erasing, "Progressing", set()),
}


def test_every_phase_has_a_case() -> None:
    assert set(CASES) == set(Phase)


@pytest.mark.parametrize("phase", CASES)
def test_health_and_actions_of_a_phase(phase: Phase, tmp_path: Path) -> None:
    make, health, offered = CASES[phase]
    world = make()
    assert world.status.phase is phase
    obj = as_object(world)
    found = run_lua(HEALTH, obj, tmp_path)
    assert found["status"] == health
    assert found["message"] == (world.status.message or "Waiting for the operator.")
    actions = run_lua(ACTIONS["discovery.lua"], obj, tmp_path)
    assert {name for name, action in actions.items() if not action["disabled"]} == offered
    assert set(actions) == {action["name"] for action in ACTIONS["definitions"]}


def test_a_status_of_an_older_generation_does_not_count(tmp_path: Path) -> None:
    obj = as_object(after(running, succeed))
    obj["metadata"]["generation"] += 1
    assert run_lua(HEALTH, obj, tmp_path)["status"] == "Progressing"
    del obj["status"]
    assert run_lua(HEALTH, obj, tmp_path)["status"] == "Progressing"


@pytest.mark.parametrize("policy", [{}, {"runPolicy": {"backoffLimit": 1}}])
def test_actions_change_nothing_but_the_suspension(policy: dict[str, Any], tmp_path: Path) -> None:
    obj = as_object(after(running))
    obj["spec"].pop("runPolicy", None)
    obj["spec"] |= policy
    scripts = {action["name"]: action["action.lua"] for action in ACTIONS["definitions"]}
    suspended = run_lua(scripts["suspend"], obj, tmp_path)
    assert suspended["spec"]["runPolicy"] == {**policy.get("runPolicy", {}), "suspend": True}
    resumed = run_lua(scripts["resume"], suspended, tmp_path)
    assert resumed["spec"]["runPolicy"] == {**policy.get("runPolicy", {}), "suspend": False}
    assert resumed["spec"]["subject"]["class"] == obj["spec"]["subject"]["class"]


def test_the_patch_fits_the_config_map_of_argo_cd(plane: ControlPlane, namespace: str) -> None:
    plane.kubectl("create", "configmap", "argocd-cm", "-n", namespace, "--from-literal=url=https://argo")
    patch = ROOT / "manifests" / "argocd" / "argocd-cm.yaml"
    plane.kubectl("patch", "configmap", "argocd-cm", "-n", namespace, f"--patch-file={patch}")
    assert plane.get("configmap", "argocd-cm", "-n", namespace)["data"] == {"url": "https://argo", **DATA}
