"""A plan as lines, as a chart and as a document."""

from __future__ import annotations

import builtins
import json
from typing import Any

import pytest

from natwork_ray.cli.schedule_view import gantt_html, plan_document, plan_lines, service_document, service_lines
from natwork_ray.control.desk import Migration
from natwork_ray.domain.actions import ActionOutcome, Migrate, ServiceMove
from natwork_ray.domain.decisions import DecisionStatus
from natwork_ray.domain.migrations import MigrationForecast, MigrationRecord, MigrationState
from natwork_ray.domain.phases import Gate, MigrationMethod, OnFailure, Phase
from natwork_ray.domain.values import Backend
from natwork_ray.errors import PreconditionError
from natwork_ray.limi.schedule import plan
from natwork_ray.limi.service_plan import LinkCapacity, Member, ScheduleRequest, Section


def member(name: str, live_s: float, stopped_s: float, lazy_s: float) -> Member:
    forecast = MigrationForecast(
        method=MigrationMethod.HYBRID, total_p50_s=9.0, total_p95_s=9.0, downtime_p50_s=1.0, downtime_p95_s=1.0
    )
    return Member(
        container=name, source="edge", target="core", forecast=forecast, path=("k",), rate_bytes_per_s=1.0,
        lazy_rate_bytes_per_s=1.0, live=Section(fixed_s=live_s), stopped=Section(fixed_s=stopped_s), restore_s=0.0,
        attach_s=0.0, lazy=Section(fixed_s=lazy_s),
    )  # fmt: skip


REQUEST = ScheduleRequest(
    service="shop",
    members=(member("web", 4.0, 2.0, 2.0), member("db", 1.0, 4.0, 0.0)),
    links=(LinkCapacity(name="k", bytes_per_s=1.0),),
)
PLAN = plan(REQUEST)


def test_lines_show_each_part_to_scale() -> None:
    lines = plan_lines(REQUEST, PLAN)
    assert lines[0] == "shop: 2 containers in 1 wave, unavailable for 4.00 s, over after 10.00 s"
    web, db = (next(line for line in lines if line.strip().startswith(name)) for name in ("web", "db"))
    # web: copies 0 to 4, waits to 6, is down to 8; pages to 10.  db: copies 3 to 4, is down 4 to 8.
    assert web.split()[1] == "-" * 28 + "#" * 10 + "~" * 10
    assert db.split()[1] == "." * 14 + "-" * 5 + "#" * 19 + "." * 10
    assert "hybrid" in web
    assert "edge -> core  starts 0.00 s, down 6.00 s to 8.00 s" in web
    assert any("wave 1 arrives at 8.00 s; db (hybrid) is down longest" in line for line in lines)


def test_the_document_is_json_and_whole() -> None:
    document = json.loads(json.dumps(plan_document(REQUEST, PLAN), allow_nan=False))
    assert document["waves"] == [["web", "db"]]
    assert document["gates"] == ["freeze", "restore", "attach"]
    assert [row["downtime_s"] for row in document["migrations"]] == [pytest.approx(2.0), pytest.approx(4.0)]
    assert document["migrations"][0]["method"] == "hybrid"


def test_the_chart_is_a_page_of_its_own() -> None:
    pytest.importorskip("plotly")
    page = gantt_html(PLAN)
    assert "<html>" in page[:100]
    assert "shop: migration plan" in page


def test_without_plotly_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refusing(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(PreconditionError, match="plotly"):
        gantt_html(PLAN)


def test_what_became_of_it_beside_what_was_planned() -> None:
    together = ServiceMove(
        id="d", service="shop", gates=tuple(Gate), on_failure=OnFailure.CARRY_ON, patience_s=9.0, arrives_s=3.0,
        unavailable_s=0.5,
    )  # fmt: skip

    def moved(name: str, arrived_s: float | None) -> Migration:
        record = None
        if arrived_s is not None:
            record = MigrationRecord(
                key=name, container=name, source="a", target="b", method=MigrationMethod.COLD, backend=Backend.REAL,
                state=MigrationState.MIGRATED, started_at_s=10.0, total_s=4.0, downtime_s=1.0, runs_on="b",
                phases=(
                    Phase(name="freeze", starts_s=arrived_s - 1.0, duration_s=0.1),
                    Phase(name="address move", starts_s=arrived_s - 0.1, duration_s=0.1),
                ),
            )  # fmt: skip
        outcome = ActionOutcome(
            key=name, done=record is not None, started_at_s=10.0, finished_at_s=14.0, downtime_s=0.0,
            backend=Backend.REAL, detail="", record=record,
        )  # fmt: skip
        order = Migrate(key=name, container=name, source="a", target="b", together=together)
        return Migration(decision="d", at_s=9.0, status=DecisionStatus.DONE, instruction=order, outcome=outcome)

    migrations = (moved("web", 2.0), moved("db", 2.2), moved("cache", None))
    document = json.loads(json.dumps(service_document(migrations), allow_nan=False))
    assert (document["arrived"], document["stayed"], document["on_failure"]) == (["web", "db"], ["cache"], "carry-on")
    assert document["arrival_spread_s"] == pytest.approx(0.2)
    assert document["arrival_spread_pct"] == pytest.approx(5.0)
    assert document["planned"] == {"last_arrival_s": 3.0, "unavailable_s": 0.5}
    assert service_lines(migrations) == [
        "2 of 3 containers arrived; not cache",
        "  200.0 ms between the first arrival and the last, 5.0 % of the longest migration (4.00 s)",
        "  last arrival after 2.20 s (planned 3.00 s)",
        "  unavailable for 1.20 s (planned 0.50 s)",
    ]
    assert service_document(())["planned"] is None
    assert service_lines((moved("cache", None),))[0] == "0 of 1 containers arrived; not cache"
