"""LiMi agents: one per node, pinned to it, the hands of the loop on that node (D3.3 section 2.1).

On the real testbed an agent holds its node's ports and journal: it is the LiMi server for migrations that come, doing
steps for whoever drives them, and the LiMi client of those that leave, which it drives. In an in-memory world it passes
instructions on to the world's actor. Delivery is at-least-once: a key that was carried out is answered, not carried out
again (the ports' contract), so an agent killed at any moment can simply be asked again; the new one begins by bringing
to an end what its journal holds open, asked or not: a container may be standing still.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

import ray

from agents.calls import PATIENCE_S, NamedActor
from agents.naming import HOST_LABEL, NAMESPACE, NODE_LABEL, limi_name
from agents.world import WorldClient
from natwork_ray.backends import build_limi_agent, node_exporter
from natwork_ray.config import Config
from natwork_ray.control.executor import Executor
from natwork_ray.domain.actions import ActionOutcome, Instruction
from natwork_ray.domain.migrations import MigrationOutlook, MigrationProgress
from natwork_ray.domain.phases import Gate
from natwork_ray.domain.runtime import RuntimeAbilities
from natwork_ray.domain.values import Backend
from natwork_ray.errors import NatworkError, PreconditionError
from natwork_ray.limi.agent import MigrationAgent
from natwork_ray.limi.holding import HoldNews
from natwork_ray.limi.steps import Step, StepReport
from natwork_ray.ports import ContainerControl

T = TypeVar("T")
# How long an answer of a real agent is waited for: whole migrations and transfers take their time, and a migration has
# time-outs of its own for each step. A dead agent is noticed at once, and asked again when it is back.
LONG_PATIENCE_S = 86_400.0

_log = logging.getLogger(__name__)


class Home(Protocol):
    """What an agent lives on: a world in memory, or a node of the testbed."""

    async def execute(self, instruction: Instruction) -> ActionOutcome:
        """Carry out one instruction, idempotently by key."""
        ...

    async def perform(self, step: Step) -> StepReport:
        """Do a step of a migration."""
        ...

    async def abilities(self) -> RuntimeAbilities:
        """What the node can do."""
        ...

    async def outlook(self, container: str, target: str, weight: float | None) -> MigrationOutlook:
        """How a migration would go."""
        ...

    async def progress(self, key: str) -> MigrationProgress | None:
        """How far one has come."""
        ...

    async def news(self, key: str, after: int, patience_s: float) -> HoldNews:
        """Milestones of a conducted migration."""
        ...

    async def release(self, key: str, gate: Gate) -> None:
        """Let a conducted migration pass a gate."""
        ...

    async def cancel(self, key: str, reason: str) -> None:
        """Take a conducted migration back."""
        ...


class InMemoryHome:
    """A node of the world that lives in another actor."""

    def __init__(self, node: str, namespace: str) -> None:
        self._node, self._world = node, WorldClient(namespace)
        world = self._world
        self._executor = Executor(
            runtime=world, firewall=world, orchestrator=world, clock=world, backend=world.backend, sdn=world
        )

    async def execute(self, instruction: Instruction) -> ActionOutcome:
        """See `Home`."""
        return await self._executor.execute(instruction)

    async def perform(self, step: Step) -> StepReport:
        """Refused: the world does its migrations itself."""
        raise PreconditionError(f"{self._node} is a node in memory", hint="give it the whole migration instead")

    async def abilities(self) -> RuntimeAbilities:
        """Refused, as `perform`."""
        raise PreconditionError(f"{self._node} is a node in memory", hint="ask it for an outlook instead")

    async def outlook(self, container: str, target: str, weight: float | None) -> MigrationOutlook:
        """See `Home`."""
        return await self._world.outlook(container, source=self._node, target=target, weight=weight)

    async def progress(self, key: str) -> MigrationProgress | None:
        """See `Home`."""
        return await self._world.progress(key, source=self._node)

    async def news(self, key: str, after: int, patience_s: float) -> HoldNews:
        """Nothing is known here: the world conducts its services itself."""
        return HoldNews(known=False)

    async def release(self, key: str, gate: Gate) -> None:
        """Refused, as `perform`."""
        raise PreconditionError(f"{self._node} is a node in memory", hint="give the world the whole service instead")

    async def cancel(self, key: str, reason: str) -> None:
        """Refused, as `perform`."""
        raise PreconditionError(f"{self._node} is a node in memory", hint="give the world the whole service instead")


class NodeHome:
    """A node with ports and a journal of its own.

    Everything of it lives in the event loop of one thread, which is there before anybody calls: recovery must not wait
    for a call.
    """

    def __init__(self, agent: MigrationAgent, control: ContainerControl) -> None:
        # Here, not at the top: an agent of an in-memory world needs none of the real machine's adapters.
        from natwork_ray.adapters.testbed_world import NodeHands

        self._agent = agent
        hands = NodeHands(agent, control)
        self._executor = Executor(
            runtime=hands, firewall=hands, orchestrator=hands, clock=agent.node.clock, backend=Backend.REAL
        )
        # Ray installs uvloop, whose pipes and subprocesses are not those of the standard library that adapters rely on.
        asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="limi", daemon=True).start()
        self._recovery = asyncio.run_coroutine_threadsafe(self._recover(), self._loop)

    async def _recover(self) -> None:
        try:
            for record in await self._agent.recover():
                _log.warning("migration %s recovered: %s, runs on %s", record.key, record.state, record.runs_on)
        except Exception:
            # Without it a container may stand still for ever. Ray makes a new process, which tries again.
            _log.exception("recovery failed; this process ends")
            os._exit(70)

    async def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def execute(self, instruction: Instruction) -> ActionOutcome:
        """See `Home`."""
        return await self._in_loop(self._executor.execute(instruction))

    async def perform(self, step: Step) -> StepReport:
        """See `Home`."""
        return await self._in_loop(self._agent.perform(step))

    async def abilities(self) -> RuntimeAbilities:
        """See `Home`."""
        return await self._in_loop(self._agent.abilities())

    async def outlook(self, container: str, target: str, weight: float | None) -> MigrationOutlook:
        """See `Home`."""
        return await self._in_loop(self._agent.outlook(container, target, weight=weight))

    async def progress(self, key: str) -> MigrationProgress | None:
        """See `Home`."""
        return await self._in_loop(self._agent.progress(key))

    async def news(self, key: str, after: int, patience_s: float) -> HoldNews:
        """See `Home`."""
        return await self._in_loop(self._agent.news(key, after=after, patience_s=patience_s))

    async def release(self, key: str, gate: Gate) -> None:
        """See `Home`."""
        await self._in_loop(self._agent.release(key, gate))

    async def cancel(self, key: str, reason: str) -> None:
        """See `Home`."""
        await self._in_loop(self._agent.cancel(key, reason))


class LimiAgent:
    """The agent of one node."""

    def __init__(self, node: str, namespace: str, config: Config | None) -> None:
        self.node = node
        self._exporting = ExitStack()
        self._home: Home
        if config is not None and config.backend == "testbed":

            def peer(name: str) -> LimiClient:
                return LimiClient(name, namespace, LONG_PATIENCE_S)

            self._home = NodeHome(*build_limi_agent(config, node, peer))
            self._export(config)
        else:
            self._home = InMemoryHome(node, namespace)

    def _export(self, config: Config) -> None:
        """Answer Prometheus' scrapes for as long as this process lives, where the configuration says so."""
        try:
            exporter = node_exporter(config, self.node)
            if exporter is not None:
                _log.info("scrapes are answered at %s:%d", *self._exporting.enter_context(exporter))
        except NatworkError as error:
            # A taken port must not keep a node from migrating its containers; the server sees its target down.
            _log.warning("the containers of %s are not exported: %s", self.node, error)

    async def execute(self, instruction: Instruction) -> ActionOutcome:
        """Carry out one instruction, idempotently by key."""
        return await self._home.execute(instruction)

    async def perform(self, step: Step) -> StepReport:
        """Do a step of a migration, idempotently by its key and number."""
        return await self._home.perform(step)

    async def abilities(self) -> RuntimeAbilities:
        """What the node can do."""
        return await self._home.abilities()

    async def outlook(self, container: str, target: str, weight: float | None) -> MigrationOutlook:
        """Measure a container and say how each method would go."""
        return await self._home.outlook(container, target, weight)

    async def progress(self, key: str) -> MigrationProgress | None:
        """How far a migration of this source has come; None when none of that key is under way."""
        return await self._home.progress(key)

    async def news(self, key: str, after: int, patience_s: float) -> HoldNews:
        """How far a conducted migration is: once there is more than `after` milestones, or after `patience_s`."""
        return await self._home.news(key, after, patience_s)

    async def release(self, key: str, gate: Gate) -> None:
        """Let a conducted migration pass a gate; a repeated call changes nothing."""
        await self._home.release(key, gate)

    async def cancel(self, key: str, reason: str) -> None:
        """Take a conducted migration back, if it still can go back; a repeated call changes nothing."""
        await self._home.cancel(key, reason)

    async def pid(self) -> int:
        """Process id, for health checks and for tests that kill it."""
        return os.getpid()


class LimiClient:
    """A node's agent across Ray: `Hands` for the loop, `Peer` for the other agents."""

    def __init__(self, node: str, namespace: str = NAMESPACE, patience_s: float = PATIENCE_S) -> None:
        self._actor = NamedActor(
            limi_name(node), namespace=namespace, what=f"LiMi agent of {node}", patience_s=patience_s
        )

    async def execute(self, instruction: Instruction) -> ActionOutcome:
        """See `LimiAgent.execute`."""
        outcome: ActionOutcome = await self._actor.call("execute", instruction)
        return outcome

    async def perform(self, step: Step) -> StepReport:
        """See `LimiAgent.perform`."""
        report: StepReport = await self._actor.call("perform", step)
        return report

    async def abilities(self) -> RuntimeAbilities:
        """See `LimiAgent.abilities`."""
        able: RuntimeAbilities = await self._actor.call("abilities")
        return able

    async def outlook(self, container: str, target: str, weight: float | None) -> MigrationOutlook:
        """See `LimiAgent.outlook`."""
        found: MigrationOutlook = await self._actor.call("outlook", container, target, weight)
        return found

    async def progress(self, key: str) -> MigrationProgress | None:
        """See `LimiAgent.progress`."""
        found: MigrationProgress | None = await self._actor.call("progress", key)
        return found

    async def news(self, key: str, after: int, patience_s: float) -> HoldNews:
        """See `LimiAgent.news`."""
        news: HoldNews = await self._actor.call("news", key, after, patience_s)
        return news

    async def release(self, key: str, gate: Gate) -> None:
        """See `LimiAgent.release`."""
        await self._actor.call("release", key, gate)

    async def cancel(self, key: str, reason: str) -> None:
        """See `LimiAgent.cancel`."""
        await self._actor.call("cancel", key, reason)

    async def pid(self) -> int:
        """Process id of the agent."""
        pid: int = await self._actor.call("pid")
        return pid


class LimiOffice:
    """`LimiAgents` and `GateAgents` across Ray: asks the agent of the node that a question is about."""

    def __init__(self, namespace: str = NAMESPACE, patience_s: float = 10.0) -> None:
        self._namespace, self._patience_s = namespace, patience_s
        self._clients: dict[str, LimiClient] = {}

    def _of(self, node: str) -> LimiClient:
        # Kept: to look an actor up takes longer than to ask it, and a gate is released within milliseconds.
        if node not in self._clients:
            self._clients[node] = LimiClient(node, self._namespace, self._patience_s)
        return self._clients[node]

    async def outlook(self, container: str, *, source: str, target: str, weight: float | None) -> MigrationOutlook:
        """See `LimiAgents`."""
        return await self._of(source).outlook(container, target, weight)

    async def progress(self, key: str, *, source: str) -> MigrationProgress | None:
        """See `LimiAgents`. An agent that does not answer now has nothing to say of its progress."""
        try:
            return await self._of(source).progress(key)
        except NatworkError as error:
            _log.info("no progress of %s: %s", key, error)
            return None

    async def news(self, key: str, *, source: str, after: int, patience_s: float) -> HoldNews:
        """See `GateAgents`."""
        return await self._of(source).news(key, after, patience_s)

    async def release(self, key: str, gate: Gate, *, source: str) -> None:
        """See `GateAgents`."""
        await self._of(source).release(key, gate)

    async def cancel(self, key: str, reason: str, *, source: str) -> None:
        """See `GateAgents`."""
        await self._of(source).cancel(key, reason)


def start_limi(node: str, *, namespace: str = NAMESPACE, config: Config | None = None) -> LimiClient:
    """Make the agent of a node, pinned by label to the node's machine, or find it when it is there.

    A node without a machine of its own (emulated, or a network namespace of the testbed) has its agent on the machine
    that holds the world.
    """
    ray.remote(LimiAgent).options(
        name=limi_name(node),
        namespace=namespace,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=100,
        num_cpus=0,
        label_selector=home_of(node, machines()),
    ).remote(node, namespace, config)
    real = config is not None and config.backend == "testbed"
    return LimiClient(node, namespace, LONG_PATIENCE_S if real else PATIENCE_S)


def machines() -> list[dict[str, Any]]:
    """Labels of the live machines of the cluster."""
    return [node["Labels"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def home_of(node: str, labels: list[dict[str, Any]]) -> dict[str, str]:
    """The label selector that pins a node's agent, given the labels of the live machines."""
    if any(machine.get(NODE_LABEL) == node for machine in labels):
        return {NODE_LABEL: node}
    return {HOST_LABEL: "yes"}
