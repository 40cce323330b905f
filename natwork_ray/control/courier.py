"""Bringing instructions to whoever carries them out, and their outcomes back to the loop.

What is under way is asked of the control service, never remembered here: a courier that dies loses nothing, and the
next one delivers what is still in the outbox under its old keys, which those who carried it out know.

The migrations of one service are delivered together, to whoever conducts them, and reported together: as long as one of
them is not over, all stay in the outbox, so that the next courier has the whole service again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from natwork_ray.control.events import Event, OutcomeReported, TopologyObserved
from natwork_ray.control.service import Answer
from natwork_ray.control.service_moves import ServiceHands, deliveries
from natwork_ray.domain.actions import NODE_LOCAL, ActionOutcome, Instruction, Migrate
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
    Without `service_hands` the migrations of a service are delivered one by one, each with its start time.
    """

    def __init__(
        self,
        *,
        control: Control,
        orchestrator: Orchestrator,
        node_hands: Mapping[str, Hands],
        cluster_hands: Hands,
        service_hands: ServiceHands | None = None,
    ) -> None:
        self._control = control
        self._orchestrator = orchestrator
        self._node_hands = node_hands
        self._cluster_hands = cluster_hands
        self._service_hands = service_hands
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def carry_out(
        self, instructions: Sequence[Instruction], topology: Topology, at_s: float
    ) -> tuple[ActionOutcome, ...]:
        """Deliver instructions and report their outcomes.

        An instruction that could not be delivered holds up no other: the outcomes of the others are reported first,
        then its error is raised. It stays in the outbox and is delivered again under its key.
        """
        answers = await asyncio.gather(
            *(self._deliver(parts, topology) for parts in self._deliveries(instructions)), return_exceptions=True
        )
        outcomes = [outcome for a in answers if isinstance(a, tuple) for outcome in a]
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
        """Deliver whatever comes into the outbox, each instruction (or service) by itself, until cancelled.

        After each outcome the loop is told what runs where now. `trouble` is told what could not be delivered; that is
        tried again. Cancelling ends waiting for outcomes, not the actions: their keys are asked for again.
        """
        try:
            while True:
                try:
                    for parts in self._deliveries(await self._control.outbox()):
                        if parts[0].key not in self._under_way:
                            work = self._deliver_beside(parts, now_s, trouble)
                            task = self._under_way[parts[0].key] = asyncio.create_task(work)
                            task.add_done_callback(partial(self._forget, parts[0].key))
                except NatworkError as error:
                    await trouble(str(error))
                await asyncio.sleep(pause_s)
        finally:
            for task in tuple(self._under_way.values()):
                task.cancel()

    def _forget(self, key: str, _: object) -> None:
        del self._under_way[key]

    def _deliveries(self, instructions: Sequence[Instruction]) -> tuple[tuple[Instruction, ...], ...]:
        return deliveries(instructions) if self._service_hands else tuple((i,) for i in instructions)

    async def _deliver_beside(
        self, parts: Sequence[Instruction], now_s: Callable[[], float], trouble: Callable[[str], Awaitable[None]]
    ) -> None:
        try:
            await self.carry_out(parts, await self._orchestrator.topology(), now_s())
            at_s = now_s()
            topology = await self._orchestrator.topology()
            news = TopologyObserved(id=f"topology@{at_s:.6f}", at_s=at_s, topology=topology)
            for answer in await self._control.submit((news,)):
                answer.unwrap()
        except NatworkError as error:
            await trouble(f"{parts[0].type} of {', '.join(i.container for i in parts)}: {error}")

    async def _deliver(self, parts: Sequence[Instruction], topology: Topology) -> tuple[ActionOutcome, ...]:
        moves = [i for i in parts if isinstance(i, Migrate) and i.together is not None]
        if self._service_hands is not None and moves:
            return await self._service_hands.move_together(moves, topology)
        return tuple([await self._hands(i, topology).execute(i) for i in parts])

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
