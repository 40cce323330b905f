"""The prediction behind a planned move agrees with the published equations and grows with what is moved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natwork_ray.control.moving import LearntMoves, LearntMovesLater, predict_move, typical_load
from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.errors import PreconditionError
from natwork_ray.limi.durations import best_method, predict_p95, typical_inputs
from natwork_ray.limi.selection import MethodSelector
from natwork_ray.limi.selector_file import read_selector

MIB = 2.0**20


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rss_mib=st.floats(1, 8192), bandwidth=st.floats(1e6, 1.25e9), replicas=st.integers(1, 8))
def test_it_is_the_best_method_and_its_95th_percentile(
    world: Any, rss_mib: float, bandwidth: float, replicas: int
) -> None:
    container = replace(world.container("c"), replicas=replicas)
    predicted = predict_move(container, rss_bytes=rss_mib * MIB, bandwidth_bytes_per_s=bandwidth)
    inputs = typical_inputs(rss_bytes=rss_mib * MIB, replicas=replicas, bandwidth_bytes_per_s=bandwidth)
    assert predicted.method in MigrationMethod
    assert predicted.method is best_method(inputs).method
    assert predicted.downtime_p95_s == predict_p95(predicted.method, inputs).downtime_s
    # A plan on the 95th percentile is never rosier than the median.
    assert predicted.downtime_p95_s >= best_method(inputs).downtime_s > 0
    assert predicted.total_s >= best_method(inputs).downtime_s


def test_more_memory_takes_longer(world: Any) -> None:
    times = [
        predict_move(world.container("c"), rss_bytes=size * MIB, bandwidth_bytes_per_s=1.25e8).total_s
        for size in (16, 64, 256, 1024)
    ]
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_a_faster_link_is_no_slower(world: Any) -> None:
    slow, fast = (
        predict_move(world.container("c"), rss_bytes=512 * MIB, bandwidth_bytes_per_s=rate) for rate in (1e7, 1e9)
    )
    assert fast.total_s < slow.total_s
    assert fast.downtime_p95_s == pytest.approx(min(fast.downtime_p95_s, slow.downtime_p95_s))


def test_learnt_moves_are_those_of_the_selector(world: Any, selector: MethodSelector) -> None:
    container = world.container("c")
    predict = LearntMoves(selector, weight=0.2)
    for size in (20, 80, 300):
        load = typical_load(container, rss_bytes=size * MIB, bandwidth_bytes_per_s=1.2e8)
        learnt = predict(container, rss_bytes=size * MIB, bandwidth_bytes_per_s=1.2e8)
        assert learnt.method in MigrationMethod
        assert 0 < learnt.downtime_p95_s < 10
        equations = predict_move(container, rss_bytes=size * MIB, bandwidth_bytes_per_s=1.2e8)
        # Trained on the laboratory, whose laws the equations share: near each other, and not the same.
        assert learnt.total_s == pytest.approx(equations.total_s, rel=0.5)
        assert learnt != equations
        assert load.memory_bytes == size * MIB * container.replicas


def test_the_weight_decides_what_a_learnt_move_is_for(world: Any, selector: MethodSelector) -> None:
    quick, gentle = (
        LearntMoves(selector, weight=w)(world.container("c"), rss_bytes=300 * MIB, bandwidth_bytes_per_s=1.2e8)
        for w in (1.0, 0.0)
    )
    assert quick.total_s < gentle.total_s
    assert quick.downtime_p95_s > gentle.downtime_p95_s


def test_beyond_what_was_seen_the_equations_answer(world: Any, selector: MethodSelector) -> None:
    far = {"rss_bytes": 64 * 1024 * MIB, "bandwidth_bytes_per_s": 1.2e8}
    assert LearntMoves(selector)(world.container("c"), **far) == predict_move(world.container("c"), **far)


def test_a_limit_that_was_never_seen_is_no_reason_to_do_without(world: Any, selector: MethodSelector) -> None:
    usual, huge = world.container("c"), replace(world.container("c"), cpu_limit_cores=64.0)
    near = {"rss_bytes": 100 * MIB, "bandwidth_bytes_per_s": 1.2e8}
    found = LearntMoves(selector)(huge, **near)
    assert found != predict_move(huge, **near)
    assert found.total_s == pytest.approx(LearntMoves(selector)(usual, **near).total_s, rel=0.5)


@pytest.fixture(scope="module")
def selector() -> MethodSelector:
    return read_selector()[0]


def test_models_are_read_when_first_asked(world: Any, selector: MethodSelector) -> None:
    asked = {"rss_bytes": 200 * MIB, "bandwidth_bytes_per_s": 1.2e8}
    assert LearntMovesLater(None)(world.container("c"), **asked) == LearntMoves(selector)(world.container("c"), **asked)


def test_a_named_file_has_to_be_there_and_missing_shipped_models_are_told(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    container, asked = world.container("c"), {"rss_bytes": 200 * MIB, "bandwidth_bytes_per_s": 1.2e8}
    with pytest.raises(PreconditionError, match="absent"):
        LearntMovesLater(tmp_path / "absent.json")(container, **asked)
    monkeypatch.setattr("natwork_ray.control.moving.PACKAGED_SELECTOR", tmp_path / "gone.json")
    assert LearntMovesLater(None)(container, **asked) == predict_move(container, **asked)
    assert "the equations choose" in caplog.text
