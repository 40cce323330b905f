"""A service conducted across its agents, in the laboratory: together, as a whole, and beyond the conductor's death."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from natwork_ray.control.service_moves import ConductedMoves, deliveries, never_begun, schedule_of
from natwork_ray.domain.actions import ActionOutcome, Migrate, Scale, ServiceMove
from natwork_ray.domain.phases import Gate, OnFailure
from natwork_ray.domain.topology import Container, Link, Node, NodeRole, Topology
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.lab_runtime import LabRuntime
from natwork_ray.emulation.lab_transfer import LabBridge, LabJournal, LabTransfer
from natwork_ray.emulation.lab_values import ContainerProfile, LabContainer, LabNode
from natwork_ray.emulation.migration_lab import MigrationLab
from natwork_ray.errors import NotFoundError, PreconditionError, TimedOutError
from natwork_ray.limi.agent import AgentSettings, MigrationAgent
from natwork_ray.limi.arrivals import Arrivals, arrivals_of
from natwork_ray.limi.choosing import ByEquations
from natwork_ray.limi.holding import HoldNews
from natwork_ray.limi.node import LimiNode

MIB = float(2**20)
SIZES = {"web": 24, "cart": 64, "db": 200}
CALLS = {"web": ("cart", "db"), "cart": ("db",), "db": ()}
NODES = ("a", "b", "c")
LINKS = tuple(
    Link(a=x, b=y, bandwidth_bytes_per_s=120 * MIB, rtt_s=0.001) for x, y in (("a", "b"), ("a", "c"), ("b", "c"))
)


def topology(**homes: str) -> Topology:
    return Topology(
        nodes=tuple(Node(name=n, role=NodeRole.EDGE, cpu_cores=8.0, memory_bytes=2.0**33) for n in NODES),
        links=LINKS,
        slices=(),
        containers=tuple(
            Container(
                name=name, service=name, network_service="shop", slice="", node=homes.get(name, "a"), replicas=1,
                cpu_limit_cores=1.0, memory_limit_bytes=512 * MIB, depends_on=CALLS[name],
            )
            for name in SIZES
        ),
    )  # fmt: skip


class World:
    """Three agents in one laboratory, as a conductor reaches them."""

    def __init__(self, **start: str) -> None:
        self.lab = MigrationLab(
            [LabNode(name=n) for n in NODES],
            LINKS,
            [
                LabContainer(
                    name=name,
                    node=start.get(name, "a"),
                    profile=ContainerProfile(
                        memory_bytes=size * MIB, dirty_bytes_per_s=4 * MIB, working_set_bytes=size / 4 * MIB
                    ),
                )
                for name, size in SIZES.items()
            ],
            seed=11,
        )
        self.agents: dict[str, MigrationAgent] = {}
        self.asked: list[str] = []
        self.mute = 0

    def begin(self) -> None:
        lab = self.lab
        for name in NODES:
            node = LimiNode(
                name, LabRuntime(lab, name), LabTransfer(lab, name), LabBridge(lab, name), LabJournal(), lab.clock
            )
            self.agents[name] = MigrationAgent(
                node, backend=Backend.EMULATED, peer=lambda n: self.agents[n], chooser=ByEquations(),
                settings=AgentSettings(),
            )  # fmt: skip

    async def news(self, key: str, *, source: str, after: int, patience_s: float) -> HoldNews:
        if self.mute and patience_s:
            self.mute -= 1
            raise TimedOutError("the agent is away", hint="wait")
        return await self.agents[source].news(key, after=after, patience_s=patience_s)

    async def release(self, key: str, gate: Gate, *, source: str) -> None:
        self.asked.append(f"{key} {gate}")
        await self.agents[source].release(key, gate)

    async def cancel(self, key: str, reason: str, *, source: str) -> None:
        await self.agents[source].cancel(key, reason)

    async def execute(self, i: Migrate) -> ActionOutcome:
        return await self.agents[i.source].migrate(i)

    def conductor(self, execute: Any = None) -> ConductedMoves:
        return ConductedMoves(execute or self.execute, self, self.lab.clock, backend=Backend.EMULATED)

    async def orders(self, **fields: Any) -> tuple[Migrate, ...]:
        """What the loop would order, by the agents' own measurements."""
        together = ServiceMove(
            **{"id": "d-1", "service": "shop", "gates": tuple(Gate), "on_failure": OnFailure.BRING_BACK,
               "patience_s": 60.0, **fields}
        )  # fmt: skip
        found = []
        for number, name in enumerate(SIZES):
            outlook = await self.agents["a"].outlook(name, "b", weight=None)
            forecast = outlook.forecast()
            assert forecast is not None
            found.append(
                Migrate(
                    key=f"d-1/{number}", container=name, source="a", target="b", method=forecast.method,
                    load=outlook.load, forecast=forecast, together=together,
                )
            )  # fmt: skip
        return tuple(found)


def played(world: World, scene: Any) -> Any:
    async def run() -> Any:
        world.begin()
        return await scene()

    return world.lab.run(run)


def seen(outcomes: tuple[ActionOutcome, ...]) -> Arrivals:
    return arrivals_of([o.record for o in outcomes if o.record])


@pytest.mark.parametrize("mute", [0, 4])
def test_all_arrive_together(mute: int) -> None:
    world = World()

    async def scene() -> tuple[ActionOutcome, ...]:
        orders = await world.orders()
        world.mute = mute
        return await world.conductor().move_together(orders, topology())

    outcomes = played(world, scene)
    assert [o.key for o in outcomes] == ["d-1/0", "d-1/1", "d-1/2"]
    assert all(o.done for o in outcomes)
    arrivals = seen(outcomes)
    assert arrivals.arrived == tuple(SIZES)
    assert arrivals.stayed == ()
    assert arrivals.spread_pct is not None
    assert arrivals.spread_pct < (5.0 if not mute else 30.0)
    assert arrivals.unavailable_s < 1.5 * max(o.downtime_s for o in outcomes)
    assert {world.lab.runs_on(name) for name in SIZES} == {("b",)}
    assert sorted(world.asked) == sorted(f"d-1/{n} {g}" for n in range(3) for g in Gate)
    assert world.lab.violations == []


@pytest.mark.parametrize("on_failure", list(OnFailure))
def test_one_that_cannot_begin_decides_about_the_others(on_failure: OnFailure) -> None:
    world = World()

    async def execute(i: Migrate) -> ActionOutcome:
        if i.container != "cart":
            return await world.execute(i)
        await asyncio.sleep(0.3)
        return replace(never_begun(i, world.lab.now_s(), Backend.EMULATED), error="no room")

    async def scene() -> tuple[ActionOutcome, ...]:
        orders = await world.orders(on_failure=on_failure)
        return await world.conductor(execute).move_together(orders, topology())

    outcomes = {o.key: o for o in played(world, scene)}
    assert outcomes["d-1/1"].error == "no room"
    gone = on_failure is OnFailure.CARRY_ON
    for name, key in (("web", "d-1/0"), ("db", "d-1/2")):
        assert outcomes[key].done is gone
        assert world.lab.runs_on(name) == (("b",) if gone else ("a",))
        assert gone or "as a whole" in outcomes[key].error
    assert world.lab.runs_on("cart") == ("a",)


@pytest.mark.parametrize("after_s", [0.2, 2.0, 3.0, 3.6])
def test_the_next_conductor_takes_all_of_them_up(after_s: float) -> None:
    world = World()

    async def scene() -> tuple[ActionOutcome, ...]:
        orders = await world.orders()
        first = asyncio.create_task(world.conductor().move_together(orders, topology()))
        await asyncio.sleep(after_s)
        first.cancel()
        await asyncio.wait({first})
        await asyncio.sleep(1.0)
        return await world.conductor().move_together(orders, topology())

    outcomes = played(world, scene)
    assert all(o.done for o in outcomes)
    assert {world.lab.runs_on(name) for name in SIZES} == {("b",)}
    assert seen(outcomes).spread_s < 0.2  # type: ignore[operator]


@pytest.mark.parametrize("after_s", [1.0, 2.4, 2.8, 3.2, 3.4, 3.6, 4.0])
def test_a_conductor_that_stays_dead_leaves_each_on_one_node(after_s: float) -> None:
    world = World()

    async def scene() -> tuple[ActionOutcome, ...]:
        orders = await world.orders()
        first = asyncio.create_task(world.conductor().move_together(orders, topology()))
        await asyncio.sleep(after_s)
        first.cancel()
        await asyncio.wait({first})
        await asyncio.sleep(60.0)  # both silences pass
        assert all(not agent._tasks for agent in world.agents.values()), "the agents came to an end by themselves"
        return await world.conductor().move_together(orders, topology(web=world.lab.runs_on("web")[0]))

    outcomes = played(world, scene)
    for order, outcome in zip(SIZES, outcomes, strict=True):
        assert world.lab.runs_on(order) == (("b",) if outcome.done else ("a",))
        assert world.lab.address_on(order) == world.lab.runs_on(order)
        down_s = outcome.record.downtime_s if outcome.record else 0.0
        assert down_s < 12.0, "nobody stood still for longer than the silence and the way back"


def test_a_silent_agent_is_a_matter_for_later() -> None:
    world = World()

    async def execute(i: Migrate) -> ActionOutcome:
        if i.container == "db":
            raise TimedOutError("no answer", hint="wait")
        return await world.execute(i)

    async def scene() -> None:
        orders = await world.orders()
        with pytest.raises(TimedOutError):
            await world.conductor(execute).move_together(orders, topology())
        outcomes = await world.conductor().move_together(orders, topology())
        assert [bool(o.record) for o in outcomes].count(False) == [o.done for o in outcomes].count(False)
        assert all(o.done or o.error for o in outcomes)

    played(world, scene)


def order(name: str = "web", **fields: Any) -> Migrate:
    return Migrate(**{"key": f"k-{name}", "container": name, "source": "a", "target": "b", **fields})


def test_what_is_delivered_as_one() -> None:
    one = ServiceMove(id="d-1", service="s", gates=(), on_failure=OnFailure.CARRY_ON, patience_s=1.0)
    mine = (order("web", together=one), order("db", together=one))
    other = order("cart", together=replace(one, id="d-2"))
    alone, scaled = order("x"), Scale(key="k", container="x", replicas=2)
    assert deliveries((mine[0], alone, other, mine[1], scaled)) == (mine, (alone,), (other,), (scaled,))


def test_what_is_no_schedule() -> None:
    with pytest.raises(PreconditionError):
        schedule_of((), topology())
    with pytest.raises(PreconditionError):
        schedule_of((order(),), topology())
    world = World()

    async def scene() -> None:
        orders = await world.orders()
        _, plan = schedule_of(orders, topology())
        assert plan.waves == (tuple(SIZES),)
        assert schedule_of(orders, topology(web="b", db="b"))[1] == plan, "planned from where they came"
        with pytest.raises(PreconditionError):
            schedule_of((orders[0], replace(orders[1], together=None)), topology())
        with pytest.raises(NotFoundError):
            schedule_of(orders, replace(topology(), containers=()))

    played(world, scene)
