"""Forecasts in decisions: how many replicas the expected load needs, and what goes first, resilience or energy.

D3.3 section 4.2: "When anomaly likelihood is high, the system prioritises resilience; when predictions show stable
trends, the system can favour energy-efficient scheduling." Here that is the price of extra resources when options are
weighed, and how long what was added is kept. Pure functions.

Replicas are sized by the upper edge of the 90 % band at the farthest horizon, not by the expected value: too few cost
users, one too many costs a little energy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from natwork_ray.domain.forecasts import LoadForecast, PlacementAdvice
from natwork_ray.domain.outlook import LoadOutlook
from natwork_ray.domain.telemetry import Metric
from natwork_ray.domain.topology import Container

TARGET_UTILISATION = 0.7  # of a container's CPU limit, at the upper edge of what is expected
RESOURCE_WEIGHT = 0.2  # price of taking all free cores of a node, in units of benefit
RESILIENT_WEIGHT = 0.05
ENERGY_WEIGHT = 0.35
ENERGY_CALM = 0.5  # of the calm time after which added resources go back
RESILIENT_CALM = 4.0


@dataclass(frozen=True)
class Sizing:
    """Replicas that the expected load needs, and from what that follows."""

    replicas: int
    reason: str


def replicas_needed(
    container: Container, forecasts: Sequence[LoadForecast], observed: Mapping[str, float]
) -> Sizing | None:
    """How many replicas carry the load that is expected; None where neither CPU nor requests are forecast.

    CPU utilisation is capped at the limit, so that a container at its limit needs at least what its CPU says; how much
    more follows from how its requests are expected to grow.

    Args:
        container: as it is now.
        forecasts: of this container.
        observed: its newest sample by metric name.
    """
    cpu_now = observed.get(Metric.CPU)
    found: list[Sizing] = []
    for forecast in forecasts:
        upper, ahead_s = forecast.upper[-1], forecast.horizons[-1] * forecast.step_s
        if forecast.metric == Metric.CPU:
            needed = container.replicas * upper / TARGET_UTILISATION
            found.append(Sizing(_whole(needed), f"CPU is expected to reach up to {upper:.0%} in {ahead_s:.0f} s"))
        elif forecast.metric == Metric.THROUGHPUT and cpu_now is not None:
            requests = observed.get(Metric.THROUGHPUT, 0.0)
            if requests > 0:
                needed = container.replicas * cpu_now * (upper / requests) / TARGET_UTILISATION
                reason = f"up to {upper:.1f} requests/s are expected in {ahead_s:.0f} s, {requests:.1f} come now"
                found.append(Sizing(_whole(needed), reason))
    return max(found, key=lambda s: s.replicas, default=None)


def _whole(needed: float) -> int:
    return max(1, math.ceil(needed - 1e-9))


def resource_weight(advice: PlacementAdvice | None) -> float:
    """What extra cores cost when options are weighed: little while an anomaly is likely, more while all is stable."""
    if advice is None:
        return RESOURCE_WEIGHT
    if advice.stance == "resilience":
        return RESILIENT_WEIGHT
    return ENERGY_WEIGHT if advice.trend == "stable" else RESOURCE_WEIGHT


def calm_needed_s(name: str, outlook: LoadOutlook | None, calm_s: float) -> float:
    """How long a container has to be calm before what was added goes back.

    Longer while resilience goes first for it or its load is expected to rise, though not for ever: some containers are
    always near their limit. Sooner when most of what was forecast is stable.
    """
    if outlook is None or not outlook.containers:
        return calm_s
    if name in outlook.resilience or name in outlook.rising:
        return calm_s * RESILIENT_CALM
    settled = outlook.unnamed == 0
    return calm_s * ENERGY_CALM if settled and outlook.stable * 2 >= outlook.containers else calm_s
