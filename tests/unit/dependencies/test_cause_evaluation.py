"""The protocol: tuning and test parts, ties, intervals, and a method that must not be helped by either."""

from __future__ import annotations

from typing import Any

import pytest

from natwork_ray.dependencies.evaluation import OURS, IncidentCase, evaluate
from natwork_ray.dependencies.graph import from_calls
from natwork_ray.dependencies.ranking import RankingSettings
from natwork_ray.domain.telemetry import Metric
from natwork_ray.errors import InputError

NAMES = ("gate", "orders", "db", "cache")
GRAPH = from_calls(NAMES, {"gate": ("orders",), "orders": ("db",)})


@pytest.fixture
def cases(make_window: Any) -> list[IncidentCase]:
    """The last service is slow, and its callers even more so: only the graph tells who it was."""
    normal = make_window(NAMES)
    found = []
    for number in range(12):
        slow = {("gate", Metric.LATENCY_P50): 9.0, ("orders", Metric.LATENCY_P50): 6.0, ("db", Metric.LATENCY_P50): 4.0}
        incident = make_window(NAMES, samples=12, seed=number, changes=slow)
        found.append(
            IncidentCase(
                data="made up", kind="slow" if number % 2 else "slower", part="tune" if number < 4 else "test",
                normal=normal, incident=incident, graph=GRAPH, cause="db",
            )
        )  # fmt: skip
    return found


def test_rows_of_every_model_and_kind(cases: list[IncidentCase]) -> None:
    told: list[str] = []
    table = evaluate(cases, seed=1, progress=lambda _, __, what: told.append(what))
    assert table.tuned_on == 4
    rows = {(row.model, row.kind): row for row in table.rows}
    assert len(rows) == 6 * 3
    ours, alone, random = (rows[m, "all"] for m in (OURS, "largest deviation alone", "chance"))
    assert (ours.cases, ours.top_1, ours.avg_5, ours.top_1_ci) == (8, 1.0, 1.0, (1.0, 1.0))
    assert alone.top_1 == 0.0
    assert (random.top_1, random.top_3, random.avg_5) == (0.25, 0.75, pytest.approx((0.25 + 0.5 + 0.75 + 1 + 1) / 5))
    assert rows[OURS, "slow"].cases == rows[OURS, "slower"].cases == 4
    assert told


def test_the_same_cases_and_seed_give_the_same_table(cases: list[IncidentCase]) -> None:
    assert evaluate(cases, seed=1) == evaluate(cases, seed=1)


def test_the_test_part_chooses_nothing(cases: list[IncidentCase]) -> None:
    # What the test part would choose (no graph at all) must not matter.
    spoilt = [
        IncidentCase(c.data, c.kind, c.part, c.normal, c.incident, c.graph, "gate" if c.part == "test" else c.cause)
        for c in cases
    ]
    assert evaluate(spoilt, seed=1).chosen == evaluate(cases, seed=1).chosen
    turned = [
        IncidentCase(c.data, c.kind, c.part, c.normal, c.incident, c.graph, "gate" if c.part == "tune" else c.cause)
        for c in cases
    ]
    assert evaluate(turned, seed=1).chosen.explained == 0.0


def test_defaults_stay_where_nothing_is_plainly_better(cases: list[IncidentCase]) -> None:
    assert evaluate(cases, seed=1).chosen == RankingSettings()


def test_a_part_that_is_missing_is_an_error(cases: list[IncidentCase]) -> None:
    for part in ("tune", "test"):
        with pytest.raises(InputError, match="no tuning or no test part"):
            evaluate([c for c in cases if c.part == part], seed=1)
    c = cases[0]
    for part, cause in (("train", "db"), ("tune", "nobody")):
        with pytest.raises(InputError, match="part is tune or test"):
            IncidentCase(c.data, c.kind, part, c.normal, c.incident, c.graph, cause)
