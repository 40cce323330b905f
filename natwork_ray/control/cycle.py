"""One turn of the loop: sample, judge, decide, act, report.

`LoopCycle` is written against four small Protocols, so the same turn runs in one process (benchmarks, tests) and across
Ray actors (agents/supervisor.py). It keeps nothing that a restart would miss: what is under way is asked of the control
service, and events carry ids made from time and key, so that a turn repeated after a crash changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from natwork_ray.control.courier import Control as Control
from natwork_ray.control.courier import Courier
from natwork_ray.control.courier import Hands as Hands
from natwork_ray.control.events import Event, TopologyObserved, VerdictsReached
from natwork_ray.control.service_moves import ServiceHands
from natwork_ray.domain.actions import ActionOutcome
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict
from natwork_ray.domain.decisions import Decision
from natwork_ray.domain.telemetry import METRICS, TelemetryWindow
from natwork_ray.domain.topology import Topology
from natwork_ray.ports import Orchestrator, TelemetrySource

# Kinds for which knowing the senders can change the decision.
_FLOW_KINDS = frozenset({AnomalyKind.UNKNOWN, AnomalyKind.TRAFFIC_SPIKE, AnomalyKind.STEP_LOAD})


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
    ) -> None:
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
        judgement = replace(judgement, verdicts=await self._with_evidence(window, there, at_s))
        event = VerdictsReached(
            id=f"verdicts@{at_s:.3f}",
            at_s=at_s,
            scanned=len(window.containers) - len(judgement.degraded),
            verdicts=judgement.verdicts,
            degraded=judgement.degraded,
        )
        *_, answer = await self._control.submit((*self._news_of(topology, at_s), event))
        step = answer.unwrap()
        self._told = topology
        # Always asked: what a crash, an agent that was away or a person's approval left there is delivered now.
        outcomes: tuple[ActionOutcome, ...] = ()
        if deliver:
            outcomes = await self.courier.carry_out(await self._control.outbox(), topology, at_s)
        return Turn(at_s, event.scanned, judgement, step.decisions, outcomes, topology)

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

    async def _with_evidence(
        self, window: TelemetryWindow, verdicts: tuple[AnomalyVerdict, ...], at_s: float
    ) -> tuple[AnomalyVerdict, ...]:
        """Add the newest sample, and for kinds that traffic may explain, who sends it."""
        if not verdicts:
            return ()
        asked = [v.container for v in verdicts if v.kind in _FLOW_KINDS]
        flows = await self._telemetry.flows(asked, at_s=at_s) if asked else {}
        row = {name: i for i, name in enumerate(window.containers)}
        return tuple(
            replace(
                v,
                flows=tuple(flows.get(v.container, ()))[:5],
                observed={
                    str(m): float(x)
                    for m, x in zip(METRICS, window.values[row[v.container], -1], strict=True)
                    if np.isfinite(x)
                },
            )
            for v in verdicts
        )
