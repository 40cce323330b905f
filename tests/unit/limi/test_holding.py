"""A conducted migration at its agent: held until released, and never for ever, whoever is silent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from natwork_ray.domain.actions import ServiceMove
from natwork_ray.domain.migrations import MigrationRecord, MigrationState
from natwork_ray.domain.phases import Gate, MigrationMethod, OnFailure
from natwork_ray.domain.runtime import ContainerSpec, Revival
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.lab_transfer import LabJournal
from natwork_ray.emulation.virtual_time import VirtualClock, run_in_virtual_time
from natwork_ray.limi.driver import drive
from natwork_ray.limi.holding import Holding, HoldLimits
from natwork_ray.limi.service_plan import Milestone
from natwork_ray.limi.steps import WITHDRAWN, MigrationStarted, Step, StepReport, Verb

LIMITS = HoldLimits(serving_s=30.0, standing_s=5.0)
BACK, ON = OnFailure.BRING_BACK, OnFailure.CARRY_ON
REACHED = {Gate.FREEZE: Milestone.AT_FREEZE, Gate.RESTORE: Milestone.AT_RESTORE, Gate.ATTACH: Milestone.AT_ATTACH}
HOLDS = {Gate.FREEZE: "freeze", Gate.RESTORE: "restore", Gate.ATTACH: "address move"}


class LoopClock:
    def now_s(self) -> float:
        return asyncio.get_running_loop().time()


class Node:
    """Both sides of a migration; each step takes 10 ms."""

    def __init__(self) -> None:
        self.asked: list[Verb] = []

    async def perform(self, step: Step) -> StepReport:
        self.asked.append(step.verb)
        await asyncio.sleep(0.01)
        spec = ContainerSpec(name="web", image="i", address="10.0.0.2/24", mac="02:00:00:00:00:02", command=("serve",))
        decided = {Verb.REVIVE: Revival.THAWED, Verb.WITHDRAW: WITHDRAWN}.get(step.verb, "")
        return StepReport(spec=spec if step.verb is Verb.CHECK_SOURCE else None, decided=decided)


class Scene:
    """One migration under way, and what its conductor does."""

    def __init__(self, *gates: Gate, on_failure: OnFailure = BACK, patience_s: float = 60.0) -> None:
        self.node, self.clock = Node(), LoopClock()
        together = ServiceMove(id="d", service="shop", gates=gates, on_failure=on_failure, patience_s=patience_s)
        self.holding = Holding("web", together, clock=self.clock, limits=LIMITS)
        self.task = asyncio.create_task(self._drive())

    async def _drive(self) -> MigrationRecord:
        start = MigrationStarted(
            at_s=self.clock.now_s(), key="k", container="web", source="a", target="b", method=MigrationMethod.COLD,
            backend=Backend.EMULATED,
        )  # fmt: skip
        try:
            return await drive(
                start, source=self.node, target=self.node, journal=LabJournal(), clock=self.clock,
                before=self.holding.before, cancelled=self.holding.cancelled,
            )  # fmt: skip
        finally:
            self.holding.close()

    async def until(self, milestone: Milestone) -> None:
        seen: tuple[Milestone, ...] = ()
        while milestone not in seen:
            seen = await self.holding.news(after=len(seen), patience_s=1.0)

    async def record(self) -> MigrationRecord:
        return await asyncio.wait_for(self.task, 500)


def played(scene: Any) -> Any:
    return run_in_virtual_time(VirtualClock(), scene)


def hold_s(record: MigrationRecord, gate: Gate) -> float:
    return sum(p.duration_s for p in record.phases if p.name == f"hold before {HOLDS[gate]}")


def test_it_is_held_at_each_gate_until_it_is_released() -> None:
    async def scene() -> None:
        s = Scene(*Gate)
        for gate in Gate:
            await s.until(REACHED[gate])
            await asyncio.sleep(2.0)
            s.holding.release(gate)
        record = await s.record()
        assert (record.state, record.error) == (MigrationState.MIGRATED, "")
        assert [hold_s(record, gate) for gate in Gate] == pytest.approx([2.0] * 3)
        assert record.downtime_s == pytest.approx(4.0, abs=0.2), "the hold before the freeze is no downtime"
        assert await s.holding.news(after=0, patience_s=0.0) == (
            Milestone.AT_FREEZE, Milestone.STOPPED, Milestone.AT_RESTORE, Milestone.RESTORING, Milestone.AT_ATTACH,
            Milestone.ATTACHING, Milestone.ARRIVED,
        )  # fmt: skip

    played(scene)


def test_who_is_released_beforehand_is_not_held() -> None:
    async def scene() -> None:
        s = Scene(*Gate)
        for gate in Gate:
            s.holding.release(gate)
        record = await s.record()
        assert (record.state, sum(hold_s(record, gate) for gate in Gate)) == (MigrationState.MIGRATED, 0.0)

    played(scene)


@pytest.mark.parametrize(
    ("gate", "on_failure", "limit_s", "state"),
    [
        (Gate.FREEZE, BACK, 30.0, MigrationState.ROLLED_BACK),
        (Gate.FREEZE, ON, 30.0, MigrationState.MIGRATED),
        (Gate.RESTORE, BACK, 5.0, MigrationState.ROLLED_BACK),
        (Gate.RESTORE, ON, 5.0, MigrationState.ROLLED_BACK),
        (Gate.ATTACH, BACK, 5.0, MigrationState.MIGRATED),
        (Gate.ATTACH, ON, 5.0, MigrationState.MIGRATED),
    ],
)
def test_a_silent_conductor_leaves_nobody_frozen(
    gate: Gate, on_failure: OnFailure, limit_s: float, state: MigrationState
) -> None:
    async def scene() -> None:
        s = Scene(*Gate, on_failure=on_failure)
        for passed in Gate:
            await s.until(REACHED[passed])
            if passed is gate:
                break
            s.holding.release(passed)
        record = await s.record()  # nobody says a word any more
        assert record.state is state
        assert hold_s(record, gate) == pytest.approx(limit_s, abs=0.1)
        if state is MigrationState.ROLLED_BACK:
            assert "nothing was heard of its service's schedule for" in record.error
            assert Verb.RESTORE not in s.node.asked
            assert (Verb.REVIVE in s.node.asked) == (gate is Gate.RESTORE)
        else:
            assert record.error == ""
            assert hold_s(record, Gate.ATTACH) <= limit_s, "who goes on alone is held no more"

    played(scene)


def test_questions_keep_it_waiting_but_not_beyond_its_patience() -> None:
    async def scene() -> None:
        s = Scene(Gate.RESTORE, patience_s=20.0)
        seen = 0
        while not s.task.done():
            seen = len(await s.holding.news(after=seen, patience_s=1.0))
        record = await s.record()
        assert record.state is MigrationState.ROLLED_BACK
        assert hold_s(record, Gate.RESTORE) == pytest.approx(20.0, abs=0.01)
        assert "held before the restore for too long" in record.error

    played(scene)


@pytest.mark.parametrize("gate", list(Gate))
def test_cancelled_it_goes_back_while_it_can(gate: Gate) -> None:
    async def scene() -> None:
        s = Scene(*Gate)
        for passed in Gate:
            await s.until(REACHED[passed])
            if passed is gate:
                break
            s.holding.release(passed)
        s.holding.cancel("db failed")
        s.holding.cancel("told twice")
        record = await s.record()
        late = gate is Gate.ATTACH
        assert record.state is (MigrationState.MIGRATED if late else MigrationState.ROLLED_BACK)
        assert record.error == f"cancelled{' too late to be heeded' if late else ''}: db failed"

    played(scene)


def test_news_are_answered_when_there_are_some_or_in_time() -> None:
    async def scene() -> None:
        s = Scene(Gate.FREEZE)
        await s.until(Milestone.AT_FREEZE)
        now_s = s.clock.now_s()
        assert await s.holding.news(after=1, patience_s=1.0) == (Milestone.AT_FREEZE,)
        assert s.clock.now_s() - now_s == pytest.approx(1.0)
        asked = asyncio.create_task(s.holding.news(after=1, patience_s=60.0))
        await asyncio.sleep(0.5)
        s.holding.release(Gate.FREEZE)
        assert (await asked)[1] is Milestone.STOPPED
        await s.record()
        waiting_s = s.clock.now_s()
        await s.holding.news(after=99, patience_s=0.0)
        assert s.clock.now_s() == waiting_s

    played(scene)
