"""Bringing instructions to whoever carries them out, and their outcomes back to the loop.

What is under way is asked of the control service, never remembered here: a courier that dies loses nothing, and the
next one delivers what is still in the outbox under its old keys, which those who carried it out know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from natwork_ray.control.events import Event, OutcomeReported, TopologyObserved
from natwork_ray.control.service import Answer
from natwork_ray.domain.actions import NODE_LOCAL, ActionOutcome, Instruction
from natwork_ray.domain.topology import Topology
from natwork_ray.errors import NatworkError, NotFoundError
from natwork_ray.ports import Orchestrator


class Control(Protocol):
    """The control service, wherever it runs."""

    async def submit(self, events: Sequence[Event]) -> tuple[Answer, ...]:
        """Handle events durably."""
        ...

    async def outbox(self) -> tuple[Instruction, ...]:
        """Instructions whose outcome is not known yet."""
        ...


class Hands(Protocol):
    """Whoever carries instructions out: a node's LiMi agent, or the orchestrator's executor."""

    async def execute(self, instruction: Instruction) -> ActionOutcome:
        """Carry out, idempotently by key."""
        ...


class Courier:
    """Delivers instructions to whoever carries them out, and reports what came of them.

    `turn` and `drain` of a `LoopCycle` wait for it. A world whose actions take real time has `keep_delivering` run
    beside its turns instead, so that a long migration holds up no verdict. `node_hands` may grow while it works.
    """

    def __init__(
        self, *, control: Control, orchestrator: Orchestrator, node_hands: Mapping[str, Hands], cluster_hands: Hands
    ) -> None:
        self._control = control
        self._orchestrator = orchestrator
        self._node_hands = node_hands
        self._cluster_hands = cluster_hands
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def carry_out(
        self, instructions: Sequence[Instruction], topology: Topology, at_s: float
    ) -> tuple[ActionOutcome, ...]:
        """Deliver instructions and report their outcomes.

        An instruction that could not be delivered holds up no other: the outcomes of the others are reported first,
        then its error is raised. It stays in the outbox and is delivered again under its key.
        """
        answers = await asyncio.gather(*(self._deliver(i, topology) for i in instructions), return_exceptions=True)
        outcomes = [a for a in answers if isinstance(a, ActionOutcome)]
        if outcomes:
            reports = [OutcomeReported(id=f"outcome:{o.key}", at_s=at_s, outcome=o) for o in outcomes]
            for report in await self._control.submit(reports):
                report.unwrap()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return tuple(outcomes)

    async def keep_delivering(
        self, now_s: Callable[[], float], *, pause_s: float, trouble: Callable[[str], Awaitable[None]]
    ) -> None:
        """Deliver whatever comes into the outbox, each instruction by itself, until cancelled.

        After each outcome the loop is told what runs where now. `trouble` is told what could not be delivered; that is
        tried again. Cancelling ends waiting for outcomes, not the actions: their keys are asked for again.
        """
        try:
            while True:
                try:
                    for instruction in await self._control.outbox():
                        if instruction.key not in self._under_way:
                            work = self._deliver_one(instruction, now_s, trouble)
                            task = self._under_way[instruction.key] = asyncio.create_task(work)
                            task.add_done_callback(partial(self._forget, instruction.key))
                except NatworkError as error:
                    await trouble(str(error))
                await asyncio.sleep(pause_s)
        finally:
            for task in tuple(self._under_way.values()):
                task.cancel()

    def _forget(self, key: str, _: object) -> None:
        del self._under_way[key]

    async def _deliver_one(
        self, instruction: Instruction, now_s: Callable[[], float], trouble: Callable[[str], Awaitable[None]]
    ) -> None:
        try:
            await self.carry_out((instruction,), await self._orchestrator.topology(), now_s())
            at_s = now_s()
            topology = await self._orchestrator.topology()
            news = TopologyObserved(id=f"topology@{at_s:.6f}", at_s=at_s, topology=topology)
            for answer in await self._control.submit((news,)):
                answer.unwrap()
        except NatworkError as error:
            await trouble(f"{instruction.type} of {instruction.container}: {error}")

    async def _deliver(self, instruction: Instruction, topology: Topology) -> ActionOutcome:
        return await self._hands(instruction, topology).execute(instruction)

    def _hands(self, instruction: Instruction, topology: Topology) -> Hands:
        if not isinstance(instruction, NODE_LOCAL):
            return self._cluster_hands
        container = topology.container(instruction.container)
        # A migration belongs to its source node, also when it is delivered again after the container has moved.
        node = getattr(instruction, "source", None) if instruction.type == "migrate" else None
        node = node or (container.node if container else None)
        if node is None or node not in self._node_hands:
            raise NotFoundError(
                f"no LiMi agent for {instruction.container} on node {node}",
                hint="it may still be starting; the instruction is delivered again",
            )
        return self._node_hands[node]
