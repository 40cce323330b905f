"""The courier beside the turns: each order under way once, reported when over, asked for again when unanswered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from natwork_ray.control.courier import Courier
from natwork_ray.control.events import (
    Event,
    MigrationRequested,
    OutcomeReported,
    ServiceMigrationRequested,
    TopologyObserved,
)
from natwork_ray.control.loop import ControlLoop
from natwork_ray.control.service import Answer
from natwork_ray.domain.actions import (
    ActionOutcome,
    Instruction,
    Migrate,
    MigrationMethod,
    OnFailure,
    Scale,
    ServiceMove,
)
from natwork_ray.domain.migrations import ContainerForecast, MigrationForecast
from natwork_ray.errors import NatworkError, StoreError, TimedOutError


class Control:
    """The loop without a journal."""

    def __init__(self, world: Any) -> None:
        self.loop = ControlLoop(world.predict)
        self.loop.handle(world.run())
        self.events: list[Event] = []
        self.failing: NatworkError | None = None

    async def submit(self, events: Sequence[Event]) -> tuple[Answer, ...]:
        self.events += events
        return tuple(Answer(self.loop.handle(event)) for event in events)

    async def outbox(self) -> tuple[Instruction, ...]:
        if self.failing is not None:
            failing, self.failing = self.failing, None
            raise failing
        return self.loop.outbox()


class Hands:
    """Hands that take as long as a test wants."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self.asked: list[str] = []
        self.go = asyncio.Event()
        self.failing: list[NatworkError] = []

    async def execute(self, instruction: Instruction) -> ActionOutcome:
        self.asked.append(instruction.key)
        await self.go.wait()
        if self.failing:
            raise self.failing.pop()
        outcome: ActionOutcome = self._world.outcome(instruction.key)
        return outcome


class Orchestrator:
    def __init__(self, world: Any) -> None:
        self._world = world

    async def topology(self) -> Any:
        return self._world.topology()


def move(world: Any, control: Control, container: str, at_s: float = 5.0) -> str:
    order = MigrationRequested(id=f"m-{container}", at_s=at_s, container=container, target="cloud", by="ada")
    (instruction,) = control.loop.handle(order).instructions
    return instruction.key


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5.0):
        while not true():  # noqa: ASYNC110 - a condition, not a moment
            await asyncio.sleep(0)


def at_work(world: Any, scene: Callable[[Control, Hands, list[str]], Any]) -> None:
    async def run() -> None:
        control, hands, told = Control(world), Hands(world), list[str]()

        async def trouble(text: str) -> None:
            told.append(text)

        courier = Courier(
            control=control, orchestrator=Orchestrator(world),  # type: ignore[arg-type]
            node_hands=dict.fromkeys(("edge", "core", "cloud"), hands), cluster_hands=hands,
        )  # fmt: skip
        work = asyncio.create_task(courier.keep_delivering(lambda: 50.0, pause_s=0.0, trouble=trouble))
        await scene(control, hands, told)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(run())


def test_each_is_under_way_once_and_then_the_world_is_looked_at(world: Any) -> None:
    async def scene(control: Control, hands: Hands, told: list[str]) -> None:
        first = move(world, control, "front")
        await until(lambda: hands.asked == [first])
        second = move(world, control, "back")
        await until(lambda: hands.asked == [first, second])
        for _ in range(20):
            await asyncio.sleep(0)
        assert hands.asked == [first, second], "not asked again while it works"
        hands.go.set()
        await until(lambda: control.loop.status().done == 2)
        await until(lambda: len(control.events) == 4)
        assert [type(e) for e in control.events].count(OutcomeReported) == 2
        assert [type(e) for e in control.events].count(TopologyObserved) == 2
        assert told == []

    at_work(world, scene)


def test_who_does_not_answer_is_asked_again(world: Any) -> None:
    async def scene(control: Control, hands: Hands, told: list[str]) -> None:
        hands.go.set()
        hands.failing = [TimedOutError("no answer", hint="wait"), StoreError("no disk", hint="make room")]
        control.failing = TimedOutError("control is away", hint="wait")
        key = move(world, control, "front")
        await until(lambda: control.loop.status().done == 1)
        assert hands.asked == [key] * 3
        assert [t.split(":")[0] for t in told] == ["control is away (wait)", "migrate of front", "migrate of front"]

    at_work(world, scene)


def test_what_is_no_nodes_business_goes_to_the_cluster(world: Any) -> None:
    async def scene() -> None:
        control, cluster = Control(world), Hands(world)
        cluster.go.set()
        courier = Courier(
            control=control,
            orchestrator=Orchestrator(world),  # type: ignore[arg-type]
            node_hands={},
            cluster_hands=cluster,
        )
        key = move(world, control, "front")
        with pytest.raises(NatworkError, match="no LiMi agent for front on node edge"):
            await courier.carry_out(control.loop.outbox(), world.topology(), 6.0)
        control.loop._docket._pending["x"] = ("d-000001", Scale(key="x", container="back", replicas=2))
        control.loop._ledger.reserve("back", "x", 0.0, at_s=6.0)
        (done,) = await courier.carry_out((Scale(key="x", container="back", replicas=2),), world.topology(), 6.0)
        assert (done.key, cluster.asked) == ("x", ["x"])
        assert key in control.loop._docket._pending

    asyncio.run(scene())


class Together:
    """Conducts in no time; may be away first."""

    def __init__(self, world: Any, failing: int) -> None:
        self._world, self.failing = world, failing
        self.asked: list[tuple[str, ...]] = []

    async def move_together(self, instructions: Sequence[Migrate], topology: Any) -> tuple[ActionOutcome, ...]:
        self.asked.append(tuple(i.key for i in instructions))
        if self.failing:
            self.failing -= 1
            raise TimedOutError("an agent is away", hint="wait")
        return tuple(self._world.outcome(i.key) for i in instructions)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_service_is_delivered_as_one_and_reported_as_one(world: Any, failing: int) -> None:
    async def run() -> None:
        control, hands, together = Control(world), Hands(world), Together(world, failing)
        hands.go.set()
        told: list[str] = []
        forecast = MigrationForecast(
            method=MigrationMethod.COLD, total_p50_s=2.0, total_p95_s=3.0, downtime_p50_s=0.5, downtime_p95_s=0.6
        )
        control.loop.handle(
            ServiceMigrationRequested(
                id="s", at_s=5.0, service="core", target="cloud", by="ada",
                forecasts=tuple(
                    ContainerForecast(container=c, target="cloud", forecast=forecast)
                    for c in ("front", "back", "other")
                ),
                together=ServiceMove(
                    id="", service="core", gates=(), on_failure=OnFailure.CARRY_ON, patience_s=1.0
                ),
            )
        )  # fmt: skip

        async def trouble(text: str) -> None:
            told.append(text)

        courier = Courier(
            control=control, orchestrator=Orchestrator(world),  # type: ignore[arg-type]
            node_hands=dict.fromkeys(("edge", "core", "cloud"), hands), cluster_hands=hands, service_hands=together,
        )  # fmt: skip
        work = asyncio.create_task(courier.keep_delivering(lambda: 50.0, pause_s=0.0, trouble=trouble))
        await until(lambda: control.loop.status().done == 1 and not control.loop.outbox())
        assert together.asked == [tuple(f"d-000001/{n}" for n in range(3))] * (1 + failing)
        assert hands.asked == []
        assert [t.split(":")[0] for t in told] == ["migrate of front, back, other"] * failing
        assert [type(e) for e in control.events][:3] == [OutcomeReported] * 3
        assert control.loop.outbox() == ()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(run())
