"""The shell of a service's schedule: escorts hold steps, tell milestones, and let go when a member goes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from natwork_ray.domain.migrations import MigrationRecord, MigrationState
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.runtime import ContainerSpec, Revival
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.virtual_time import VirtualClock, run_in_virtual_time
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
from natwork_ray.limi.driver import drive
from natwork_ray.limi.service_driver import Escort, Move, carry_out
from natwork_ray.limi.service_plan import Gate, Milestone
from natwork_ray.limi.steps import WITHDRAWN, MigrationStarted, Step, StepReport, Verb


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


VERBS = (
    Verb.CHECK_SOURCE, Verb.FREEZE, Verb.DUMP, Verb.DUMP_TRANSFER, Verb.RESTORE, Verb.ADDRESS_MOVE, Verb.SETTLE_SOURCE,
)  # fmt: skip
ALL = [
    Milestone.AT_FREEZE, Milestone.STOPPED, Milestone.AT_RESTORE, Milestone.RESTORING, Milestone.AT_ATTACH,
    Milestone.ATTACHING, Milestone.ARRIVED,
]  # fmt: skip


def moving(sides: dict[str, Side], verbs: tuple[Verb, ...] = VERBS) -> Move:
    async def move(name: str, escort: Escort) -> MigrationRecord:
        side = sides.setdefault(name, Side())

        async def held(asked: Step) -> StepReport:
            await escort.before(asked)
            return await side.perform(asked)

        for number, verb in enumerate(verbs):
            perform = asyncio.ensure_future(held(step(verb, number)))
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
        return await asyncio.wait_for(carry_out(conductor, names, move, clock=LoopClock()), 500)

    return run_in_virtual_time(VirtualClock(), main)


def test_without_gates_milestones_are_told_and_nobody_waits() -> None:
    script = Script(lambda e: (Begin(container="web"),) if isinstance(e, Tick) else ())
    sides: dict[str, Side] = {}
    assert carried(script, ["web"], moving(sides))["web"].state is MigrationState.MIGRATED
    assert script.milestones("web") == [*ALL, Milestone.FINISHED]
    assert sides["web"].done == list(VERBS)


def test_gates_hold_before_the_step() -> None:
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


def test_a_step_that_is_asked_for_twice_reaches_nothing_new() -> None:
    async def main() -> list[str]:
        told: list[str] = []
        escort = Escort(
            "web", frozenset(), lambda _, m: told.append(m.value), asyncio.get_running_loop().create_future()
        )
        for number, verb in enumerate(
            (Verb.DUMP_TRANSFER, Verb.RESTORE, Verb.ADDRESS_MOVE, Verb.ADDRESS_MOVE, Verb.PAGES_FETCHED)
        ):
            await escort.before(step(verb, number))
        await escort.before(step(Verb.SETTLE_SOURCE, 9))
        return told

    assert asyncio.run(main()) == ["at restore", "restoring", "at attach", "attaching", "arrived"]


class Node:
    """Both sides of a whole migration, by the driver itself."""

    def __init__(self) -> None:
        self.journal: dict[str, list[bytes]] = {}

    async def perform(self, asked: Step) -> StepReport:
        await asyncio.sleep(0)
        spec = ContainerSpec(name="web", image="i", address="10.0.0.2/24", mac="02:00:00:00:00:02", command=("serve",))
        decided = {Verb.REVIVE: Revival.THAWED, Verb.WITHDRAW: WITHDRAWN}.get(asked.verb, "")
        return StepReport(spec=spec if asked.verb is Verb.CHECK_SOURCE else None, decided=decided)

    def append(self, key: str, event: bytes) -> None:
        self.journal.setdefault(key, []).append(event)

    def read(self, key: str) -> tuple[bytes, ...]:
        return tuple(self.journal.get(key, ()))

    def open_keys(self) -> tuple[str, ...]:
        return tuple(self.journal)

    def close(self, key: str, _record: bytes) -> None:
        self.journal.pop(key)

    def records(self) -> tuple[bytes, ...]:
        return ()


async def driven(name: str, escort: Escort) -> MigrationRecord:
    node, clock = Node(), LoopClock()
    start = MigrationStarted(
        at_s=clock.now_s(), key=name, container=name, source="a", target="b", method=MigrationMethod.COLD,
        backend=Backend.EMULATED,
    )  # fmt: skip
    return await drive(
        start, source=node, target=node, journal=node, clock=clock, before=escort.before, cancelled=escort.cancelled,

    )  # fmt: skip


@pytest.mark.parametrize("aborted", [None, Gate.FREEZE, Gate.RESTORE, Gate.ATTACH])
def test_with_the_migrations_own_driver(aborted: Gate | None) -> None:
    """Held beyond every time-out; sent back from a gate, it comes back while that is possible."""
    gates = {Milestone.AT_FREEZE: Gate.FREEZE, Milestone.AT_RESTORE: Gate.RESTORE, Milestone.AT_ATTACH: Gate.ATTACH}
    waiting: list[Gate] = []

    def answer(event: ScheduleEvent) -> tuple[Command, ...]:
        if isinstance(event, Tick):
            if event.at_s == 0:
                return (Begin(container="web"),)
            gate = waiting.pop()
            return (
                Abort(container="web", reason="db failed") if gate is aborted else Release(container="web", gate=gate),
            )
        if event.milestone in gates:
            waiting.append(gates[event.milestone])
            return (WakeAt(at_s=event.at_s + (150.0 if aborted is None else 2.0)),)
        return ()

    script = Script(answer, *Gate)
    made = carried(script, ["web"], driven)["web"]
    phases = {p.name: p.duration_s for p in made.phases}
    if aborted in (Gate.FREEZE, Gate.RESTORE):
        assert made.state is MigrationState.ROLLED_BACK
        assert made.error == "cancelled: db failed"
        assert "restore" not in phases
    else:
        assert made.state is MigrationState.MIGRATED
        assert script.milestones("web") == [*ALL, Milestone.FINISHED]
        assert made.error == ("" if aborted is None else "cancelled too late to be heeded: db failed")
    if aborted is None:
        holds = [phases[f"hold before {name}"] for name in ("freeze", "restore", "address move")]
        assert holds == pytest.approx([150.0] * 3)
        assert (made.downtime_s, made.total_s) == pytest.approx((300.0, 450.0))


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
