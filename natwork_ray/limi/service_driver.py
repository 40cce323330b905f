"""Carries out a service's schedule: the shell between a conductor (`limi.conduct`) and migrations that run at once.

One asyncio task per member. An `Escort` goes with each: it tells the conductor how far the member is, and holds it at
the gates until it is released. It sees a migration through its two performers (`Escort.watch`), so that neither the
migration's state machine nor its driver knows that it is part of a service:

    freeze    held inside the step, before anything is done: the container serves
    restore   held after the dump's transfer and all that runs beside it, before that is reported: for the migration
              nothing was restored yet, so it can still be cancelled
    attach    held inside the address move, before anything is done: the container runs, but cannot be reached

Time comes from the clock, which may be a virtual one.

    >>> records = await carry_out(conductor, ["web", "db"], move, clock=clock)              # doctest: +SKIP

Left out: what happens when the conductor's process dies. A hold then ends with the migration's own time-out for the
step, and the migration goes back or on as after any lost step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from natwork_ray.domain.migrations import MigrationRecord, MigrationState
from natwork_ray.limi.conduct import Abort, Begin, Conductor, Reached, Release, ScheduleEvent, Tick, WakeAt
from natwork_ray.limi.service_plan import Gate, Milestone
from natwork_ray.limi.steps import Step, StepReport, Verb
from natwork_ray.ports import Clock

# Both have to be done to serve; where the address is moved first, nothing is left to hold after the restore.
_ARRIVING = frozenset({Verb.RESTORE, Verb.ADDRESS_MOVE})
# What has to be over before a restore, beside the transfer of the dump.
_BESIDE = frozenset({Verb.VOLUME_TRANSFER, Verb.ADDRESS_DETACH, Verb.PAGE_TUNNEL})


class Performer(Protocol):
    """One side of a migration."""

    async def perform(self, step: Step) -> StepReport:
        """Do a step."""
        ...


@dataclass
class Escort:
    """What goes with one member. `cancelled` is to be given to the migration's driver."""

    container: str
    gates: frozenset[Gate]
    tell: Callable[[str, Milestone], None]
    cancelled: asyncio.Future[str]
    _open: dict[Gate, asyncio.Event] = field(default_factory=lambda: {gate: asyncio.Event() for gate in Gate})
    _told: set[Milestone] = field(default_factory=set)
    _beside: set[int] = field(default_factory=set)
    _done: set[Verb] = field(default_factory=set)
    _beside_over: asyncio.Event = field(default_factory=asyncio.Event)

    def watch(self, performer: Performer) -> Performer:
        """The same performer, seen and held by this escort."""
        return _Watched(performer, self)

    def release(self, gate: Gate) -> None:
        """The member may pass."""
        self._open[gate].set()

    def release_all(self) -> None:
        """Nothing holds it any more: it is on its way back, or over."""
        for event in self._open.values():
            event.set()
        self._beside_over.set()

    async def before(self, step: Step) -> None:
        """Called before a step is done."""
        if step.verb is Verb.FREEZE:
            await self._pass(Gate.FREEZE, Milestone.AT_FREEZE, Milestone.STOPPED)
        elif step.verb is Verb.ADDRESS_MOVE and Verb.RESTORE in self._done:
            await self._pass(Gate.ATTACH, Milestone.AT_ATTACH, Milestone.ATTACHING)
        elif step.verb in _BESIDE:
            self._beside.add(step.number)
            self._beside_over.clear()

    async def after(self, step: Step) -> None:
        """Called when a step is done, and before that is reported."""
        if step.verb in _BESIDE:
            self._beside.discard(step.number)
            if not self._beside:
                self._beside_over.set()
        elif step.verb is Verb.DUMP_TRANSFER:
            if self._beside:
                await self._beside_over.wait()
            await self._pass(Gate.RESTORE, Milestone.AT_RESTORE, Milestone.RESTORING)
        elif step.verb in _ARRIVING:
            self._done.add(step.verb)
            if self._done == _ARRIVING:
                self._say(Milestone.ARRIVED)

    async def _pass(self, gate: Gate, there: Milestone, beyond: Milestone) -> None:
        self._say(there)
        if gate in self.gates and not self.cancelled.done():
            await self._open[gate].wait()
        self._say(beyond)

    def _say(self, milestone: Milestone) -> None:
        # A step that is asked for a second time reaches nothing new.
        if milestone not in self._told:
            self._told.add(milestone)
            self.tell(self.container, milestone)


class _Watched:
    def __init__(self, performer: Performer, escort: Escort) -> None:
        self._performer, self._escort = performer, escort

    async def perform(self, step: Step) -> StepReport:
        await self._escort.before(step)
        report = await self._performer.perform(step)
        await self._escort.after(step)
        return report


Move = Callable[[str, Escort], Awaitable[MigrationRecord]]


async def carry_out(
    conductor: Conductor, containers: Sequence[str], move: Move, *, clock: Clock
) -> dict[str, MigrationRecord]:
    """Let `conductor` move `containers`; the record of each one that was begun.

    `move(container, escort)` has to pass both performers through `escort.watch` and to heed `escort.cancelled`. What it
    raises is raised when all others are over; to the conductor it is a failure.
    """
    return await _Service(conductor, containers, move, clock).run()


class _Service:
    def __init__(self, conductor: Conductor, containers: Sequence[str], move: Move, clock: Clock) -> None:
        self._conductor, self._move, self._clock = conductor, move, clock
        self._loop = asyncio.get_running_loop()
        self._began_s = clock.now_s()
        self._escorts = {
            name: Escort(name, conductor.gates, self._reached, self._loop.create_future()) for name in containers
        }
        self._tasks: dict[str, asyncio.Task[MigrationRecord]] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._closed = False

    async def run(self) -> dict[str, MigrationRecord]:
        """Until nobody runs and no moment is waited for."""
        try:
            self._handle(Tick(at_s=0.0))
            while self._alarm is not None or any(not task.done() for task in self._tasks.values()):
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._closed = True
            if self._alarm is not None:
                self._alarm.cancel()
            for task in self._tasks.values():
                task.cancel()  # harmless for those that are over: only a cancelled run finds others
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        return {name: task.result() for name, task in self._tasks.items()}

    def _now_s(self) -> float:
        return self._clock.now_s() - self._began_s

    def _reached(self, container: str, milestone: Milestone) -> None:
        self._handle(Reached(at_s=self._now_s(), container=container, milestone=milestone))

    def _handle(self, event: ScheduleEvent) -> None:
        if self._closed:
            return
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        for command in self._conductor.handle(event):
            match command:
                case Begin(container=name):
                    self._tasks[name] = asyncio.create_task(self._accompany(name), name=f"move {name}")
                case Release(container=name, gate=gate):
                    self._escorts[name].release(gate)
                case Abort(container=name, reason=reason):
                    escort = self._escorts[name]
                    if not escort.cancelled.done():
                        escort.cancelled.set_result(reason)
                    escort.release_all()
                case WakeAt(at_s=at_s):
                    self._alarm = self._loop.call_later(max(0.0, at_s - self._now_s()), self._wake)

    def _wake(self) -> None:
        self._alarm = None
        self._handle(Tick(at_s=self._now_s()))
        self._changed.set()

    async def _accompany(self, name: str) -> MigrationRecord:
        escort, done = self._escorts[name], False
        try:
            record = await self._move(name, escort)
            done = record.state is MigrationState.MIGRATED
            return record
        finally:
            escort.release_all()
            self._reached(name, Milestone.FINISHED if done else Milestone.FAILED)
            self._changed.set()
