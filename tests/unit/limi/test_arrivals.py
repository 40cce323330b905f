"""What records tell of a service's move: who arrived, how far apart, and for how long it was not served."""

from __future__ import annotations

import pytest

from natwork_ray.domain.migrations import MigrationRecord, MigrationState
from natwork_ray.domain.phases import MigrationMethod, Phase
from natwork_ray.domain.values import Backend
from natwork_ray.limi.arrivals import arrivals_of


def record(name: str, at_s: float, *phases: tuple[str, float, float], **fields: object) -> MigrationRecord:
    given = {"state": MigrationState.MIGRATED, "total_s": 4.0, "downtime_s": 1.0, **fields}
    return MigrationRecord(
        key=name, container=name, source="a", target="b", method=MigrationMethod.HYBRID, backend=Backend.REAL,
        started_at_s=at_s, runs_on="b", phases=tuple(Phase(name=n, starts_s=s, duration_s=d) for n, s, d in phases),
        **given,  # type: ignore[arg-type]
    )  # fmt: skip


def test_two_that_arrive_and_one_that_comes_back() -> None:
    web = record(
        "web", 100.0, ("hold before freeze", 0.5, 1.0), ("freeze", 1.5, 0.1), ("address move", 2.4, 0.1),
        ("lazy pages", 2.5, 1.5),
    )  # fmt: skip
    db = record("db", 101.0, ("freeze", 1.0, 0.1), ("address move", 1.5, 0.2), downtime_s=0.7, total_s=1.7)
    cache = record("cache", 100.5, ("freeze", 3.0, 0.1), state=MigrationState.ROLLED_BACK, downtime_s=0.5, total_s=3.5)
    seen = arrivals_of((web, db, cache))
    assert (seen.arrived, seen.stayed) == (("web", "db"), ("cache",))
    assert (seen.first_s, seen.last_s) == pytest.approx((2.5, 2.7))
    assert seen.spread_s == pytest.approx(0.2)
    assert seen.longest_s == pytest.approx(3.5), "the hold of web is not its own time"
    assert seen.spread_pct == pytest.approx(100 * 0.2 / 3.5)
    assert seen.unavailable_s == pytest.approx(1.2 + 0.5), "the union of 1.5 to 2.5 and 2.0 to 2.7, and 3.5 to 4.0"
    assert seen.degraded_s == pytest.approx(1.5)


def test_holds_at_once_are_counted_once_and_to_the_end_of_the_total() -> None:
    held = record(
        "web", 0.0, ("hold before dump transfer", 1.0, 1.0), ("hold before page tunnel", 1.0, 1.0),
        ("hold before settle source", 3.5, 5.0),
    )  # fmt: skip
    assert arrivals_of((held,)).longest_s == pytest.approx(4.0 - 1.0 - 0.5)


def test_nobody_arrived_and_nobody_at_all() -> None:
    refused = record("web", 3.0, state=MigrationState.REFUSED, total_s=0.0, downtime_s=0.0)
    for records in ((), (refused,)):
        seen = arrivals_of(records)
        assert (seen.arrived, seen.first_s, seen.last_s, seen.spread_s, seen.spread_pct) == ((), None, None, None, None)
        assert seen.unavailable_s == 0.0
