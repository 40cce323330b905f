"""Dashboard, rules and documentation name only metrics that are exported, and every one of ours is documented."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_apps.series import SERIES

ROOT = Path(__file__).parents[3]
DASHBOARDS = ROOT / "natwork_ray" / "dashboards"
RULES = DASHBOARDS / "natwork-rules.yml"
BOARD = DASHBOARDS / "natwork.json"
_NAMED = re.compile(r"\b(?:ray_)?natwork[_:][a-zA-Z0-9_:]+")
_LABELS = re.compile(r"((?:ray_)?natwork_[a-z0-9_]+)\{([^}]*)\}")


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Our series, those on Ray's endpoint, and what the rules record."""
    source = (ROOT / "agents" / "metrics.py").read_text(encoding="utf-8")
    on_ray = {f"ray_{name}" for name in re.findall(r'"(natwork_[a-z_]+)"', source)}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    return set(SERIES) | on_ray | recorded


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    queries = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
    variables = [v["query"]["query"] for v in board["templating"]["list"] if v["type"] == "query"]
    return queries + variables + [rule["expr"] for rule in rules()]


def test_every_metric_that_is_asked_for_is_exported(exported: set[str]) -> None:
    named = {name for expression in expressions() for name in _NAMED.findall(expression)}
    assert len(named) > 10
    assert named <= exported


def test_every_label_that_is_asked_for_exists() -> None:
    for expression in expressions():
        for name, labels in _LABELS.findall(expression):
            if name in SERIES:
                assert set(re.findall(r"(\w+)\s*(?:=|!)", labels)) <= set(SERIES[name][1]), expression
        by = re.findall(r"label_values\((\w+), (\w+)\)", expression)
        assert all(label in SERIES[name][1] for name, label in by)


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    panels = json.loads(BOARD.read_text(encoding="utf-8"))["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_alert_says_what_happened_and_how_bad_it_is() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("info", "warning", "critical")
            assert {"summary", "description"} <= set(rule["annotations"])


def test_every_series_is_documented() -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for name, (_, labels) in SERIES.items():
        row = next((line for line in page.splitlines() if line.startswith(f"| `{name}`")), None)
        assert row is not None, name
        assert all(f"`{label}`" in row for label in labels), name


def test_no_series_is_documented_that_does_not_exist(exported: set[str]) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\bnatwork_[a-z_]+[a-z]\b", page)) - {"natwork_ray"} <= exported | {
        name.removeprefix("ray_") for name in exported
    }
