"""The chart's monitors, alerts and dashboard, as far as they can be checked without Prometheus.

`tests/operator/test_prometheus.py` runs the queries.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import helm

from dreambooth_operator.machinery.metrics import Metrics
from dreambooth_operator.metrics.history import JobHistory
from dreambooth_operator.metrics.reasons import KNOWN
from dreambooth_operator.metrics.state import JobsCollector, RuntimeLabels

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "dreambooth-operator"
RUNBOOKS = (ROOT / "docs" / "operations" / "runbooks.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((CHART / "files" / "dashboard.json").read_text())
GROUPS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]] + [alert["expr"] for alert in ALERTS]
ENABLED = [f"--set={name}.enabled=true" for name in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")]


def rendered(*arguments: str) -> dict[str, dict[str, Any]]:
    text = helm(None, "template", "db", str(CHART), "-n", "system", *ENABLED, *arguments)
    return {obj["kind"]: obj for obj in yaml.safe_load_all(text) if obj}


def exposed() -> set[str]:
    """The names of all time series of the leader."""
    metrics, labels = Metrics("dreambooth"), RuntimeLabels(lambda _: None)
    metrics.counter("events", "Events.", "reason")
    metrics.gauge("queue_depth", "Depth.", lambda: 0)
    metrics.registry.register(JobsCollector({}, labels))
    JobHistory(metrics.registry, labels, lambda: datetime.now(UTC))
    ends = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    return {family.name + end for family in metrics.registry.collect() for end in ends[family.type]}


def test_monitors_have_labels_and_intervals() -> None:
    objects = rendered(
        *("--set=serviceMonitor.labels.release=p", "--set=serviceMonitor.interval=30s"),
        *("--set=podMonitor.labels.release=p", "--set=podMonitor.interval=1m", "--set=prometheusRule.labels.release=p"),
        *("--set=dashboard.annotations.grafana_folder=ML",),
    )
    for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule"):
        assert objects[kind]["metadata"]["labels"]["release"] == "p"
    (endpoint,) = objects["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint == {"port": "metrics", "honorLabels": True, "interval": "30s"}
    assert objects["PodMonitor"]["spec"]["podMetricsEndpoints"] == [{"port": "metrics", "interval": "1m"}]
    assert objects["PodMonitor"]["spec"]["namespaceSelector"] == {"any": True}
    assert objects["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert objects["ConfigMap"]["metadata"]["annotations"] == {"grafana_folder": "ML"}
    assert json.loads(objects["ConfigMap"]["data"]["dreambooth.json"]) == DASHBOARD


def test_pods_are_scraped_in_watched_namespaces_only() -> None:
    monitor = rendered("--set=watchNamespaces={team-a,team-b}")["PodMonitor"]
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["team-a", "team-b"]}


def test_alerts_link_to_their_runbooks() -> None:
    url = "https://docs.example.com/operations/runbooks/"
    rule = rendered(f"--set=prometheusRule.runbookUrl={url}")["PrometheusRule"]
    found = [rule for group in rule["spec"]["groups"] for rule in group["rules"]]
    assert [rule["alert"] for rule in found] == [rule["alert"] for rule in ALERTS]
    assert all(each["annotations"]["runbook_url"] == f"{url}#{each['alert'].lower()}" for each in found)
    assert "{{ $labels.namespace }}" in found[3]["annotations"]["summary"], "Prometheus evaluates it"


@pytest.mark.unit
def test_every_alert_has_a_runbook() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOKS, re.MULTILINE) == [alert["alert"] for alert in ALERTS]
    assert {alert["labels"]["severity"] for alert in ALERTS} <= {"critical", "warning", "info"}
    assert all(alert["annotations"].keys() == {"summary", "description"} for alert in ALERTS)


@pytest.mark.unit
def test_reasons_of_an_alert_are_explained() -> None:
    (reasons,) = (re.findall(r'reason=~"([^"]+)"', alert["expr"]) for alert in ALERTS if "reason=~" in alert["expr"])
    named = set(reasons[0].split("|"))
    assert named <= KNOWN
    assert named == set(re.findall(r"^\| `(\w+)` \|", RUNBOOKS, re.MULTILINE))


@pytest.mark.unit
@pytest.mark.parametrize("query", QUERIES)
def test_queries_use_metrics_that_exist(query: str) -> None:
    named = set(re.findall(r"\b((?:dreambooth|process)_\w+)", query))
    assert named
    assert {name for name in named if name.startswith("dreambooth")} - exposed() == set()


@pytest.mark.unit
def test_every_metric_of_jobs_is_on_the_dashboard() -> None:
    text = " ".join(QUERIES)
    missing = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed() if name.startswith("dreambooth")}
    assert {name for name in missing if name not in text} == {"dreambooth_events_total"}


@pytest.mark.unit
def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "namespace", "runtime"]
