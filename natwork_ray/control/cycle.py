"""One turn of the loop: sample, judge, decide, act, report.

`LoopCycle` is written against small Protocols, so the same turn runs in one process (benchmarks, tests) and across Ray
actors (agents/supervisor.py). It keeps nothing that a restart would miss: what is under way is asked of the control
service, and events carry ids made from time and key, so that a turn repeated after a crash changes nothing. The history
that flows are compared with is asked of the telemetry source each time, for the same reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from natwork_ray.control.courier import Control as Control
from natwork_ray.control.courier import Courier
from natwork_ray.control.courier import Hands as Hands
from natwork_ray.control.events import Event, TopologyObserved, VerdictsReached
from natwork_ray.control.foresight import Forecasting as Forecasting
from natwork_ray.control.foresight import Foresight, circumstances, look_ahead
from natwork_ray.control.service_moves import ServiceHands
from natwork_ray.dependencies.flows import LEAST, suspects
from natwork_ray.domain.actions import ActionOutcome
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict
from natwork_ray.domain.decisions import Decision
from natwork_ray.domain.flow_alerts import SuspectSource
from natwork_ray.domain.outlook import LoadOutlook
from natwork_ray.domain.telemetry import METRICS, FlowShare, TelemetryWindow
from natwork_ray.domain.topology import Topology
from natwork_ray.errors import InputError
from natwork_ray.ports import Orchestrator, TelemetrySource

# Kinds for which knowing the senders can change the decision.
_FLOW_KINDS = frozenset({AnomalyKind.UNKNOWN, AnomalyKind.TRAFFIC_SPIKE, AnomalyKind.STEP_LOAD})
# Seconds before a verdict at which its container's flows are looked at for what is usual. Not the minutes just before:
# they may belong to the same attack, of which the alarm is late.
FLOW_HISTORY_S = (600.0, 900.0, 1200.0, 1800.0, 2400.0)


@dataclass(frozen=True)
class Judgement:
    """What the detector says of one window: verdicts for flagged containers, and who could not be judged."""

    verdicts: tuple[AnomalyVerdict, ...]
    degraded: tuple[str, ...]


class Judge(Protocol):
    """The two-stage detector, wherever it runs."""

    async def judge(self, window: TelemetryWindow) -> Judgement:
        """Verdicts for the newest sample of every container of the window."""
        ...


@dataclass(frozen=True)
class Turn:
    """What one turn brought."""

    at_s: float
    scanned: int
    judgement: Judgement
    decisions: tuple[Decision, ...]
    outcomes: tuple[ActionOutcome, ...]
    topology: Topology
    outlook: LoadOutlook | None = None


class LoopCycle:
    """Turns the loop against one world."""

    def __init__(
        self,
        *,
        telemetry: TelemetrySource,
        judge: Judge,
        control: Control,
        orchestrator: Orchestrator,
        node_hands: Mapping[str, Hands],
        cluster_hands: Hands,
        window_length: int,
        service_hands: ServiceHands | None = None,
        forecaster: Forecasting | None = None,
        forecast_length: int | None = None,
    ) -> None:
        """`forecaster` looks at windows of `forecast_length` samples (default: those that the judge sees).

        Without one the loop only looks back.
        """
        self._telemetry = telemetry
        self._judge = judge
        self._control = control
        self._orchestrator = orchestrator
        self.courier = Courier(
            control=control,
            orchestrator=orchestrator,
            node_hands=node_hands,
            cluster_hands=cluster_hands,
            service_hands=service_hands,
        )
        self._window_length = window_length
        self._forecaster = forecaster
        self._forecast_length = forecast_length or window_length
        self._told: Topology | None = None

    async def turn(self, at_s: float, *, deliver: bool = True) -> Turn:
        """Judge the windows that end at `at_s`, decide, and carry out what was issued.

        With `deliver` false what was issued stays in the outbox, for a courier that keeps delivering.
        """
        window = await self._telemetry.window(end_s=at_s, length=self._window_length)
        judgement = await self._judge.judge(window)
        topology = await self._orchestrator.topology()
        # A container that has gone since the window was taken is nobody to act upon.
        there = tuple(v for v in judgement.verdicts if topology.container(v.container) is not None)
        flows = await self._flows(there, at_s)
        judgement = replace(judgement, verdicts=_with_evidence(window, there, flows))
        flagged = tuple(v.container for v in judgement.verdicts)
        foresight = await self._look_ahead(window, topology, flows, at_s)
        forecasts, advice = foresight.kept_for(flagged)
        event = VerdictsReached(
            id=f"verdicts@{at_s:.3f}",
            at_s=at_s,
            scanned=len(window.containers) - len(judgement.degraded),
            verdicts=judgement.verdicts,
            degraded=judgement.degraded,
            suspects=await self._suspects(flows, at_s),
            forecasts=forecasts,
            advice=advice,
            outlook=foresight.outlook,
        )
        *_, answer = await self._control.submit((*self._news_of(topology, at_s), event))
        step = answer.unwrap()
        self._told = topology
        # Always asked: what a crash, an agent that was away or a person's approval left there is delivered now.
        outcomes: tuple[ActionOutcome, ...] = ()
        if deliver:
            outcomes = await self.courier.carry_out(await self._control.outbox(), topology, at_s)
        return Turn(at_s, event.scanned, judgement, step.decisions, outcomes, topology, event.outlook)

    async def drain(self, at_s: float) -> tuple[ActionOutcome, ...]:
        """Carry out whatever waits in the outbox: after a restart, or after an approval."""
        pending = await self._control.outbox()
        if not pending:
            return ()
        return await self.courier.carry_out(pending, await self._orchestrator.topology(), at_s)

    def _news_of(self, topology: Topology, at_s: float) -> tuple[Event, ...]:
        """Tell the loop what runs where, when that is not what it was told last.

        What an action changes is seen when it has taken effect, which may be turns after it was reported.
        """
        if topology == self._told:
            return ()
        return (TopologyObserved(id=f"topology@{at_s:.3f}", at_s=at_s, topology=topology),)

    async def _look_ahead(
        self, window: TelemetryWindow, topology: Topology, flows: Mapping[str, tuple[FlowShare, ...]], at_s: float
    ) -> Foresight:
        if self._forecaster is None:
            return Foresight()
        if self._forecast_length > window.length:
            # A young world has no longer past; the forecaster says that its forecasts are degraded.
            with contextlib.suppress(InputError):
                window = await self._telemetry.window(end_s=at_s, length=self._forecast_length)
        usage = await self._telemetry.node_usage(at_s=at_s)
        return await look_ahead(self._forecaster, window, circumstances(topology, usage, flows))

    async def _flows(self, verdicts: Sequence[AnomalyVerdict], at_s: float) -> Mapping[str, tuple[FlowShare, ...]]:
        """Who sends to the containers whose resources went wrong, at that moment."""
        asked = [v.container for v in verdicts if v.kind is not AnomalyKind.FALSE_POSITIVE]
        return await self._telemetry.flows(asked, at_s=at_s) if asked else {}

    async def _suspects(
        self, now: Mapping[str, tuple[FlowShare, ...]], at_s: float
    ) -> dict[str, tuple[SuspectSource, ...]]:
        """Flow data joined with the resource verdicts: whose share of a flagged container's traffic jumped."""
        asked = [
            name for name, flows in now.items() if any(max(f.request_share, f.failed_share) >= LEAST for f in flows)
        ]
        earlier: list[Mapping[str, tuple[FlowShare, ...]]] = []
        for ago_s in FLOW_HISTORY_S if asked else ():
            try:
                earlier.append(await self._telemetry.flows(asked, at_s=at_s - ago_s))
            except InputError:
                break  # the source does not reach back that far
        found = {name: suspects(now[name], [moment.get(name, ()) for moment in earlier]) for name in asked}
        return {name: sources for name, sources in found.items() if sources}


def _with_evidence(
    window: TelemetryWindow, verdicts: Sequence[AnomalyVerdict], flows: Mapping[str, tuple[FlowShare, ...]]
) -> tuple[AnomalyVerdict, ...]:
    """Add the newest sample, and for kinds that traffic may explain, who sends it."""
    row = {name: i for i, name in enumerate(window.containers)}
    return tuple(
        replace(
            v,
            flows=tuple(flows.get(v.container, ()))[:5] if v.kind in _FLOW_KINDS else (),
            observed={
                str(m): float(x)
                for m, x in zip(METRICS, window.values[row[v.container], -1], strict=True)
                if np.isfinite(x)
            },
        )
        for v in verdicts
    )
