"""LiMi agents: one per node, pinned to it, the hands of the loop on that node (D3.3 section 2.1).

For now each drives the emulated runtime; with runC and CRIU the same class gets the real one from
`natwork_ray.backends`. Delivery is at-least-once: a key that was carried out is answered, not carried out again (the
ports' contract), so an agent killed at any moment can simply be asked again.
"""

from __future__ import annotations

import os
from typing import Any

import ray

from agents.calls import PATIENCE_S, NamedActor
from agents.naming import HOST_LABEL, NAMESPACE, NODE_LABEL, limi_name
from agents.world import WorldClient
from natwork_ray.control.executor import Executor
from natwork_ray.domain.actions import ActionOutcome, Instruction


class LimiAgent:
    """Carries out what concerns the containers of one node."""

    def __init__(self, node: str, namespace: str) -> None:
        world = WorldClient(namespace)
        self.node = node
        self._executor = Executor(runtime=world, firewall=world, orchestrator=world, clock=world, backend=world.backend)

    async def execute(self, instruction: Instruction) -> ActionOutcome:
        """Carry out one instruction, idempotently by key."""
        return await self._executor.execute(instruction)

    async def pid(self) -> int:
        """Process id, for health checks and for tests that kill it."""
        return os.getpid()


class LimiClient:
    """`Hands` of a node across Ray."""

    def __init__(self, node: str, namespace: str = NAMESPACE, patience_s: float = PATIENCE_S) -> None:
        self._actor = NamedActor(
            limi_name(node), namespace=namespace, what=f"LiMi agent of {node}", patience_s=patience_s
        )

    async def execute(self, instruction: Instruction) -> ActionOutcome:
        """See `LimiAgent.execute`."""
        outcome: ActionOutcome = await self._actor.call("execute", instruction)
        return outcome

    async def pid(self) -> int:
        """Process id of the agent."""
        pid: int = await self._actor.call("pid")
        return pid


def start_limi(node: str, *, namespace: str = NAMESPACE) -> LimiClient:
    """Make the agent of a node, pinned by label to the node's machine, or find it when it is there.

    An emulated node has no machine of its own: its agent is pinned to the machine that emulates it.
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
    ).remote(node, namespace)
    return LimiClient(node, namespace)


def machines() -> list[dict[str, Any]]:
    """Labels of the live machines of the cluster."""
    return [node["Labels"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def home_of(node: str, labels: list[dict[str, Any]]) -> dict[str, str]:
    """The label selector that pins a node's agent, given the labels of the live machines."""
    if any(machine.get(NODE_LABEL) == node for machine in labels):
        return {NODE_LABEL: node}
    return {HOST_LABEL: "yes"}
