"""What is in `deploy/`: every query of the board and the alert rules names metrics and labels that exist."""

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from limner.service.metrics import METRICS, Metrics
from limner.settings.serve import ServeSettings, variable

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BOARD = json.loads((DEPLOY / "grafana/dashboards/limner.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"]

# What Prometheus itself adds: the labels of each series of a scrape, and whether it succeeded.
TARGET = {"instance", "job"}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_WORDS = {"sum", "min", "max", "avg", "rate", "increase", "histogram_quantile", "and", "or", "unless", "by"}
_WORDS |= {"without", "on", "ignoring", "group_left", "group_right", "bool", "le"}


def board_queries():
    for panel in BOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]


def alert_rules():
    return [rule for group in ALERTS for rule in group["rules"]]


def series():
    """Name of each series of a scrape -> its labels."""
    named = {}
    for name, metric in METRICS.items():
        labels = {*metric.labels, *TARGET}
        if metric.kind == "histogram":
            named |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            named[name] = labels
    for family in text_string_to_metric_families(Metrics().exposition()[0].decode()):
        for sample in family.samples:
            named.setdefault(sample.name, {*sample.labels, *TARGET})
    return named | {"up": TARGET}


SERIES = series()


def check(query):
    """The series of a query. AssertionError for one that no scrape has, or for labels that it lacks."""
    text = _STRING.sub('""', query.replace("$__rate_interval", "5m").replace("$instance", "x"))
    assert text.count("(") == text.count(")")
    assert text.count("{") == text.count("}")
    grouped = {label for found in _GROUPING.findall(text) for label in _NAME.findall(found)}
    bare = re.sub(r"\[[^]]*\]", "", _GROUPING.sub(" ", text))
    selected = re.findall(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}", bare)
    for name, matchers in selected:
        assert name in SERIES, name
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        assert labels <= SERIES[name], (name, labels - SERIES[name])
    names = [word for word in _NAME.findall(re.sub(r"\{[^}]*\}", "", bare)) if word not in _WORDS]
    assert names, query
    for name in names:
        assert name in SERIES, name
    for label in grouped:
        assert any(label in SERIES[name] for name in names), label
    return set(names)


@pytest.mark.parametrize("title", [panel["title"] for panel in BOARD["panels"] if "targets" in panel])
def test_panels_of_the_board_query_what_is_measured(title):
    for panel, query, legend in board_queries():
        if panel == title:
            names = check(query)
            for label in re.findall(r"\{\{\s*(\w+)\s*\}\}", legend):
                assert any(label in SERIES[name] for name in names), label


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: rule["alert"])
def test_alerts_query_what_is_measured_and_say_what_to_do(rule):
    names = check(rule["expr"])
    assert re.search(r"[<>=]", rule["expr"])
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    for text in rule["annotations"].values():
        for label in re.findall(r"\$labels\.(\w+)", text):
            assert any(label in SERIES[name] for name in names), label
    assert {"summary", "action"} == rule["annotations"].keys()


@pytest.mark.parametrize(
    "query",
    [
        "sum(limner_nothing_total)",
        'rate(limner_images_total{lane="batch"}[5m])',
        "sum by (lane) (limner_images_total)",
        "sum(limner_step_seconds)",
        "sum(limner_ready",
    ],
)
def test_the_check_finds_what_is_not_there(query):
    with pytest.raises(AssertionError):
        check(query)


def test_every_metric_is_on_the_board():
    shown = {name for _, query, _ in board_queries() for name in check(query)}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    stage_rows = {"limner_stage_rows_total"}  # beside passes; the histogram of batch sizes shows more
    assert METRICS.keys() - shown == {"limner_build_info"} | stage_rows


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for panel in BOARD["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)


def test_the_unit_of_systemd_sets_variables_that_exist():
    unit = (DEPLOY / "systemd/limner.service").read_text(encoding="utf-8")
    known = {variable(name) for name in ServeSettings.model_fields} | {"LIMNER_CONFIG"}
    used = set(re.findall(r"(LIMNER_\w+)=", unit))
    assert used
    assert used <= known


def test_every_yaml_file_is_well_formed():
    files = list(DEPLOY.rglob("*.yml"))
    assert len(files) >= 4
    for file in files:
        assert yaml.safe_load(file.read_text(encoding="utf-8"))
