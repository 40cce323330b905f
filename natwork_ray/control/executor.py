"""Carrying out instructions through the ports; a failure is an outcome too.

One `Executor` stands on each node (inside its LiMi agent) for what concerns that node's containers, and one beside the
orchestrator for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from natwork_ray.domain.values import Backend
from natwork_ray.errors import NatworkError, PreconditionError, StoreError, TimedOutError
from natwork_ray.ports import Clock, Firewall, NodeActions, Orchestrator, SdnController


@dataclass(frozen=True)
class Executor:
    """The hands: ports of one node, or of the cluster; `sdn` where there is a network to tell."""

    runtime: NodeActions
    firewall: Firewall
    orchestrator: Orchestrator
    clock: Clock
    backend: Backend
    sdn: SdnController | None = None

    async def execute(self, instruction: Instruction) -> ActionOutcome:
        """Carry out one instruction; delivering a key again returns the first outcome (see natwork_ray.ports)."""
        try:
            match instruction:
                case Migrate():
                    return await self.runtime.migrate(instruction)
                case SetLimits():
                    return await self.runtime.set_limits(instruction)
                case Restart():
                    return await self.runtime.restart(instruction)
                case BlockSource():
                    return await self.firewall.block(instruction)
                case Scale():
                    return await self.orchestrator.scale(instruction)
                case AddNode():
                    return await self.orchestrator.add_node(instruction)
                case MeshRetry():
                    return await self.orchestrator.mesh_retry(instruction)
                case FlowAlert():
                    if self.sdn is None:
                        raise PreconditionError("there is no SDN controller to tell", hint="set sdn.kind (docs/sdn.md)")
                    return await self.sdn.alert(instruction)
        except (TimedOutError, StoreError):
            raise  # nobody knows whether it happened: it stays in the outbox and is delivered again under its key
        except NatworkError as error:
            now = self.clock.now_s()
            return ActionOutcome(
                key=instruction.key,
                done=False,
                started_at_s=now,
                finished_at_s=now,
                downtime_s=0.0,
                backend=self.backend,
                detail=f"{instruction.type} was not carried out to its end",
                error=str(error),
            )
