"""When each container of a service begins to move, so that all arrive together (D3.3 section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

from natwork_ray.control.events import PlannedStart
from natwork_ray.domain.migrations import MigrationForecast
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import value


@value
class PlannedMove:
    """One part of a service's migration, and how long it is expected to take."""

    container: str
    source: str
    target: str
    forecast: MigrationForecast


def plan_starts(moves: Sequence[PlannedMove], topology: Topology) -> tuple[PlannedStart, ...]:
    """Start times, from the order on: the longest begins at once, the others so that they end with it."""
    longest_s = max((m.forecast.total_p50_s for m in moves), default=0.0)
    return tuple(PlannedStart(container=m.container, starts_s=longest_s - m.forecast.total_p50_s) for m in moves)
