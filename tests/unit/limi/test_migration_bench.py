"""Figures of the migration benchmark: medians, intervals, comparison with the ideal, targets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.domain.phases import MigrationMethod, Phase
from natwork_ray.limi.migration_bench import IDEAL, OURS, Measurement, figures, targets

SECONDS = st.floats(0.01, 100.0, allow_nan=False)


def _moves(who: str, method: str, totals: list[float], gaps: list[float] | None = None) -> list[Measurement]:
    gaps = gaps or [t / 2 for t in totals]
    return [
        Measurement(run=i, who=who, method=method, total_s=t, downtime_s=g, lost_replies=0)
        for i, (t, g) in enumerate(zip(totals, gaps, strict=True))
    ]


def test_ours_against_the_ideal() -> None:
    document = figures(
        _moves(OURS, "cold", [0.5, 0.6, 0.7], [0.4, 0.5, 0.9]) + _moves(IDEAL, "cold", [0.5, 0.5, 0.4]), seed=1
    )
    assert document["runs"] == 3
    cold = document["methods"]["cold"]
    assert (cold["total_s_p50"], cold["downtime_s_p50"], cold["ideal_total_s_p50"]) == (0.6, 0.5, 0.5)
    assert cold["lost_replies"] == 0
    assert cold["orchestration_overhead_pct"] == 20.0
    low, high = cold["orchestration_overhead_pct_interval"]
    assert low <= 20.0 <= high
    assert cold["downtime_s_p95"] == pytest.approx(0.86)
    assert set(document["methods"]) == {"cold"}
    json.dumps(document, allow_nan=False)


def test_nothing_measured() -> None:
    assert figures([], seed=1) == {"runs": 0, "methods": {}, "peers": {}}


def test_without_ideal_and_without_client_there_is_no_comparison() -> None:
    document = figures([Measurement(run=0, who=OURS, method="hybrid", total_s=1.0)], seed=1)
    row = document["methods"]["hybrid"]
    assert row["ideal_total_s_p50"] is None
    assert row["orchestration_overhead_pct"] is None
    assert row["downtime_s_p50"] is None
    assert row["lost_replies"] is None


def test_rounds_of_a_phase_count_together() -> None:
    phases = (
        Phase(name="pre-dump", starts_s=0.1, duration_s=0.3, size_bytes=10.0),
        Phase(name="pre-dump", starts_s=0.6, duration_s=0.2, size_bytes=4.0, transferred_bytes=1.0),
        Phase(name="check", starts_s=0.0, duration_s=0.01),
    )
    row = figures([Measurement(run=0, who=OURS, method="pre-copy", total_s=1.0, phases=phases)], seed=1)
    found = row["methods"]["pre-copy"]["phases"]
    assert list(found) == ["check", "pre-dump"]
    assert found["pre-dump"] == {"starts_s": 0.1, "duration_s": 0.5, "size_bytes": 14.0, "transferred_bytes": 1.0}


@given(st.lists(SECONDS, min_size=1, max_size=20), st.integers(0, 2**32 - 1))
def test_a_median_lies_in_its_interval_and_the_seed_decides(totals: list[float], seed: int) -> None:
    moves = _moves(OURS, "cold", totals)
    document = figures(moves, seed=seed, resamples=200)
    assert document == figures(moves, seed=seed, resamples=200)
    row = document["methods"]["cold"]
    low, high = row["total_s_interval"]
    assert round(min(totals), 4) <= low <= high <= round(max(totals), 4)
    assert row["total_s_p50"] <= row["total_s_p95"] + 1e-9


def _document(*, ours: dict[str, float], peer: float | None, ideal: float = 1.0) -> dict[str, object]:
    moves = []
    for method, gap in ours.items():
        moves += _moves(OURS, method, [1.1], [gap]) + _moves(IDEAL, method, [ideal])
    if peer is not None:
        moves += _moves("podman", "checkpoint and restore", [1.0], [peer])
    return figures(moves, seed=1)


def test_targets_that_are_met() -> None:
    verdict = targets(
        _document(ours={"cold": 0.5, "post-copy": 0.29, "hybrid": 0.4}, peer=0.9), memory_bytes=64 * 2**20
    )
    assert {name: row["met"] for name, row in verdict.items()} == {
        "orchestration_overhead_pct": True,
        "downtime_below_peer_s": True,
        "lazy_downtime_64_mib_s": True,
        "lost_replies": True,
    }


def test_targets_that_are_missed() -> None:
    document = _document(ours={"cold": 0.95, "post-copy": 0.31}, peer=0.9, ideal=0.9)
    verdict = targets(document, memory_bytes=64 * 2**20)
    assert verdict["orchestration_overhead_pct"]["met"] is False
    assert verdict["downtime_below_peer_s"]["met"] is False
    assert verdict["lazy_downtime_64_mib_s"]["met"] is False


def test_what_was_not_measured_is_not_met_and_not_missed() -> None:
    verdict = targets(_document(ours={"cold": 0.5}, peer=None), memory_bytes=32 * 2**20)
    assert verdict["downtime_below_peer_s"]["met"] is None
    assert verdict["lazy_downtime_64_mib_s"]["met"] is None
    assert {str(m) for m in MigrationMethod} >= set(verdict["lost_replies"]["figure"])
