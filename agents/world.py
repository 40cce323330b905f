"""The world as an actor: the whole of one that lives in memory (emulation, recordings), the eyes on a real one.

Agents in several processes must act on one emulated testbed, so it has a process of its own. It stands for the physical
world: it is not restarted when it dies, because a world that forgets is not the same world. Of a real testbed it only
keeps samples and says what runs where; the LiMi agents reach their nodes themselves, and a new one is as good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray

from agents.calls import NamedActor
from agents.naming import HOST_LABEL, NAMESPACE, WORLD
from natwork_ray.backends import World, WorldFacts, build_world
from natwork_ray.config import Config
from natwork_ray.domain.actions import (
    ActionOutcome,
    AddNode,
    BlockSource,
    FlowAlert,
    Instruction,
    MeshRetry,
    Migrate,
    Restart,
    Scale,
    SetLimits,
)
from natwork_ray.domain.migrations import MigrationOutlook, MigrationProgress
from natwork_ray.domain.telemetry import FlowShare, NodeUsage, TelemetryWindow
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import Backend
from natwork_ray.errors import PreconditionError

PATIENCE_S = 20.0  # it is never restarted, so there is little to wait for


class WorldActor:
    """One world, shared by everyone who asks."""

    def __init__(self, config: Config) -> None:
        self._world: World = build_world(config)

    async def facts(self) -> WorldFacts:
        """What there is to know of the world from outside the loop (truth, clock, digest)."""
        return self._world.facts()

    async def advance(self, to_s: float) -> None:
        """Let time pass until `to_s`; nothing when it has passed already, so that a repeated call is harmless.

        Where time is not ours to pass, the sample of that moment is taken.
        """
        await self._world.reach(to_s)

    async def window(self, end_s: float, length: int) -> TelemetryWindow:
        """See `TelemetrySource.window`."""
        return await self._world.telemetry.window(end_s=end_s, length=length)

    async def node_usage(self, at_s: float) -> tuple[NodeUsage, ...]:
        """See `TelemetrySource.node_usage`."""
        return await self._world.telemetry.node_usage(at_s=at_s)

    async def flows(self, containers: Sequence[str], at_s: float) -> Mapping[str, tuple[FlowShare, ...]]:
        """See `TelemetrySource.flows`."""
        return await self._world.telemetry.flows(containers, at_s=at_s)

    async def topology(self) -> Topology:
        """See `Orchestrator.topology`."""
        return await self._world.orchestrator.topology()

    async def apply(self, instruction: Instruction) -> ActionOutcome:
        """Carry out an instruction, once by key."""
        return await self._world.apply(instruction)

    async def withdraw(self, key: str) -> ActionOutcome:
        """Take back what the alert of that key did to the network."""
        if self._world.sdn is None:
            raise PreconditionError("there is no SDN controller to tell", hint="set sdn.kind (docs/sdn.md)")
        return await self._world.sdn.withdraw(key)

    async def move_together(self, instructions: Sequence[Migrate]) -> tuple[ActionOutcome, ...]:
        """Carry out the migrations of a service by their schedule, once by their keys."""
        if self._world.service_hands is None:
            raise PreconditionError("this world has no schedules", hint="deliver the migrations one by one")
        topology = await self._world.orchestrator.topology()
        return await self._world.service_hands.move_together(instructions, topology)

    async def outlook(self, container: str, source: str, target: str, weight: float | None) -> MigrationOutlook:
        """See `LimiAgents.outlook`."""
        return await self._world.agents.outlook(container, source=source, target=target, weight=weight)

    async def progress(self, key: str, source: str) -> MigrationProgress | None:
        """See `LimiAgents.progress`."""
        return await self._world.agents.progress(key, source=source)

    async def effects(self, keys: Sequence[str]) -> tuple[int, ...]:
        """How often each key had an effect on the world: 1 when all is well. For tests."""
        return tuple(self._world.effects(key) for key in keys)


class WorldClient:
    """All ports of an in-memory world, across Ray."""

    backend = Backend.EMULATED

    def __init__(self, namespace: str = NAMESPACE) -> None:
        self._actor = NamedActor(WORLD, namespace=namespace, what="emulated world", patience_s=PATIENCE_S)
        self._now_s = 0.0

    async def _ask(self, method: str, *args: Any) -> Any:
        return await self._actor.call(method, *args)

    def now_s(self) -> float:
        """The time that the world had reached when it last answered this client."""
        return self._now_s

    async def facts(self) -> WorldFacts:
        """See `WorldActor.facts`."""
        facts: WorldFacts = await self._ask("facts")
        self._now_s = facts.now_s
        return facts

    async def advance(self, to_s: float) -> None:
        """See `WorldActor.advance`."""
        await self._ask("advance", to_s)
        self._now_s = to_s

    async def window(self, *, end_s: float, length: int) -> TelemetryWindow:
        """See `TelemetrySource`."""
        window: TelemetryWindow = await self._ask("window", end_s, length)
        return window

    async def node_usage(self, *, at_s: float) -> tuple[NodeUsage, ...]:
        """See `TelemetrySource`."""
        usage: tuple[NodeUsage, ...] = await self._ask("node_usage", at_s)
        return usage

    async def flows(self, containers: Sequence[str], *, at_s: float) -> Mapping[str, tuple[FlowShare, ...]]:
        """See `TelemetrySource`."""
        flows: Mapping[str, tuple[FlowShare, ...]] = await self._ask("flows", tuple(containers), at_s)
        return flows

    async def topology(self) -> Topology:
        """See `Orchestrator`."""
        topology: Topology = await self._ask("topology")
        return topology

    async def outlook(self, container: str, *, source: str, target: str, weight: float | None) -> MigrationOutlook:
        """See `LimiAgents`."""
        found: MigrationOutlook = await self._ask("outlook", container, source, target, weight)
        return found

    async def progress(self, key: str, *, source: str) -> MigrationProgress | None:
        """See `LimiAgents`."""
        found: MigrationProgress | None = await self._ask("progress", key, source)
        return found

    async def effects(self, keys: Sequence[str]) -> tuple[int, ...]:
        """See `WorldActor.effects`."""
        effects: tuple[int, ...] = await self._ask("effects", tuple(keys))
        return effects

    async def _apply(self, instruction: Instruction) -> ActionOutcome:
        outcome: ActionOutcome = await self._ask("apply", instruction)
        return outcome

    async def move_together(self, instructions: Sequence[Migrate], topology: Topology) -> tuple[ActionOutcome, ...]:
        """See `ServiceHands`; the world knows its topology."""
        outcomes: tuple[ActionOutcome, ...] = await self._ask("move_together", tuple(instructions))
        return outcomes

    async def migrate(self, instruction: Migrate) -> ActionOutcome:
        """See `NodeActions`."""
        return await self._apply(instruction)

    async def set_limits(self, instruction: SetLimits) -> ActionOutcome:
        """See `NodeActions`."""
        return await self._apply(instruction)

    async def restart(self, instruction: Restart) -> ActionOutcome:
        """See `NodeActions`."""
        return await self._apply(instruction)

    async def block(self, instruction: BlockSource) -> ActionOutcome:
        """See `Firewall`."""
        return await self._apply(instruction)

    async def alert(self, alert: FlowAlert) -> ActionOutcome:
        """See `SdnController`."""
        return await self._apply(alert)

    async def withdraw(self, key: str) -> ActionOutcome:
        """See `SdnController`."""
        outcome: ActionOutcome = await self._ask("withdraw", key)
        return outcome

    async def scale(self, instruction: Scale) -> ActionOutcome:
        """See `Orchestrator`."""
        return await self._apply(instruction)

    async def add_node(self, instruction: AddNode) -> ActionOutcome:
        """See `Orchestrator`."""
        return await self._apply(instruction)

    async def mesh_retry(self, instruction: MeshRetry) -> ActionOutcome:
        """See `Orchestrator`."""
        return await self._apply(instruction)


def start_world(config: Config, *, namespace: str = NAMESPACE) -> WorldClient:
    """Make the world's actor, or find it when it is there."""
    ray.remote(WorldActor).options(
        name=WORLD,
        namespace=namespace,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1 if config.backend == "testbed" else 0,
        max_concurrency=100,
        num_cpus=0,
        label_selector={HOST_LABEL: "yes"},
    ).remote(config)
    return WorldClient(namespace)
