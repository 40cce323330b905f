"""Carries out a service's schedule: the shell between a conductor (`limi.conduct`) and migrations that run at once.

One asyncio task per member. An `Escort` goes with each: it tells the conductor how far the member is, and holds it at
the gates until it is released. `Escort.before` is what the migration's driver awaits before each step (`drive`), so
that a held step has not begun, and no time-out of its own runs:

    freeze    all that can be done live is done; the container serves
    restore   all that a restore needs has arrived and is verified; nothing was restored yet, so it can be cancelled
    attach    before the address move: the container runs, but cannot be reached; its port holds what is sent to it

Time comes from the clock, which may be a virtual one.

    >>> records = await carry_out(conductor, ["web", "db"], move, clock=clock)              # doctest: +SKIP

Left out: what happens when the conductor's process dies. The migration is then taken up from its journal, and goes on
without gates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from natwork_ray.domain.migrations import MigrationRecord, MigrationState
from natwork_ray.limi.conduct import Abort, Begin, Conductor, Reached, Release, ScheduleEvent, Tick, WakeAt
from natwork_ray.limi.service_plan import Gate, Milestone
from natwork_ray.limi.steps import Step, Verb
from natwork_ray.ports import Clock

# What is asked for as soon as the address has moved, by method.
_AFTER_ARRIVAL = frozenset({Verb.PAGES_FETCHED, Verb.PAGES_SERVED, Verb.SETTLE_SOURCE, Verb.SETTLE_TARGET})


@dataclass
class Escort:
    """What goes with one member. `before` and `cancelled` are to be given to the migration's driver."""

    container: str
    gates: frozenset[Gate]
    tell: Callable[[str, Milestone], None]
    cancelled: asyncio.Future[str]
    _open: dict[Gate, asyncio.Event] = field(default_factory=lambda: {gate: asyncio.Event() for gate in Gate})
    _told: set[Milestone] = field(default_factory=set)

    def release(self, gate: Gate) -> None:
        """The member may pass."""
        self._open[gate].set()

    async def opened(self, gate: Gate) -> None:
        """Wait until the gate was released, for a member that is held elsewhere."""
        await self._open[gate].wait()

    def abort(self, reason: str) -> None:
        """The member has to go back. Where it no longer can, it is not held either."""
        if not self.cancelled.done():
            self.cancelled.set_result(reason)
        # A hold before freeze or restore is ended by the driver, which heeds the cancellation there.
        self.release(Gate.ATTACH)

    async def before(self, step: Step) -> None:
        """Awaited before a step is handed out."""
        if step.verb is Verb.FREEZE:
            await self._pass(Gate.FREEZE, Milestone.AT_FREEZE, Milestone.STOPPED)
        elif step.verb is Verb.RESTORE:
            await self._pass(Gate.RESTORE, Milestone.AT_RESTORE, Milestone.RESTORING)
        elif step.verb is Verb.ADDRESS_MOVE:
            await self._pass(Gate.ATTACH, Milestone.AT_ATTACH, Milestone.ATTACHING)
        elif step.verb in _AFTER_ARRIVAL:
            self._say(Milestone.ARRIVED)

    async def _pass(self, gate: Gate, there: Milestone, beyond: Milestone) -> None:
        self._say(there)
        if gate in self.gates:
            await self._open[gate].wait()
        self._say(beyond)

    def _say(self, milestone: Milestone) -> None:
        # A step that is asked for a second time reaches nothing new.
        if milestone not in self._told:
            self._told.add(milestone)
            self.tell(self.container, milestone)


Move = Callable[[str, Escort], Awaitable[MigrationRecord]]


async def carry_out(
    conductor: Conductor, containers: Sequence[str], move: Move, *, clock: Clock
) -> dict[str, MigrationRecord]:
    """Let `conductor` move `containers`; the record of each one that was begun.

    `move(container, escort)` has to await `escort.before` before each step and to heed `escort.cancelled`. What it
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
                    self._escorts[name].abort(reason)
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
            self._reached(name, Milestone.FINISHED if done else Milestone.FAILED)
            self._changed.set()
