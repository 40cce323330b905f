"""The testbed behind the loop's ports, with runtimes that only answer: what runs where, and what is refused."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters import testbed_world
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.adapters.testbed_world import NodeHands, NodePorts, TestbedWorld
from natwork_ray.domain.actions import AddNode, BlockSource, MeshRetry, Migrate, Restart, Scale, SetLimits
from natwork_ray.domain.runtime import ContainerSpec, ContainerState, ContainerStatus
from natwork_ray.domain.values import encode
from natwork_ray.errors import InputError, NotFoundError, PreconditionError, StoreError
from natwork_ray.limi.agent import AgentSettings
from natwork_ray.limi.choosing import ByEquations

S = ContainerState


@dataclass
class Answering:
    """Every port of one node: says what it was told to say, and what it was asked."""

    states: dict[str, ContainerState] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    shut_down: int = 0

    async def status(self, container: str) -> ContainerStatus:
        return ContainerStatus(container=container, state=self.states.get(container, S.ABSENT), pid=7)

    async def set_limits(self, instruction: Any) -> Any:
        self.asked.append(instruction)

    async def restart(self, instruction: Any) -> Any:
        self.asked.append(instruction)

    async def shut(self) -> None:
        self.shut_down += 1


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answering]:
    found: dict[str, Answering] = {}

    def build(record: TestbedRecord, name: str, tools: Any) -> NodePorts:
        ports: Any = found.setdefault(name, Answering())
        return NodePorts(record.node(name), ports, ports, ports)

    monkeypatch.setattr(testbed_world, "build_ports", build)
    return found


@pytest.fixture
def record(tmp_path: Path) -> TestbedRecord:
    layouts = tuple(
        NodeLayout(
            testbed="nw0000", name=f"node-{n}", folder=tmp_path / f"node-{n}", images=tmp_path / f"images-{n}",
            netns=f"nw0000-{n}", address=f"10.9.9.{n + 2}", ssh_port=2222, bridge="nw0000br",
        )
        for n in range(3)
    )  # fmt: skip
    return TestbedRecord(
        id="nw0000", folder=tmp_path, network="10.9.9.0/24", gateway="10.9.9.1", bridge="nw0000br", nodes=layouts,
        started_at_s=1.0, bandwidth_bytes_per_s=1e8,
    )  # fmt: skip


@pytest.fixture
def world(record: TestbedRecord, nodes: dict[str, Answering]) -> TestbedWorld:
    tools: Any = None
    return TestbedWorld(record, tools, ByEquations(), AgentSettings())


def put(
    record: TestbedRecord, nodes: dict[str, Answering], name: str, node: str, state: ContainerState, **more: Any
) -> None:
    spec = ContainerSpec(
        name=name, image="base", address="10.9.9.50/24", mac="02:00:00:00:00:01", command=("x",), **more
    )
    folder = record.node(node).bundle(name)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_bytes(encode(spec))
    nodes[node].states[name] = state


def test_what_runs_where(world: TestbedWorld, record: TestbedRecord, nodes: dict[str, Answering]) -> None:
    put(record, nodes, "web", "node-0", S.RUNNING, service="shop", depends_on=("db",), cpu_limit_cores=0.5)
    put(record, nodes, "db", "node-1", S.FROZEN)  # it moves just now
    put(record, nodes, "db", "node-2", S.RUNNING)
    put(record, nodes, "cache", "node-2", S.FROZEN)
    put(record, nodes, "gone", "node-2", S.STOPPED)
    (record.node("node-2").bundles / "half-made").mkdir()
    (record.node("node-2").bundles / "stray").touch()
    topology = asyncio.run(world.topology())
    assert {c.name: (c.node, c.network_service, c.cpu_limit_cores) for c in topology.containers} == {
        "web": ("node-0", "shop", 0.5), "db": ("node-2", "db", 0.0), "cache": ("node-2", "cache", 0.0),
    }  # fmt: skip
    assert len(topology.nodes) == len(topology.links) == 3
    assert {k.bandwidth_bytes_per_s for k in topology.links} == {1e8}
    running = asyncio.run(world.running())
    assert [(r.container.name, r.container.node, r.pid) for r in running] == [("web", "node-0", 7), ("db", "node-2", 7)]


def test_a_damaged_spec_is_an_error(world: TestbedWorld, record: TestbedRecord, nodes: dict[str, Answering]) -> None:
    put(record, nodes, "web", "node-0", S.RUNNING)
    (record.node("node-0").bundle("web") / "spec.json").write_text("{}")
    with pytest.raises(InputError):
        asyncio.run(world.topology())


def test_changes_in_place_go_to_the_node(
    world: TestbedWorld, record: TestbedRecord, nodes: dict[str, Answering]
) -> None:
    put(record, nodes, "web", "node-1", S.RUNNING)
    limits, restart = SetLimits(key="l", container="web", cpu_limit_cores=1.0), Restart(key="r", container="web")
    asyncio.run(world.set_limits(limits))
    asyncio.run(world.restart(restart))
    assert nodes["node-1"].asked == [limits, restart]
    with pytest.raises(NotFoundError):
        asyncio.run(world.restart(replace(restart, container="ghost")))


def test_what_one_machine_has_no_hands_for(world: TestbedWorld, nodes: dict[str, Answering]) -> None:
    agent: Any = None
    hands: Any = NodeHands(agent, nodes["node-0"])  # type: ignore[arg-type]
    for asked in (
        world.block(BlockSource(key="b", container="web", source="1.2.3.4/32", expires_at_s=9.0)),
        world.scale(Scale(key="s", container="web", replicas=2)),
        world.add_node(AddNode(key="a", container="web")),
        world.mesh_retry(MeshRetry(key="m", container="web", enabled=True)),
        hands.topology(),
    ):
        with pytest.raises(PreconditionError, match="on the testbed"):
            asyncio.run(asked)


def test_agents_are_made_when_they_are_needed(
    world: TestbedWorld, nodes: dict[str, Answering], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError):
        world.agent("node-9")
    assert world._agents == {}
    recovered = asyncio.run(world.recover())
    assert (recovered, sorted(world._agents)) == ((), ["node-0", "node-1", "node-2"])
    assert world.agent("node-1") is world.agent("node-1")
    seen: list[Any] = []

    async def noted(*arguments: Any, **more: Any) -> None:
        seen.append((arguments, more))

    agent = world.agent("node-0")
    for verb in ("migrate", "outlook", "progress"):
        monkeypatch.setattr(agent, verb, noted)
    order = Migrate(key="k", container="web", source="node-0", target="node-1")
    asyncio.run(world.migrate(order))
    asyncio.run(world.outlook("web", source="node-0", target="node-1", weight=0.1))
    asyncio.run(world.progress("k", source="node-0"))
    hands = NodeHands(agent, nodes["node-0"])  # type: ignore[arg-type]
    asyncio.run(hands.migrate(order))
    asyncio.run(hands.set_limits(SetLimits(key="l", container="web")))
    asyncio.run(hands.restart(Restart(key="r", container="web")))
    assert [s[0] for s in seen] == [(order,), ("web", "node-1"), ("k",), (order,)]
    assert len(nodes["node-0"].asked) == 2
    asyncio.run(world.shut())
    assert [n.shut_down for n in nodes.values()] == [2, 2, 2]  # transfer and bridge


def test_damaged_notes_about_a_container_keep_it_from_that_node(world: TestbedWorld, record: TestbedRecord) -> None:
    folder = record.node("node-1").journal / "open"
    folder.mkdir(parents=True)
    (folder / "web%40register.jsonl").write_bytes(b"garbage\n")
    with pytest.raises(StoreError, match=r"web%40register\.jsonl") as caught:
        asyncio.run(world.outlook("web", source="node-0", target="node-1", weight=None))
    assert "move the file to another folder" in caught.value.hint
