"""Forecasts in decisions: sizing, the price of resources, and when they go back."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.control.anticipating import (
    ENERGY_WEIGHT,
    RESILIENT_WEIGHT,
    RESOURCE_WEIGHT,
    TARGET_UTILISATION,
    calm_needed_s,
    replicas_needed,
    resource_weight,
)
from natwork_ray.domain.forecasts import LoadForecast, PlacementAdvice
from natwork_ray.domain.outlook import LoadOutlook
from natwork_ray.domain.telemetry import Metric


def forecast(metric: Metric, upper: float) -> LoadForecast:
    return LoadForecast(
        container="back", service="back", metric=str(metric), at_s=60.0, step_s=10.0, horizons=(1, 10),
        expected=(0.0, upper / 2), lower=(0.0, 0.0), upper=(upper, upper), model="naive", likelihood=0.0,
    )  # fmt: skip


def advice(stance: Any = "energy", trend: Any = "stable") -> PlacementAdvice:
    return PlacementAdvice(
        container="back", at_s=60.0, action="none", stance=stance, likelihood=0.1, trend=trend, reason="because"
    )


def test_replicas_follow_the_upper_edge_of_the_band(world: Any) -> None:
    container = world.container("back", replicas=2)
    sizing = replicas_needed(container, [forecast(Metric.CPU, 1.4)], {})
    assert sizing is not None
    assert sizing.replicas == math.ceil(2 * 1.4 / TARGET_UTILISATION)
    assert "140%" in sizing.reason
    assert "100 s" in sizing.reason


def test_requests_that_grow_need_more_than_a_processor_at_its_limit_says(world: Any) -> None:
    container = world.container("back", replicas=2)
    observed = {str(Metric.CPU): 0.9, str(Metric.THROUGHPUT): 10.0}
    sizing = replicas_needed(container, [forecast(Metric.CPU, 0.9), forecast(Metric.THROUGHPUT, 40.0)], observed)
    assert sizing is not None
    assert sizing.replicas == math.ceil(2 * 0.9 * 4 / TARGET_UTILISATION)
    assert "40.0 requests/s" in sizing.reason


@pytest.mark.parametrize(
    ("forecasts", "observed"),
    [
        ((), {}),
        ((forecast(Metric.MEMORY_RSS, 1e9),), {}),
        ((forecast(Metric.THROUGHPUT, 40.0),), {str(Metric.THROUGHPUT): 10.0}),  # no CPU to scale
        ((forecast(Metric.THROUGHPUT, 40.0),), {str(Metric.CPU): 0.5}),  # nothing comes now
    ],
)
def test_where_load_is_not_forecast_nothing_is_sized(world: Any, forecasts: Any, observed: Any) -> None:
    assert replicas_needed(world.container("back"), forecasts, observed) is None


@given(st.floats(0, 5), st.integers(1, 8))
def test_more_load_never_needs_fewer_replicas(upper: float, replicas: int) -> None:
    from natwork_ray.domain.topology import Container

    container = Container(
        name="c", service="c", network_service="n", slice="s", node="n", replicas=replicas, cpu_limit_cores=1.0,
        memory_limit_bytes=1.0,
    )  # fmt: skip
    small, large = (replicas_needed(container, [forecast(Metric.CPU, u)], {}) for u in (upper, upper + 0.5))
    assert small is not None
    assert large is not None
    assert 1 <= small.replicas <= large.replicas
    # What is asked for carries the upper edge at the target.
    assert replicas * upper / small.replicas <= TARGET_UTILISATION + 1e-6


def test_resilience_makes_resources_cheap_and_stability_dear() -> None:
    weights = [resource_weight(a) for a in (advice("resilience", "rising"), None, advice("energy", "rising"), advice())]
    assert weights == [RESILIENT_WEIGHT, RESOURCE_WEIGHT, RESOURCE_WEIGHT, ENERGY_WEIGHT]


def test_resources_stay_while_trouble_is_likely_and_go_sooner_when_all_is_stable() -> None:
    calm = LoadOutlook(containers=4, stable=3)
    assert calm_needed_s("back", None, 900.0) == 900.0
    assert calm_needed_s("back", calm, 900.0) == 450.0
    assert calm_needed_s("back", LoadOutlook(containers=4, stable=1), 900.0) == 900.0
    assert calm_needed_s("back", LoadOutlook(degraded="no model"), 900.0) == 900.0
    assert calm_needed_s("back", LoadOutlook(containers=4, stable=3, rising=("back",)), 900.0) == 3600.0
    assert calm_needed_s("back", LoadOutlook(containers=4, stable=3, resilience=("back",)), 900.0) == 3600.0
    # Somebody had no room in the lists: it may be this one.
    assert calm_needed_s("back", LoadOutlook(containers=4, stable=3, unnamed=1), 900.0) == 900.0
