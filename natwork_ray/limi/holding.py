"""A migration that is conducted from elsewhere: what its agent tells, where it waits, and for how long (D3.3 2.1).

The schedule of a service (`natwork_ray.limi.conduct`) runs beside the control loop, its members at the agents of their
sources. `Holding` is an agent's end of that: it holds the migration at its gates until it is released, and answers how
far it is. Each question is also a sign that the conductor lives. If it is silent for too long, or a container has stood
still at a gate for longer than the order allows (`ServiceMove.patience_s`), the agent decides by itself:

    gate       the container         waits for            then
    freeze     serves                `serving_s`          bring-back: is not moved; carry-on: goes on, held no more
    restore    frozen, whole here    `standing_s`         is rolled back: it serves on its source again
    attach     restored over there   `standing_s`         its address moves: it serves on its target

So no death of a conductor leaves a container frozen, and who can come back does. What is not kept then is that all of a
service are in one place: those that were released go on, and without a conductor nobody knows which those are. A new
conductor that comes within these times takes all of them up again, and nothing is lost of the schedule.

If the agent dies, its migration is taken up from the journal and goes on without gates.

    holding = Holding("web", order.together, clock=clock, limits=HoldLimits())
    record = await drive(started, ..., before=holding.before, cancelled=holding.cancelled)
"""

from __future__ import annotations

import asyncio
import contextlib

from natwork_ray.domain.actions import ServiceMove
from natwork_ray.domain.phases import Gate, OnFailure
from natwork_ray.domain.values import value
from natwork_ray.limi.service_driver import Escort
from natwork_ray.limi.service_plan import Milestone
from natwork_ray.limi.steps import Step, Verb
from natwork_ray.ports import Clock

_HELD_BEFORE = {Verb.FREEZE: Gate.FREEZE, Verb.RESTORE: Gate.RESTORE, Verb.ADDRESS_MOVE: Gate.ATTACH}


@value
class HoldLimits:
    """Seconds that an agent waits for a silent conductor: while the container serves, and while it stands still."""

    serving_s: float = 30.0
    standing_s: float = 5.0


@value
class HoldNews:
    """What an agent says of a conducted migration.

    `known`: it has begun it, taken it up, or brought it to its end. `milestones` are all so far, in their order; none
    where it was taken up after the agent's death, and none once it is over.
    """

    known: bool
    milestones: tuple[Milestone, ...] = ()


class Holding:
    """One conducted migration at its agent; `before` and `cancelled` are to be given to its driver."""

    def __init__(self, container: str, together: ServiceMove, *, clock: Clock, limits: HoldLimits) -> None:
        self._together, self._clock, self._limits = together, clock, limits
        self.cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._escort = Escort(container, frozenset(together.gates), self._tell, self.cancelled)
        self._open: set[Gate] = set()
        self._told: list[Milestone] = []
        self._changed = asyncio.Event()
        self._heard_s = clock.now_s()

    async def before(self, step: Step) -> None:
        """Awaited by the driver before each step: returns when it may be handed out."""
        gate = _HELD_BEFORE.get(step.verb)
        if gate is None or gate in self._open or gate not in self._together.gates:
            await self._escort.before(step)
            return
        since_s, given_up = self._clock.now_s(), False
        passing = asyncio.ensure_future(self._escort.before(step))
        try:
            while not passing.done():
                left_s = None if given_up else self._left_s(gate, since_s)
                if left_s is not None and left_s <= 0:
                    # A migration that is cancelled here has its hold ended by the driver.
                    given_up = True
                    self._decide_alone(gate)
                    left_s = None
                await asyncio.wait({passing}, timeout=left_s)
            passing.result()
        finally:
            passing.cancel()

    async def news(self, *, after: int, patience_s: float) -> tuple[Milestone, ...]:
        """All milestones, as soon as there are more than `after`, it is over, or `patience_s` have passed."""
        self._heard_s = self._clock.now_s()
        if len(self._told) <= after:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._changed.wait()
        return tuple(self._told)

    def release(self, gate: Gate) -> None:
        """It may pass a gate, now or when it comes there."""
        self._heard_s = self._clock.now_s()
        self._let_through(gate)

    def cancel(self, reason: str) -> None:
        """It has to go back, if it still can; else it is held no more."""
        self._heard_s = self._clock.now_s()
        self._escort.abort(reason)

    def close(self) -> None:
        """It is over: whoever waits for news is answered."""
        self._changed.set()

    def _tell(self, _: str, milestone: Milestone) -> None:
        self._told.append(milestone)
        self._changed.set()
        self._changed = asyncio.Event()

    def _let_through(self, gate: Gate) -> None:
        self._open.add(gate)
        self._escort.release(gate)

    def _left_s(self, gate: Gate, since_s: float) -> float:
        now_s = self._clock.now_s()
        if gate is Gate.FREEZE:
            return self._heard_s + self._limits.serving_s - now_s
        return min(self._heard_s + self._limits.standing_s, since_s + self._together.patience_s) - now_s

    def _decide_alone(self, gate: Gate) -> None:
        silent_s = self._clock.now_s() - self._heard_s
        why = f"held before the {gate} for too long; nothing was heard of its service's schedule for {silent_s:.1f} s"
        if gate is Gate.RESTORE or (gate is Gate.FREEZE and self._together.on_failure is OnFailure.BRING_BACK):
            self._escort.abort(why)
        else:
            for each in Gate:
                self._let_through(each)
