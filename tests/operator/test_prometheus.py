"""A real Prometheus scrapes the operator, and runs every query of the dashboard and of the alerts."""

from __future__ import annotations

import json
import math
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import ControlPlane, binary, helm
from devcluster.plane import free_ports
from devcluster.process import Process
from fakeray import FakeRay
from operatorprocess import RUNTIME, SYSTEM, Operator, until
from test_e2e import Job, report

pytestmark = [pytest.mark.integration, pytest.mark.long]
CHART = Path(__file__).resolve().parents[2] / "charts" / "dreambooth-operator"
ALERTS = CHART / "files" / "alerts.yaml"
DASHBOARD: dict[str, Any] = json.loads((CHART / "files" / "dashboard.json").read_text())
FINISHED = 'dreambooth_jobs_finished_total{phase="Succeeded",runtime="gpus"}'
# Two failures would be a coincidence, three in an hour are an alert; a job that ended well does not change that.
ALERT_TEST = """
rule_files: [ALERTS]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'dreambooth_jobs_finished_total{namespace="a", phase="Failed"}', values: 0x10 4x60}
      - {series: 'dreambooth_jobs_finished_total{namespace="a", phase="Succeeded"}', values: 0x10 1x60}
      - {series: 'dreambooth_jobs_finished_total{namespace="b", phase="Failed"}', values: 0x10 4x60}
      - {series: 'dreambooth_jobs_finished_total{namespace="b", phase="Succeeded"}', values: 0x10 9x60}
      - {series: 'dreambooth_leader{instance="x"}', values: 1x10 0x60}
    alert_rule_test:
      - {alertname: DreamBoothJobsFailing, eval_time: 10m}
      - alertname: DreamBoothJobsFailing
        eval_time: 30m
        exp_alerts:
          - exp_labels: {severity: warning, namespace: a}
            exp_annotations:
              summary: Most DreamBoothJobs in namespace a fail.
              description: About 4 jobs failed within an hour, more than half of those that ended.
      - {alertname: DreamBoothNoLeader, eval_time: 15m}
      - alertname: DreamBoothNoLeader
        eval_time: 17m
        exp_alerts:
          - exp_labels: {severity: critical}
            exp_annotations:
              summary: No replica of the DreamBooth operator leads.
              description: No job starts, and none is suspended or cleaned up. Running trainers continue.
"""


class Prometheus:
    """A Prometheus that scrapes the operator as the chart's ServiceMonitor says."""

    def __init__(self, plane: ControlPlane, operator: Operator) -> None:
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}/api/v1"
        monitor = next(yaml.safe_load_all(helm(
            None, "template", "x", str(CHART), "--set=serviceMonitor.enabled=true", "-s", "templates/monitoring.yaml"
        )))  # fmt: skip
        (endpoint,) = monitor["spec"]["endpoints"]
        target = {"targets": [f"127.0.0.1:{operator.health}"], "labels": {"namespace": SYSTEM, "pod": "operator-0"}}
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [
                {"job_name": "operator", "honor_labels": endpoint["honorLabels"], "static_configs": [target]}
            ],
        }
        (plane.folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        command = [
            str(binary("prometheus")), f"--config.file={plane.folder}/prometheus.yaml",
            f"--storage.tsdb.path={plane.folder}/prometheus", f"--web.listen-address=127.0.0.1:{port}",
        ]  # fmt: skip
        self.process = Process(plane.folder, "prometheus", command)

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self._url}/{path}?{urllib.parse.urlencode(query)}", timeout=10) as response:
            return json.load(response)["data"]

    def values(self, query: str) -> list[float]:
        """The current values of the series that match."""
        try:
            found = self.get("query", query=query)["result"]
        except OSError:
            return []
        return [float(series["value"][1]) for series in found]


@pytest.fixture(scope="module")
def prometheus(plane: ControlPlane, operator: Operator) -> Iterator[Prometheus]:
    prometheus = Prometheus(plane, operator)
    prometheus.process.start()
    until("Prometheus scrapes the operator", lambda: prometheus.values("dreambooth_leader") == [1])
    yield prometheus
    prometheus.process.kill()


def runs_through(plane: ControlPlane, ray: FakeRay, operator: Operator, job: Job, attempt: int) -> None:
    """Report as a trainer does that completes all phases, and end the run."""
    run = job.runs(attempt)
    for body in (
        {"phase": "ClassImages"},
        {"phase": "Encode", "classImages": {"wanted": 4, "reused": 1, "generated": 3}},
        {"phase": "Evaluate", "step": 2, "steps": 2},
        {"phase": "Publish", "scores": {"dino": 0.7}},
    ):
        assert report(plane, operator, job, body)[0] == 202
        until("the operator has seen it", lambda b=body: job.status["report"].get("phase") == b["phase"])
        until("and its conditions", lambda b=body: phase_is_explained(job, b["phase"]))
    output = {"output": {"uri": "s3://models/dog/model", "digest": "sha256:abc"}}
    assert report(plane, operator, job, output)[0] == 202
    until("it is published", lambda: job.condition("Published").get("status") == "True")
    ray.finish(run)
    job.reaches("Succeeded")


def phase_is_explained(job: Job, phase: str) -> bool:
    done = {"Encode": "ClassImagesReady", "Evaluate": "Trained", "Publish": "Evaluated"}.get(phase)
    return done is None or job.condition(done).get("status") == "True"


def test_queries_have_results(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str, prometheus: Prometheus
) -> None:
    pods = {"worker": {"cpu": "1", "memory": "1Gi", "gpu": 2}}
    plane.apply({**RUNTIME, "metadata": {"name": "gpus"}, "spec": {**RUNTIME["spec"], "pods": pods}})
    # A rate needs an increase between two scrapes, so what has a rate happens twice.
    for number in (1, 2):
        job = Job(plane, ray, namespace, f"job-{number}", runtime="gpus")
        if number == 1:
            ray.finish(job.runs(), "FAILED")
        runs_through(plane, ray, operator, job, attempt=3 - number)
        until("Prometheus has the end", lambda n=number: prometheus.values(FINISHED) == [n])
    training = Job(plane, ray, namespace, "training", runtime="gpus")
    training.runs()
    assert report(plane, operator, training, {"phase": "Train", "step": 1, "steps": 9, "stepsPerSecond": 2.5})[0] == 202
    Job(plane, ray, namespace, "rejected", runtime="made-up")
    until("a job is rejected", lambda: prometheus.values('dreambooth_jobs{phase="Rejected",runtime="Unknown"}') == [1])
    until("a job trains", lambda: prometheus.values("dreambooth_training_steps_per_second") == [2.5])
    assert prometheus.values(f'dreambooth_gpus{{namespace="{namespace}"}}') == [2]
    assert prometheus.values("dreambooth_gpu_seconds_total > 0")
    assert prometheus.values("dreambooth_jobs{exported_namespace!=''}") == []

    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$namespace", namespace).replace("$runtime", "gpus|Unknown")
            query = re.sub(r"\$__(rate_interval|range)", "5m", query)
            values = prometheus.values(query)
            assert values, f"{panel['title']}: {query} has no result"
            assert not any(map(math.isnan, values)), f"{panel['title']}: {query}"
    until("a rejected job is noticed", lambda: rules(prometheus)["DreamBoothJobsRejected"]["state"] == "pending")
    until("all rules have been evaluated", lambda: all(r["health"] == "ok" for r in rules(prometheus).values()))
    assert rules(prometheus)["DreamBoothNoLeader"]["state"] == "inactive"


def rules(prometheus: Prometheus) -> dict[str, dict[str, Any]]:
    return {rule["name"]: rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]}


def test_rules_are_valid_and_fire(tmp_path: Path) -> None:
    check = promtool("check", "rules", str(ALERTS))
    assert check.returncode == 0, check.stderr
    file = tmp_path / "test.yaml"
    file.write_text(ALERT_TEST.replace("ALERTS", str(ALERTS)))
    test = promtool("test", "rules", str(file))
    assert test.returncode == 0, test.stdout + test.stderr


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(binary("promtool")), *arguments], capture_output=True, text=True, check=False)
