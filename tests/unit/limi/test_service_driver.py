"""The shell of a service's schedule: escorts hold steps, tell milestones, and let go when a member goes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from natwork_ray.domain.migrations import MigrationRecord, MigrationState
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend
from natwork_ray.errors import ActionError
from natwork_ray.limi.conduct import (
    Abort,
    Begin,
    Command,
    OneByOne,
    Reached,
    Release,
    ScheduleEvent,
    StartTogether,
    Tick,
    WakeAt,
)
from natwork_ray.limi.service_driver import Escort, Move, carry_out
from natwork_ray.limi.service_plan import Gate, Milestone
from natwork_ray.limi.steps import Step, StepReport, Verb


class LoopClock:
    def now_s(self) -> float:
        return asyncio.get_running_loop().time()


class Side:
    """Does every step at once, and remembers which."""

    def __init__(self) -> None:
        self.done: list[Verb] = []

    async def perform(self, step: Step) -> StepReport:
        self.done.append(step.verb)
        return StepReport()


class Script:
    """A conductor that says what it was told to say."""

    def __init__(self, answer: Callable[[ScheduleEvent], tuple[Command, ...]], *gates: Gate) -> None:
        self.gates = frozenset(gates)
        self._answer = answer
        self.heard: list[ScheduleEvent] = []

    def handle(self, event: ScheduleEvent) -> tuple[Command, ...]:
        self.heard.append(event)
        return self._answer(event)

    def milestones(self, container: str) -> list[Milestone]:
        return [e.milestone for e in self.heard if isinstance(e, Reached) and e.container == container]


def step(verb: Verb, number: int = 1) -> Step:
    return Step(key="k", number=number, verb=verb, container="web", source="a", target="b", method=MigrationMethod.COLD)


def record(name: str, state: MigrationState = MigrationState.MIGRATED) -> MigrationRecord:
    return MigrationRecord(
        key=name, container=name, source="a", target="b", method=MigrationMethod.COLD, backend=Backend.EMULATED,
        state=state, started_at_s=0.0, total_s=1.0, downtime_s=0.5, runs_on="b",
    )  # fmt: skip


VERBS = (Verb.CHECK_SOURCE, Verb.FREEZE, Verb.DUMP, Verb.DUMP_TRANSFER, Verb.RESTORE, Verb.ADDRESS_MOVE)
ALL = [
    Milestone.AT_FREEZE, Milestone.STOPPED, Milestone.AT_RESTORE, Milestone.RESTORING, Milestone.AT_ATTACH,
    Milestone.ATTACHING, Milestone.ARRIVED,
]  # fmt: skip


def moving(sides: dict[str, Side], verbs: tuple[Verb, ...] = VERBS) -> Move:
    async def move(name: str, escort: Escort) -> MigrationRecord:
        watched = escort.watch(sides.setdefault(name, Side()))
        for number, verb in enumerate(verbs):
            perform = asyncio.ensure_future(watched.perform(step(verb, number)))
            either: list[asyncio.Future[Any]] = [perform, escort.cancelled]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if escort.cancelled.done():
                perform.cancel()
                return record(name, MigrationState.ROLLED_BACK)
            await perform
        return record(name)

    return move


def carried(conductor: Script | OneByOne | StartTogether, names: list[str], move: Move) -> dict[str, MigrationRecord]:
    async def main() -> dict[str, MigrationRecord]:
        return await asyncio.wait_for(carry_out(conductor, names, move, clock=LoopClock()), 5)

    return asyncio.run(main())


def test_without_gates_milestones_are_told_and_nobody_waits() -> None:
    script = Script(lambda e: (Begin(container="web"),) if isinstance(e, Tick) else ())
    sides: dict[str, Side] = {}
    assert carried(script, ["web"], moving(sides))["web"].state is MigrationState.MIGRATED
    assert script.milestones("web") == [*ALL, Milestone.FINISHED]
    assert sides["web"].done == list(VERBS)


def test_gates_hold_before_the_step_and_the_restore_before_its_predecessor_is_reported() -> None:
    sides: dict[str, Side] = {}
    at_gate: dict[Gate, list[Verb]] = {}
    gates = {Milestone.AT_FREEZE: Gate.FREEZE, Milestone.AT_RESTORE: Gate.RESTORE, Milestone.AT_ATTACH: Gate.ATTACH}

    def answer(event: ScheduleEvent) -> tuple[Command, ...]:
        if isinstance(event, Tick):
            if event.at_s == 0:
                return (Begin(container="web"),)
            gate = next(g for g in Gate if g not in at_gate)
            at_gate[gate] = list(sides["web"].done)
            return (Release(container="web", gate=gate),)
        return (WakeAt(at_s=event.at_s + 0.005),) if event.milestone in gates else ()

    script = Script(answer, *Gate)
    assert carried(script, ["web"], moving(sides))["web"].state is MigrationState.MIGRATED
    assert at_gate == {
        Gate.FREEZE: [Verb.CHECK_SOURCE],
        Gate.RESTORE: [Verb.CHECK_SOURCE, Verb.FREEZE, Verb.DUMP, Verb.DUMP_TRANSFER],
        Gate.ATTACH: [Verb.CHECK_SOURCE, Verb.FREEZE, Verb.DUMP, Verb.DUMP_TRANSFER, Verb.RESTORE],
    }


def test_a_restore_waits_for_all_that_runs_beside_the_transfer() -> None:
    async def main() -> list[str]:
        told: list[str] = []
        escort = Escort(
            "web", frozenset(), lambda _, m: told.append(m.value), asyncio.get_running_loop().create_future()
        )
        await escort.before(step(Verb.VOLUME_TRANSFER, 7))
        transfer = asyncio.create_task(escort.after(step(Verb.DUMP_TRANSFER, 8)))
        await asyncio.sleep(0)
        assert told == []
        await escort.after(step(Verb.VOLUME_TRANSFER, 7))
        await transfer
        await escort.after(step(Verb.RESTORE, 9))
        await escort.before(step(Verb.ADDRESS_MOVE, 10))
        await escort.before(step(Verb.ADDRESS_MOVE, 10))  # asked for a second time: nothing new
        return told

    assert asyncio.run(main()) == ["at restore", "restoring", "at attach", "attaching"]


def test_where_the_address_is_moved_first_it_arrives_with_the_restore() -> None:
    script = Script(lambda e: (Begin(container="web"),) if isinstance(e, Tick) else (), Gate.ATTACH)
    verbs = (Verb.FREEZE, Verb.ADDRESS_MOVE, Verb.DUMP_TRANSFER, Verb.RESTORE)
    assert carried(script, ["web"], moving({}, verbs))["web"].state is MigrationState.MIGRATED
    assert script.milestones("web") == [*ALL[:4], Milestone.ARRIVED, Milestone.FINISHED]


def test_an_aborted_member_goes_back_and_counts_as_failed() -> None:
    def answer(event: ScheduleEvent) -> tuple[Command, ...]:
        if isinstance(event, Tick):
            return (Begin(container="web"),)
        if event.milestone is Milestone.AT_RESTORE:
            return (Abort(container="web", reason="db failed"), Abort(container="web", reason="told twice"))
        return ()

    script = Script(answer, Gate.RESTORE)
    sides: dict[str, Side] = {}
    assert carried(script, ["web"], moving(sides))["web"].state is MigrationState.ROLLED_BACK
    assert script.milestones("web")[-1] is Milestone.FAILED
    assert Verb.RESTORE not in sides["web"].done


def test_who_raises_is_a_failure_to_the_others_and_is_raised_at_the_end() -> None:
    ended: list[str] = []

    async def move(name: str, escort: Escort) -> MigrationRecord:
        await asyncio.sleep(0.001 if name == "bad" else 0.02)
        ended.append(name)
        if name == "bad":
            raise ActionError("the journal is full", hint="make room")
        return record(name)

    with pytest.raises(ActionError, match="journal is full"):
        carried(StartTogether(["bad", "good"]), ["bad", "good"], move)
    assert ended == ["bad", "good"]


def test_one_by_one_and_nobody_at_all() -> None:
    running: list[int] = []

    async def move(name: str, escort: Escort) -> MigrationRecord:
        running.append(1)
        assert len(running) == 1
        await asyncio.sleep(0.001)
        running.pop()
        return record(name)

    assert list(carried(OneByOne(["a", "b", "c"]), ["a", "b", "c"], move)) == ["a", "b", "c"]
    assert carried(Script(lambda e: ()), ["a"], move) == {}


def test_a_cancelled_move_cancels_its_members() -> None:
    async def main() -> list[str]:
        gone: list[str] = []

        async def move(name: str, escort: Escort) -> MigrationRecord:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                gone.append(name)
                raise
            raise AssertionError

        task = asyncio.create_task(carry_out(OneByOne(["a", "b"]), ["a", "b"], move, clock=LoopClock()))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return gone

    assert asyncio.run(main()) == ["a"]
