"""Migrations of one service, carried out as a whole: who belongs together, by which schedule, and who conducts them.

Each instruction carries what its part of the schedule was made from (`Migrate.load`, `forecast`, `together`), so that
whoever has all instructions of a service, and knows the nodes, has the schedule: nothing else need be kept.

`ConductedMoves` runs it (`natwork_ray.limi.conduct`) against agents somewhere else: it begins each migration when its
time has come, hears from each agent how far it is, and releases gates. It holds nothing that must outlive it. If it
dies, the agents wait for a while and then decide by themselves (`natwork_ray.limi.holding`); if the instructions are
delivered again before that, the new conductor takes up who has begun, and goes on.

    outcomes = await ConductedMoves(execute, agents, clock, backend=Backend.REAL).move_together(instructions, topology)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from natwork_ray.control.api import GateAgents
from natwork_ray.domain.actions import ActionOutcome, Instruction, Migrate
from natwork_ray.domain.migrations import MigrationOutlook, MigrationRecord, MigrationState
from natwork_ray.domain.phases import Gate, MigrationMethod
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import Backend
from natwork_ray.errors import NatworkError, PreconditionError
from natwork_ray.limi.conduct import Begin, Command, Reached, ScheduleEvent, ScheduleRun, WakeAt
from natwork_ray.limi.service_driver import Escort, carry_out
from natwork_ray.limi.service_members import plan_service
from natwork_ray.limi.service_plan import MigrationPlan, Milestone, ScheduleRequest
from natwork_ray.ports import Clock

# How long a question for news is left open: well below what an agent waits for a silent conductor.
NEWS_S = 1.0
_PAUSE_S = 0.01  # before an agent is asked again that knows of nothing yet
_TROUBLE_PAUSE_S = 0.2

_log = logging.getLogger(__name__)


class ServiceHands(Protocol):
    """Whoever moves the containers of a service together."""

    async def move_together(self, instructions: Sequence[Migrate], topology: Topology) -> tuple[ActionOutcome, ...]:
        """Carry all of them out, idempotently by their keys; one outcome for each, in their order."""
        ...


def deliveries(instructions: Sequence[Instruction]) -> tuple[tuple[Instruction, ...], ...]:
    """What is delivered as one: the migrations of a service, and every other instruction by itself."""
    groups: dict[str, list[Instruction]] = {}
    for i in instructions:
        together = i.together if isinstance(i, Migrate) else None
        groups.setdefault(f"service {together.id}" if together else f"key {i.key}", []).append(i)
    return tuple(tuple(group) for group in groups.values())


def schedule_of(instructions: Sequence[Migrate], topology: Topology) -> tuple[ScheduleRequest, MigrationPlan]:
    """The schedule by which a service's migrations were ordered.

    Members that have moved since are planned where they came from.

    Raises:
        PreconditionError: an instruction lacks what it needs.
        NotFoundError: a container or a node is not in the topology, as while it is being restored.
        RefusedError: the nodes have no room, in whatever order.
    """
    outlooks = []
    sources = {i.container: i.source for i in instructions}
    together = instructions[0].together if instructions else None
    for i in instructions:
        if together is None or i.together != together or i.forecast is None:
            raise PreconditionError(f"{i.key} is no part of a service's schedule", hint="deliver it by itself")
        outlooks.append(
            MigrationOutlook(
                container=i.container,
                source=i.source,
                target=i.target,
                backend=Backend.REAL,  # of no concern to a plan
                weight=0.0,
                load=i.load,
                forecasts=(i.forecast,),
                chosen=i.forecast.method,
                chosen_by=i.chosen_by,
                reason="",
            )
        )
    if together is None:
        raise PreconditionError("no migrations to plan", hint="give those of a service")
    before = replace(
        topology, containers=tuple(replace(c, node=sources.get(c.name, c.node)) for c in topology.containers)
    )
    return plan_service(together.service, outlooks, before, gates=together.gates, on_failure=together.on_failure)


class ConductedMoves:
    """`ServiceHands` over agents that hold their migrations at gates.

    Args:
        execute: delivers one instruction to the agent of its source, and waits for its outcome.
        gates: the agents as they are asked and released while they work.
        clock: any that goes forward; only differences count.
        backend: of the outcomes of members that are never begun.
    """

    def __init__(
        self,
        execute: Callable[[Migrate], Awaitable[ActionOutcome]],
        gates: GateAgents,
        clock: Clock,
        *,
        backend: Backend,
    ) -> None:
        self._execute, self._gates, self._clock, self._backend = execute, gates, clock, backend

    async def move_together(self, instructions: Sequence[Migrate], topology: Topology) -> tuple[ActionOutcome, ...]:
        """See `ServiceHands`.

        Raises:
            NatworkError: as `schedule_of`; or of a member whose outcome nobody knows. All may be delivered again.
        """
        request, plan = schedule_of(instructions, topology)
        _log.info("%s: %s", request.service, "; ".join(plan.reasons))
        by_name = {i.container: i for i in instructions}
        known = await asyncio.gather(
            *(self._gates.news(i.key, source=i.source, after=0, patience_s=0.0) for i in instructions)
        )
        begun = [i.container for i, news in zip(instructions, known, strict=True) if news.known]
        conductor = Resumed(ScheduleRun(request, plan), begun)
        outcomes: dict[str, ActionOutcome] = {}

        async def move(name: str, escort: Escort) -> MigrationRecord:
            outcome = outcomes[name] = await self._move(by_name[name], escort)
            return outcome.record or _as_refused(by_name[name], outcome)

        await carry_out(conductor, tuple(by_name), move, clock=self._clock)
        at_s = self._clock.now_s()
        return tuple(outcomes.get(i.container) or never_begun(i, at_s, self._backend) for i in instructions)

    async def _move(self, i: Migrate, escort: Escort) -> ActionOutcome:
        relays = [
            asyncio.create_task(self._tell(i, escort)),
            asyncio.create_task(self._pass_abort(i, escort)),
            *(asyncio.create_task(self._pass_release(i, escort, gate)) for gate in escort.gates),
        ]
        for relay in relays:
            relay.add_done_callback(_log_failure)
        try:
            return await self._execute(i)
        finally:
            for relay in relays:
                relay.cancel()
            await asyncio.gather(*relays, return_exceptions=True)

    async def _tell(self, i: Migrate, escort: Escort) -> None:
        """Report each milestone of the agent's to the conductor, until cancelled."""
        seen = 0
        while True:
            try:
                news = await self._gates.news(i.key, source=i.source, after=seen, patience_s=NEWS_S)
            except NatworkError as error:
                _log.info("no news of %s: %s", i.key, error)
                await asyncio.sleep(_TROUBLE_PAUSE_S)
                continue
            fresh = news.milestones[seen:]
            for milestone in fresh:
                escort.tell(i.container, milestone)
            seen += len(fresh)
            if not fresh:
                await asyncio.sleep(_PAUSE_S)

    async def _pass_release(self, i: Migrate, escort: Escort, gate: Gate) -> None:
        await escort.opened(gate)
        await self._insist(lambda: self._gates.release(i.key, gate, source=i.source), f"release of {i.key}")

    async def _pass_abort(self, i: Migrate, escort: Escort) -> None:
        reason = await asyncio.shield(escort.cancelled)
        await self._insist(lambda: self._gates.cancel(i.key, reason, source=i.source), f"cancelling {i.key}")

    async def _insist(self, ask: Callable[[], Awaitable[None]], what: str) -> None:
        while True:
            try:
                await ask()
            except NatworkError as error:
                _log.info("%s: %s", what, error)
                await asyncio.sleep(_TROUBLE_PAUSE_S)
            else:
                return


class Resumed:
    """A schedule some of whose members had begun before: they are taken up at once, whatever the plan says."""

    def __init__(self, run: ScheduleRun, begun: Sequence[str]) -> None:
        self._run, self._begun = run, tuple(begun)

    @property
    def gates(self) -> frozenset[Gate]:
        """See `Conductor`."""
        return self._run.gates

    def handle(self, event: ScheduleEvent) -> tuple[Command, ...]:
        """See `Conductor`."""
        begun, self._begun = self._begun, ()
        commands: list[Command] = [Begin(container=name) for name in begun]
        for name in begun:
            live = Reached(at_s=event.at_s, container=name, milestone=Milestone.LIVE)
            commands += [c for c in self._run.handle(live) if c not in commands and not isinstance(c, WakeAt)]
        commands += [c for c in self._run.handle(event) if c not in commands]
        return tuple(commands)


def never_begun(instruction: Migrate, at_s: float, backend: Backend) -> ActionOutcome:
    """The outcome of a member that was not begun any more."""
    return ActionOutcome(
        key=instruction.key,
        done=False,
        started_at_s=at_s,
        finished_at_s=at_s,
        downtime_s=0.0,
        backend=backend,
        detail=f"{instruction.container} stayed on {instruction.source}",
        error="not begun: another container of its service failed, and the service moves as a whole",
    )


def _as_refused(i: Migrate, outcome: ActionOutcome) -> MigrationRecord:
    """What a schedule has to know of a migration that could not begin."""
    return MigrationRecord(
        key=i.key,
        container=i.container,
        source=i.source,
        target=i.target,
        method=i.method or MigrationMethod.COLD,
        backend=outcome.backend,
        state=MigrationState.REFUSED,
        started_at_s=outcome.started_at_s,
        total_s=0.0,
        downtime_s=0.0,
        runs_on=i.source,
        error=outcome.error,
    )


def _log_failure(task: asyncio.Task[None]) -> None:
    """A relay that fails leaves its member to the agent's own limits; it must not do so unseen."""
    if not task.cancelled() and (error := task.exception()):
        _log.error("a relay of a service's schedule failed", exc_info=error)
