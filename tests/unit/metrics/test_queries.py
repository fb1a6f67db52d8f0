"""Dashboard and alert rules ask only for what is there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from celery_graceful.metrics.catalog import CATALOG
from tests.support.promql import KNOWN, Query, references

FOLDER = Path(__file__).parents[3] / "examples" / "monitoring"
ALERTS = FOLDER / "alerts.yml"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
RULES = [
    rule
    for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_is_there(rule: dict[str, Any]) -> None:
    query = Query.parse(rule["expr"])
    assert query.metrics
    assert query.wrong() == []
    for text in rule["annotations"].values():
        assert references(text) <= query.left, text
    assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_asks_for_what_is_there(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        query = Query.parse(target["expr"])
        assert query.metrics
        assert query.wrong() == []
        assert references(target["legendFormat"]) <= query.left, target


def test_the_dashboard_can_be_imported() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    (variable,) = (v for v in DASHBOARD["templating"]["list"] if v["name"] == "instance")
    assert "label_values(celery_graceful_phase, instance)" in variable["definition"]


def test_the_dashboard_shows_each_metric() -> None:
    asked = {
        name
        for panel in PANELS
        for target in panel["targets"]
        for name, _ in Query.parse(target["expr"]).metrics
    }
    families = {metric.prometheus for metric in CATALOG}
    assert {f for f in families if not any(name.startswith(f) for name in asked)} == set()
    assert asked <= KNOWN.keys()


def test_a_query_that_is_wrong_is_found() -> None:
    assert Query.parse("sum(celery_graceful_given_up)").wrong() == ["celery_graceful_given_up"]
    wrong = 'sum by (pool) (rate(celery_graceful_released_total{id="1"}[5m]))'
    assert Query.parse(wrong).wrong() == ["id", "pool"]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prometheus_takes_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", str(ALERTS)], check=True, timeout=60)
