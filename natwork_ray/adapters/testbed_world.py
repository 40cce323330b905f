"""The real testbed of this machine behind the loop's ports: what runs where, and the LiMi agents that move it.

One `LimiNode` per node with its real ports (runC and CRIU, rsync through SSH, the bridge) and its journal on disk. In
one process (`natwork migrate` while nothing is up) all agents live together and call each other directly; under
`natwork up` each has a Ray actor of its own, made with `build_agent`.

Left out: what one machine's testbed has no hands for. Replicas, spare nodes, a service mesh and a packet filter are
refused, and the decision that wanted them is marked as failed.

    testbed = TestbedWorld(current(state_dir), ByEquations(), AgentSettings())
    await testbed.topology()
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import psutil

from natwork_ray.adapters.l2_bridge import L2Bridge
from natwork_ray.adapters.migration_journal import FileMigrationJournal
from natwork_ray.adapters.process_telemetry import RunningContainer
from natwork_ray.adapters.rsync_ssh import RsyncSsh
from natwork_ray.adapters.runc_criu import RuncCriu
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.domain.actions import (
    ActionOutcome,
    AddNode,
    BlockSource,
    MeshRetry,
    Migrate,
    Restart,
    Scale,
    SetLimits,
)
from natwork_ray.domain.migrations import MigrationOutlook, MigrationProgress, MigrationRecord
from natwork_ray.domain.phases import Gate
from natwork_ray.domain.runtime import ContainerSpec, ContainerState, ContainerStatus
from natwork_ray.domain.topology import Container, Link, Node, NodeRole, Slice, Topology
from natwork_ray.domain.values import Backend, decode
from natwork_ray.errors import NotFoundError, PreconditionError
from natwork_ray.limi.agent import AgentSettings, MigrationAgent, Peer
from natwork_ray.limi.choosing import MethodChooser
from natwork_ray.limi.holding import HoldNews
from natwork_ray.limi.node import LimiNode
from natwork_ray.ports import ContainerControl

SLICE = "testbed"
_UNSHAPED_BYTES_PER_S = 1e9  # what a link of an unshaped testbed is taken for until a path was measured
_RTT_S = 0.0001
_MAX_SPEC_BYTES = 262_144


class WallClock:
    """Seconds since the epoch; within one process it never goes back."""

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def now_s(self) -> float:
        """The present moment."""
        return self._offset_s + time.monotonic()


@dataclass
class NodePorts:
    """The real ports of one node."""

    layout: NodeLayout
    runtime: RuncCriu
    transfer: RsyncSsh
    bridge: L2Bridge

    async def shut(self) -> None:
        """End connections and threads; containers, images and network stay as they are."""
        await self.transfer.shut()
        await self.bridge.shut()


def build_ports(record: TestbedRecord, name: str, tools: Toolchain) -> NodePorts:
    """The real ports of a node.

    Raises:
        NotFoundError: the testbed has no such node.
    """
    layout = record.node(name)
    peers = {node.name: node for node in record.nodes}
    return NodePorts(layout, RuncCriu(layout, tools), RsyncSsh(layout, peers, tools), L2Bridge(layout))


def build_node(ports: NodePorts) -> LimiNode:
    """The node's side of every migration, with its journal on disk."""
    layout = ports.layout
    journal = FileMigrationJournal(layout.journal)
    return LimiNode(layout.name, ports.runtime, ports.transfer, ports.bridge, journal, WallClock())


def build_agent(
    ports: NodePorts, *, peer: Callable[[str], Peer], chooser: MethodChooser, settings: AgentSettings
) -> MigrationAgent:
    """The agent of a node."""
    return MigrationAgent(build_node(ports), backend=Backend.REAL, peer=peer, chooser=chooser, settings=settings)


async def survey(record: TestbedRecord, ports: Mapping[str, NodePorts]) -> Topology:
    """What runs where, asked of every node's runtime.

    A container that moves just now is counted where it runs, else where it stands frozen.
    """
    found: dict[str, tuple[str, ContainerSpec, ContainerStatus]] = {}
    for name, node in ports.items():
        for spec in specs_of(node.layout):
            status = await node.runtime.status(spec.name)
            if status.state not in (ContainerState.RUNNING, ContainerState.FROZEN):
                continue
            known = found.get(spec.name)
            if known is None or status.state is ContainerState.RUNNING:
                found[spec.name] = (name, spec, status)
    return Topology(
        nodes=tuple(
            Node(
                name=node.name,
                role=NodeRole.EDGE,
                cpu_cores=float(os.cpu_count() or 1),
                memory_bytes=float(psutil.virtual_memory().total),
            )
            for node in record.nodes
        ),
        links=tuple(
            Link(
                a=a.name,
                b=b.name,
                bandwidth_bytes_per_s=record.bandwidth_bytes_per_s or _UNSHAPED_BYTES_PER_S,
                rtt_s=_RTT_S,
            )
            for n, a in enumerate(record.nodes)
            for b in record.nodes[n + 1 :]
        ),
        slices=(Slice(name=SLICE, description="every container of the testbed"),),
        containers=tuple(_container(spec, where) for where, spec, _ in found.values()),
    )


async def running(ports: Mapping[str, NodePorts]) -> tuple[RunningContainer, ...]:
    """Every container that runs on these nodes now, with its first process."""
    found = []
    for name, node in ports.items():
        for spec in specs_of(node.layout):
            status = await node.runtime.status(spec.name)
            if status.state is ContainerState.RUNNING:
                found.append(RunningContainer(container=_container(spec, name), pid=status.pid))
    return tuple(found)


def specs_of(layout: NodeLayout) -> tuple[ContainerSpec, ...]:
    """The containers that have a bundle on a node, whether they run there or not."""
    if not layout.bundles.is_dir():
        return ()
    found: list[ContainerSpec] = []
    for entry in sorted(layout.bundles.iterdir()):
        try:
            with (entry / "spec.json").open("rb") as stream:
                found.append(decode(ContainerSpec, stream.read(_MAX_SPEC_BYTES)))
        except (FileNotFoundError, NotADirectoryError):
            continue  # a bundle that is just being made, or taken away
    return tuple(found)


def _container(spec: ContainerSpec, node: str) -> Container:
    return Container(
        name=spec.name,
        service=spec.service or spec.name,
        network_service=spec.service or spec.name,
        slice=SLICE,
        node=node,
        replicas=1,
        cpu_limit_cores=spec.cpu_limit_cores,
        memory_limit_bytes=spec.memory_limit_bytes,
        depends_on=spec.depends_on,
    )


class MigrationOnly:
    """What a testbed on one machine refuses, in the words of the ports."""

    async def block(self, instruction: BlockSource) -> ActionOutcome:
        """Refused: there is no packet filter of ours."""
        raise no_hands(f"{instruction.source} cannot be kept from {instruction.container}")

    async def scale(self, instruction: Scale) -> ActionOutcome:
        """Refused: a container is one process tree."""
        raise no_hands(f"{instruction.container} has one replica")

    async def add_node(self, instruction: AddNode) -> ActionOutcome:
        """Refused: nodes are made by `natwork testbed up`."""
        raise no_hands(f"there is no spare node for {instruction.container}")

    async def mesh_retry(self, instruction: MeshRetry) -> ActionOutcome:
        """Refused: there is no service mesh."""
        raise no_hands(f"there is no service mesh around {instruction.container}")


class NodeHands(MigrationOnly):
    """`NodeActions`, `Firewall` and `Orchestrator` of one node: its agent migrates, its runtime limits and restarts."""

    def __init__(self, agent: MigrationAgent, control: ContainerControl) -> None:
        self._agent, self._control = agent, control

    async def migrate(self, instruction: Migrate) -> ActionOutcome:
        """See `Migrator`."""
        return await self._agent.migrate(instruction)

    async def set_limits(self, instruction: SetLimits) -> ActionOutcome:
        """See `ContainerControl`."""
        return await self._control.set_limits(instruction)

    async def restart(self, instruction: Restart) -> ActionOutcome:
        """See `ContainerControl`."""
        return await self._control.restart(instruction)

    async def topology(self) -> Topology:
        """Refused: a node knows itself only."""
        raise no_hands("one node does not know what runs on the others")


@dataclass
class TestbedWorld(MigrationOnly):
    """A testbed in this process: `NodeActions`, `Orchestrator`, `Firewall`, `LimiAgents` and `GateAgents` in one.

    An agent is made when it is first needed, so that who only looks has none.
    """

    __test__ = False  # its name is not meant for pytest

    record: TestbedRecord
    tools: Toolchain
    chooser: MethodChooser
    settings: AgentSettings
    clock: WallClock = field(default_factory=WallClock)
    _ports: dict[str, NodePorts] = field(default_factory=dict, repr=False)
    _agents: dict[str, MigrationAgent] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for layout in self.record.nodes:
            self._ports[layout.name] = build_ports(self.record, layout.name, self.tools)

    def addresses(self, container: str) -> tuple[str, ...]:
        """The container's IP addresses; none where no node has its bundle."""
        specs = (spec for layout in self.record.nodes for spec in specs_of(layout))
        return tuple(dict.fromkeys(s.address.partition("/")[0] for s in specs if s.name == container))

    def agent(self, node: str) -> MigrationAgent:
        """The agent of a node.

        Raises:
            NotFoundError: the testbed has no such node.
        """
        self.record.node(node)
        if node not in self._agents:
            self._agents[node] = build_agent(
                self._ports[node], peer=self.agent, chooser=self.chooser, settings=self.settings
            )
        return self._agents[node]

    async def recover(self) -> tuple[MigrationRecord, ...]:
        """Settle what agents that were killed left open."""
        return tuple([r for node in self._ports for r in await self.agent(node).recover()])

    async def topology(self) -> Topology:
        """What runs where, now."""
        return await survey(self.record, self._ports)

    async def running(self) -> tuple[RunningContainer, ...]:
        """Every container that runs now, with its first process."""
        return await running(self._ports)

    async def outlook(self, container: str, *, source: str, target: str, weight: float | None) -> MigrationOutlook:
        """See `LimiAgents`; StoreError also where the target's notes about the container are damaged."""
        self.agent(target).check_journal(container)
        return await self.agent(source).outlook(container, target, weight=weight)

    async def progress(self, key: str, *, source: str) -> MigrationProgress | None:
        """See `LimiAgents`."""
        return await self.agent(source).progress(key)

    async def news(self, key: str, *, source: str, after: int, patience_s: float) -> HoldNews:
        """See `GateAgents`."""
        return await self.agent(source).news(key, after=after, patience_s=patience_s)

    async def release(self, key: str, gate: Gate, *, source: str) -> None:
        """See `GateAgents`."""
        await self.agent(source).release(key, gate)

    async def cancel(self, key: str, reason: str, *, source: str) -> None:
        """See `GateAgents`."""
        await self.agent(source).cancel(key, reason)

    async def migrate(self, instruction: Migrate) -> ActionOutcome:
        """See `Migrator`."""
        return await self.agent(instruction.source).migrate(instruction)

    async def set_limits(self, instruction: SetLimits) -> ActionOutcome:
        """See `ContainerControl`."""
        return await (await self._home(instruction.container)).runtime.set_limits(instruction)

    async def restart(self, instruction: Restart) -> ActionOutcome:
        """See `ContainerControl`."""
        return await (await self._home(instruction.container)).runtime.restart(instruction)

    async def _home(self, container: str) -> NodePorts:
        found = (await self.topology()).container(container)
        if found is None:
            raise NotFoundError(f"{container} runs on no node", hint="`natwork testbed containers` lists what runs")
        return self._ports[found.node]

    async def shut(self) -> None:
        """End connections and threads; what runs goes on."""
        for agent in self._agents.values():
            await agent.node.close()
        for ports in self._ports.values():
            await ports.shut()


def no_hands(what: str) -> PreconditionError:
    """The error of an action that a testbed on one machine has no means for."""
    return PreconditionError(f"on the testbed {what}", hint="live migration is what it offers (docs/testbed.md)")
