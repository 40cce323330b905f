"""Looking ahead beside the verdicts: forecasts of every container, what they advise, and what of it a turn keeps.

D3.3 section 4.2: when an anomaly is likely, resilience goes first; when trends are stable, energy does. Forecasts are
an input of the decision and never a condition of it: without a model, or with one that does not answer, the loop goes
on and its outlook says why it sees nothing.

Bounded: an event keeps the forecasts of flagged containers, which are those that a decision of the turn may be about,
and a summary of all others with the most pressing advice.

Left out: acting on advice before any alarm. The advice is shown; a forecast alone moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from natwork_ray.domain.forecasts import LoadForecast, PlacementAdvice
from natwork_ray.domain.outlook import MOST_ADVISED, MOST_NAMED, LoadOutlook
from natwork_ray.domain.telemetry import FlowShare, NodeUsage, TelemetryWindow
from natwork_ray.domain.topology import Topology
from natwork_ray.errors import NatworkError
from natwork_ray.placement.policy import Circumstances, advise_all


class Forecasting(Protocol):
    """The forecaster, wherever it runs."""

    async def forecast(self, window: TelemetryWindow) -> tuple[LoadForecast, ...]:
        """What is expected of every container of the window; several metrics each."""
        ...


@dataclass(frozen=True)
class Foresight:
    """What one turn expects. Empty with an outlook that says why, where nothing could be forecast."""

    forecasts: Mapping[str, tuple[LoadForecast, ...]] = field(default_factory=dict)
    advice: Mapping[str, PlacementAdvice] = field(default_factory=dict)
    outlook: LoadOutlook | None = None

    def kept_for(self, flagged: Sequence[str]) -> tuple[tuple[LoadForecast, ...], tuple[PlacementAdvice, ...]]:
        """Forecasts and advice of the containers that a decision of this turn may be about."""
        return (
            tuple(f for name in flagged for f in self.forecasts.get(name, ())),
            tuple(self.advice[name] for name in flagged if name in self.advice),
        )


async def look_ahead(
    forecaster: Forecasting, window: TelemetryWindow, circumstances: Mapping[str, Circumstances]
) -> Foresight:
    """Forecast and advise; whatever goes wrong is the outlook's `degraded`, not the turn's end."""
    try:
        found = await forecaster.forecast(window)
        advised = advise_all(found, circumstances)
    except NatworkError as error:
        return Foresight(outlook=LoadOutlook(degraded=f"no forecasts: {error.what}"))
    forecasts: dict[str, tuple[LoadForecast, ...]] = {}
    for one in found:
        forecasts[one.container] = (*forecasts.get(one.container, ()), one)
    advice = {a.container: a for a in advised}
    return Foresight(forecasts, advice, _outlook(forecasts, advice))


def circumstances(
    topology: Topology, usage: Sequence[NodeUsage], flows: Mapping[str, Sequence[FlowShare]]
) -> dict[str, Circumstances]:
    """What advice has to know of each container besides its forecasts."""
    pressed = {u.node: u.cpu_fraction for u in usage}
    return {
        c.name: Circumstances(
            memory_limit_bytes=c.memory_limit_bytes,
            node_cpu_fraction=pressed.get(c.node),
            dominant_source_share=max((f.request_share for f in flows.get(c.name, ())), default=0.0),
        )
        for c in topology.containers
    }


def _outlook(forecasts: Mapping[str, tuple[LoadForecast, ...]], advice: Mapping[str, PlacementAdvice]) -> LoadOutlook:
    by_likelihood = sorted(advice.values(), key=lambda a: (-a.likelihood, a.container))
    resilience = [a.container for a in by_likelihood if a.stance == "resilience"]
    pressing = [a for a in by_likelihood if a.action != "none"]
    rising = [a.container for a in by_likelihood if a.trend == "rising"]
    weak = [f for several in forecasts.values() for f in several if f.degraded]
    why = f"{len({f.container for f in weak})} containers: {weak[0].degraded}" if weak else ""
    return LoadOutlook(
        containers=len(forecasts),
        resilience=tuple(resilience[:MOST_NAMED]),
        rising=tuple(rising[:MOST_NAMED]),
        stable=sum(a.trend == "stable" and a.stance == "energy" for a in advice.values()),
        likelihood=max((f.likelihood for several in forecasts.values() for f in several), default=0.0),
        unnamed=max(len(resilience) - MOST_NAMED, 0) + max(len(rising) - MOST_NAMED, 0),
        advised=tuple(pressing[:MOST_ADVISED]),
        degraded=why,
    )
