"""The schedule of a service while it runs: an I/O-free state machine that gives members the word.

Forecasts are wrong by 4 to 14 per cent per migration, so a plan made beforehand brings arrivals together to within
tens of per cent. What is held can be released at the right moment instead: `ScheduleRun` re-plans at every event
(`natwork_ray.limi.schedule.replan`) and says who begins, who is frozen, restored, or attached to the bridge now.

    start     at the moment that lets all live parts end together
    freeze    when all are ready to be frozen, and so late that all stopped parts end together (late switch-over)
    restore   when what everybody needs is verified on the targets; before, all can go back
    attach    when everybody was restored, so that the arrivals differ by the noise of one address move only

A member that fails is handled as `OnFailure` says. Held members wait without limit here: the time-out of the member
that keeps them waiting ends it (its failure is an event as well).

`StartTogether` and `OneByOne` are what the schedule is compared with; they hold nobody.

    >>> run = OneByOne(("a", "b"))
    >>> run.handle(Tick(at_s=0.0))
    (Begin(container='a'),)
    >>> run.handle(Reached(at_s=3.0, container="a", milestone=Milestone.FINISHED))
    (Begin(container='b'),)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from natwork_ray.domain.values import value
from natwork_ray.errors import ConflictError, NotFoundError
from natwork_ray.limi.schedule import ORDER, replan
from natwork_ray.limi.service_plan import (
    Gate,
    MigrationPlan,
    Milestone,
    Observation,
    OnFailure,
    PlannedMigration,
    ScheduleRequest,
)

_NOW_S = 1e-6  # what is due within a microsecond is due
_OVER = (Milestone.FINISHED, Milestone.FAILED)


@value
class Tick:
    """Time passed: the beginning, or a moment that was asked for."""

    at_s: float


@value
class Reached:
    """A member got as far as `milestone`. Times count from the start of the plan."""

    at_s: float
    container: str
    milestone: Milestone


ScheduleEvent = Tick | Reached


@value
class Begin:
    """Start this member's migration."""

    container: str


@value
class Release:
    """Let a member pass a gate. It may be given before the gate is reached."""

    container: str
    gate: Gate


@value
class Abort:
    """Take a member back to its source; heeded as long as its method allows that."""

    container: str
    reason: str


@value
class WakeAt:
    """Send a `Tick` then. Holds until the next event, after which it is asked for again if it still matters."""

    at_s: float


Command = Begin | Release | Abort | WakeAt


class Conductor(Protocol):
    """Whoever decides when members of a service move on."""

    @property
    def gates(self) -> frozenset[Gate]:
        """Where members have to be held until they are released."""
        ...

    def handle(self, event: ScheduleEvent) -> tuple[Command, ...]:
        """What to do now."""
        ...


# A gate, the milestone of standing before it and that of having passed it.
_GATES = (
    (Gate.FREEZE, Milestone.AT_FREEZE, Milestone.STOPPED),
    (Gate.RESTORE, Milestone.AT_RESTORE, Milestone.RESTORING),
    (Gate.ATTACH, Milestone.AT_ATTACH, Milestone.ATTACHING),
)


class ScheduleRun:
    """A plan being carried out. Feed it a `Tick` first; `plan` is what is expected now, `observed` what was seen."""

    def __init__(self, request: ScheduleRequest, plan: MigrationPlan) -> None:
        self._request = request
        self.plan = plan
        self._seen = {
            m.container: Observation(container=m.container, milestone=Milestone.WAITING) for m in request.members
        }
        self._given_up = False
        self._now_s = 0.0

    @property
    def gates(self) -> frozenset[Gate]:
        """See `Conductor`."""
        return frozenset(self._request.gates)

    @property
    def observed(self) -> tuple[Observation, ...]:
        """How far everybody is."""
        return tuple(self._seen.values())

    @property
    def brought_back(self) -> bool:
        """Whether a failure ended the move: members were sent back, and nobody is begun any more."""
        return self._given_up

    @property
    def over(self) -> bool:
        """Whether nothing more will be said: everybody has finished or failed, or never begins."""
        return all(
            o.milestone in _OVER or (self._given_up and o.milestone is Milestone.WAITING) for o in self._seen.values()
        )

    def handle(self, event: ScheduleEvent) -> tuple[Command, ...]:
        """What follows from an event.

        Raises:
            ConflictError: time, or a member, went backwards.
            NotFoundError: a member that is not in the plan.
        """
        if event.at_s < self._now_s - _NOW_S:
            raise ConflictError(
                f"an event of {event.at_s} s after one of {self._now_s} s", hint="deliver events in their order"
            )
        self._now_s = max(self._now_s, event.at_s)
        commands: list[Command] = []
        if isinstance(event, Reached):
            self._reach(event.container, event.milestone)
            if event.milestone is Milestone.FAILED:
                commands += self._after_failure(event.container)
        if not self.over:
            commands += self._move_on()
        return tuple(commands)

    def _reach(self, container: str, milestone: Milestone) -> None:
        seen = self._seen.get(container)
        if seen is None:
            raise NotFoundError(f"there is no {container!r} in the plan", hint="report members of the service only")
        if ORDER.index(milestone) <= ORDER.index(seen.milestone):
            if milestone is seen.milestone:
                return  # told twice, known once
            raise ConflictError(
                f"{container} is {seen.milestone}, and now {milestone}", hint="report milestones in their order"
            )
        self._seen[container] = replace(
            seen, milestone=milestone, reached_s=(*seen.reached_s, (milestone, self._now_s))
        )

    def _after_failure(self, container: str) -> list[Command]:
        if self._request.on_failure is OnFailure.CARRY_ON or self._given_up:
            return []
        wave = next(names for names in self.plan.waves if container in names)
        fellows = [self._seen[name] for name in wave if name != container]
        if any(self._past(seen, Milestone.RESTORING) and seen.milestone is not Milestone.FAILED for seen in fellows):
            return []  # their targets have them: going back would be another move
        self._given_up = True
        return [
            Abort(container=seen.container, reason=f"{container} failed, and the service moves as a whole")
            for seen in fellows
            if seen.milestone not in (Milestone.WAITING, Milestone.FAILED)
        ]

    def _move_on(self) -> list[Command]:
        if self._given_up:
            return []
        self.plan = replan(self._request, self.plan, self.observed, self._now_s)
        wave = next(
            names for names in self.plan.waves if any(self._seen[name].milestone not in _OVER for name in names)
        )
        rows = [row for row in self.plan.migrations if row.container in wave]
        commands: list[Command] = []
        wake_s: list[float] = []
        for row in rows:
            due = self._due(row, wave)
            if due is None:
                continue
            command, passed, at_s = due
            if at_s <= self._now_s + _NOW_S:
                commands.append(command)
                self._reach(row.container, passed)
            else:
                wake_s.append(at_s)
        if wake_s:
            commands.append(WakeAt(at_s=min(wake_s)))
        return commands

    def _due(self, row: PlannedMigration, wave: Sequence[str]) -> tuple[Command, Milestone, float] | None:
        """What is to be said to a member next, the milestone that this means, and when."""
        seen = self._seen[row.container]
        if seen.milestone is Milestone.WAITING:
            return Begin(container=row.container), Milestone.LIVE, row.start_s
        begins = {Gate.FREEZE: row.freeze_s, Gate.RESTORE: row.restore_s, Gate.ATTACH: row.attach_s}
        for gate, before, after in _GATES:
            held = gate in self.gates and seen.milestone is before
            if held and all(self._past(self._seen[name], before) for name in wave):
                return Release(container=row.container, gate=gate), after, begins[gate]
        return None

    @staticmethod
    def _past(seen: Observation, milestone: Milestone) -> bool:
        """Whether it stands there or beyond; who failed keeps nobody waiting."""
        return ORDER.index(seen.milestone) >= ORDER.index(milestone)


class StartTogether:
    """Baseline: everybody begins at once."""

    gates: frozenset[Gate] = frozenset()

    def __init__(self, containers: Sequence[str]) -> None:
        self._waiting = tuple(containers)

    def handle(self, event: ScheduleEvent) -> tuple[Command, ...]:
        """See `Conductor`."""
        begun, self._waiting = self._waiting, ()
        return tuple(Begin(container=name) for name in begun)


class OneByOne:
    """Baseline: each begins when the one before it has finished or failed."""

    gates: frozenset[Gate] = frozenset()

    def __init__(self, containers: Sequence[str]) -> None:
        self._waiting = list(containers)
        self._running: str | None = None

    def handle(self, event: ScheduleEvent) -> tuple[Command, ...]:
        """See `Conductor`."""
        if isinstance(event, Reached) and event.container == self._running and event.milestone in _OVER:
            self._running = None
        if self._running is None and self._waiting:
            self._running = self._waiting.pop(0)
            return (Begin(container=self._running),)
        return ()
