"""A LiMi agent without its shell: client for migrations that leave its node, server for those that come.

D3.3 section 2.1 and Figure 1. It holds its node's `LimiNode`, knows how to reach the other agents, and drives the
migrations whose source it is: it measures the container, asks the chooser for a method where none was given, and gives
the steps to both sides. What it was asked under a key it answers under that key for ever, from its journal: also after
its own death, for `recover` takes up whatever the journal holds open. A migration that belongs to the schedule of a
service (`Migrate.together`) is held at its gates until it is released, see `natwork_ray.limi.holding`.

    agent = MigrationAgent(node, peer=find, chooser=ByEquations(), settings=AgentSettings())
    await agent.recover()
    outcome = await agent.migrate(Migrate(key="d-000001/0", container="echo", source="node-1", target="node-2"))

Left out: whether the target has room for the container's limits; the control loop sees to that before it orders.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from natwork_ray.domain.actions import ActionOutcome, Migrate
from natwork_ray.domain.migrations import (
    ContainerLoad,
    MethodReason,
    MigrationOutlook,
    MigrationProgress,
    MigrationRecord,
    MigrationState,
)
from natwork_ray.domain.phases import Gate, MigrationMethod
from natwork_ray.domain.runtime import RuntimeAbilities
from natwork_ray.domain.values import Backend, decode
from natwork_ray.errors import ActionError, ConflictError, NatworkError, PreconditionError, StoreError
from natwork_ray.limi.choosing import MethodChoice, MethodChooser, outlook
from natwork_ray.limi.driver import drive, recover, unfinished
from natwork_ray.limi.holding import Holding, HoldLimits, HoldNews
from natwork_ray.limi.node import LimiNode
from natwork_ray.limi.register import SUFFIX
from natwork_ray.limi.retries import Timeouts
from natwork_ray.limi.service_plan import Milestone
from natwork_ray.limi.steps import MigrationStarted, Step, StepReport

logger = logging.getLogger(__name__)


class Peer(Protocol):
    """Another node's agent, as this one needs it: a `Performer` that can be asked what it is able to do."""

    async def perform(self, step: Step) -> StepReport:
        """Do a step on that node; TimedOutError when nobody knows what became of it."""
        ...

    async def abilities(self) -> RuntimeAbilities:
        """What that node can do."""
        ...


@dataclass(frozen=True)
class AgentSettings:
    """How an agent migrates. `weight` is the share of total time against downtime where an order has none.

    `observe_s` is how long a container is measured, `max_rounds` bounds pre-copy, `holds` how long is waited for a
    schedule that is silent.
    """

    weight: float = 0.2
    observe_s: float = 1.0
    max_rounds: int = 5
    timeouts: Timeouts = field(default_factory=Timeouts)
    holds: HoldLimits = field(default_factory=HoldLimits)


class MigrationAgent:
    """The agent of one node. Lives in one event loop.

    Args:
        node: this node's side of every migration.
        peer: finds the agent of another node by its name.
        chooser: picks a method where an instruction has none.
        sleep: waits for so many seconds on the backend's clock.
    """

    def __init__(
        self,
        node: LimiNode,
        *,
        backend: Backend,
        peer: Callable[[str], Peer],
        chooser: MethodChooser,
        settings: AgentSettings | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.node = node
        self._backend = backend
        self._peer = peer
        self._chooser = chooser
        self._settings = settings or AgentSettings()
        self._sleep = sleep
        self._tasks: dict[str, asyncio.Task[MigrationRecord]] = {}
        self._progress: dict[str, MigrationProgress] = {}
        self._holdings: dict[str, Holding] = {}
        self._records: dict[str, MigrationRecord] | None = None

    async def perform(self, step: Step) -> StepReport:
        """Do a step of a migration that somebody drives; errors as `LimiNode.perform`."""
        return await self.node.perform(step)

    async def abilities(self) -> RuntimeAbilities:
        """What this node can do."""
        return await self.node.runtime.abilities()

    async def recover(self) -> tuple[MigrationRecord, ...]:
        """Bring every migration that was cut off by this agent's death to its end, forward or back.

        A damaged journal holds up its own node only: nothing is recovered here, every migration that leaves from here
        is refused with what is damaged until it is mended, and the other nodes go on.
        """
        try:
            left = unfinished(self.node.journal)
        except StoreError as error:
            logger.warning("nothing can be recovered on %s: %s", self.node.name, error)
            return ()
        tasks = [self._resumed(start) for start in left]
        ended = await asyncio.gather(*(asyncio.shield(t) for t in tasks), return_exceptions=True)
        for start, end in zip(left, ended, strict=True):
            if isinstance(end, NatworkError):  # the others, and the other nodes, go on
                logger.warning("%s of %s cannot be brought to its end: %s", start.key, start.container, end)
            elif isinstance(end, BaseException):
                raise end
        return tuple(end for end in ended if isinstance(end, MigrationRecord))

    async def migrate(self, instruction: Migrate) -> ActionOutcome:
        """Carry the instruction out, once by its key; a failure that was rolled back is an outcome too.

        Raises:
            ConflictError: the key was used for another migration.
            ActionError: another migration of the container is under way here.
            PreconditionError: no method, or not the one asked for, is possible between the two nodes.
        """
        return outcome_of(await self._record(instruction))

    async def progress(self, key: str) -> MigrationProgress | None:
        """How far a migration of this source has come; None when none of that key is under way."""
        return self._progress.get(key)

    async def news(self, key: str, *, after: int = 0, patience_s: float = 0.0) -> HoldNews:
        """How far a conducted migration is, as soon as more than `after` milestones are told, it is over, or
        `patience_s` have passed. Asking is a sign of life.
        """
        holding, task = self._holdings.get(key), self._tasks.get(key)
        if task is None:
            open_keys = {start.key for start in unfinished(self.node.journal)}
            return HoldNews(known=key in self._known() or key in open_keys)
        told: tuple[Milestone, ...] = ()
        if holding is not None:
            told = await holding.news(after=after, patience_s=patience_s)
        else:
            await asyncio.wait({task}, timeout=patience_s)
        return HoldNews(known=True, milestones=told)

    async def release(self, key: str, gate: Gate) -> None:
        """Let a conducted migration pass a gate; nothing where it is over, or has no gates any more."""
        if holding := self._holdings.get(key):
            holding.release(gate)

    async def cancel(self, key: str, reason: str) -> None:
        """Take a conducted migration back, if it still can go back; nothing where it is over."""
        if holding := self._holdings.get(key):
            holding.cancel(reason)

    async def outlook(self, container: str, target: str, *, weight: float | None) -> MigrationOutlook:
        """Measure the container and the path, and say how each method would go. Changes nothing.

        Raises:
            NotFoundError, ActionError: the container does not run here.
            TimedOutError: the target's agent does not answer.
            StoreError: the journal of this node is damaged, so that nothing may leave from here.
        """
        self.check_journal(container)
        unfinished(self.node.journal)
        share = self._settings.weight if weight is None else weight
        methods, impossible = await self._methods(target)
        load = await self._load(container, target)
        return outlook(
            container,
            source=self.node.name,
            target=target,
            backend=self._backend,
            load=load,
            methods=methods,
            chooser=self._chooser,
            weight=share,
            impossible=impossible,
        )

    def check_journal(self, container: str) -> None:
        """See that what this node noted about a container can be read.

        Raises:
            StoreError: it cannot.
        """
        self.node.journal.read(container + SUFFIX)

    async def _record(self, instruction: Migrate) -> MigrationRecord:
        key = instruction.key
        known = self._known().get(key)
        if known is not None:
            if (known.container, known.target) != (instruction.container, instruction.target):
                raise ConflictError(
                    f"key {key} was used to move {known.container} to {known.target}",
                    hint="a new order needs a new key",
                )
            return known
        task = self._tasks.get(key)
        if task is None:
            start = next((s for s in unfinished(self.node.journal) if s.key == key), None)
            task = self._resumed(start) if start else self._begun(instruction)
        # The migration goes on when whoever asked for it goes away.
        return await asyncio.shield(task)

    def _resumed(self, start: MigrationStarted) -> asyncio.Task[MigrationRecord]:
        task = self._tasks.get(start.key)
        if task is None:
            task = self._keep(start.key, self._recover(start))
        return task

    def _begun(self, instruction: Migrate) -> asyncio.Task[MigrationRecord]:
        holding: Holding | None = None
        if instruction.together is not None:
            holding = self._holdings[instruction.key] = Holding(
                instruction.container, instruction.together, clock=self.node.clock, limits=self._settings.holds
            )
        return self._keep(instruction.key, self._drive(instruction, holding))

    def _keep(self, key: str, work: Awaitable[MigrationRecord]) -> asyncio.Task[MigrationRecord]:
        async def done() -> MigrationRecord:
            try:
                record = await work
                self._known()[key] = record
                return record
            finally:
                # One that could not begin left nothing; the next delivery of the key tries again.
                self._tasks.pop(key, None)
                self._progress.pop(key, None)
                if holding := self._holdings.pop(key, None):
                    holding.close()

        task = self._tasks[key] = asyncio.create_task(done(), name=f"migration {key}")
        task.add_done_callback(lambda t: t.cancelled() or t.exception())
        return task

    async def _drive(self, i: Migrate, holding: Holding | None) -> MigrationRecord:
        clock, share = self.node.clock, self._settings.weight if i.weight is None else i.weight
        ahead_s = i.not_before_s - clock.now_s()
        if ahead_s > 0 and holding is None:
            await self._sleep(ahead_s)
        others = {s.container: s.key for s in unfinished(self.node.journal)}
        if i.container in others:
            raise ActionError(
                f"migration {others[i.container]} of {i.container} is under way", hint="wait until it has ended"
            )
        choice: MethodChoice | None = None
        load = i.load
        method = i.method
        if method is None:
            methods, impossible = await self._methods(i.target)
            if not methods:
                raise PreconditionError(
                    "; ".join(sorted({r.reason for r in impossible})) or f"no method works to {i.target}",
                    hint="`natwork doctor` says what is missing; nothing was changed",
                )
            load = await self._load(i.container, i.target)
            choice = self._chooser.choose(load, methods, weight=share)
            method = choice.method
        start = MigrationStarted(
            at_s=clock.now_s(),
            key=i.key,
            container=i.container,
            source=i.source,
            target=i.target,
            method=method,
            backend=self._backend,
            max_rounds=self._settings.max_rounds,
            chosen_by=choice.chosen_by if choice else i.chosen_by,
            load=load,
            forecast=choice.forecast if choice else i.forecast,
        )
        return await drive(
            start,
            source=self.node,
            target=self._peer(i.target),
            journal=self.node.journal,
            clock=clock,
            timeouts=self._settings.timeouts,
            progress=self._note,
            cancelled=holding.cancelled if holding else None,
            before=holding.before if holding else None,
            sleep=self._sleep,
        )

    async def _recover(self, start: MigrationStarted) -> MigrationRecord:
        return await recover(
            start.key,
            source=self.node,
            target=self._peer(start.target),
            journal=self.node.journal,
            clock=self.node.clock,
            timeouts=self._settings.timeouts,
            progress=self._note,
            sleep=self._sleep,
        )

    def _note(self, progress: MigrationProgress) -> None:
        self._progress[progress.key] = progress

    def _known(self) -> dict[str, MigrationRecord]:
        """Final records by key; read from the journal once."""
        if self._records is None:
            found: list[MigrationRecord] = [decode(MigrationRecord, r) for r in self.node.journal.records()]
            self._records = {r.key: r for r in found if r.source == self.node.name}
        return self._records

    async def _methods(self, target: str) -> tuple[tuple[MigrationMethod, ...], tuple[MethodReason, ...]]:
        """What both nodes can do, and why not the rest."""
        here, there = await asyncio.gather(self.abilities(), self._peer(target).abilities())
        whys: dict[MigrationMethod, str] = {}
        for name, able in ((self.node.name, here), (target, there)):
            for method, why in able.reasons:
                whys.setdefault(method, f"{name}: {why}")
        methods = tuple(m for m in MigrationMethod if m in here.methods and m in there.methods)
        reasons = tuple(
            MethodReason(method=m, reason=whys.get(m, "one of the nodes does not offer it"))
            for m in MigrationMethod
            if m not in methods
        )
        return methods, reasons

    async def _load(self, container: str, target: str) -> ContainerLoad:
        load, path = await asyncio.gather(
            self.node.runtime.load(container, observe_s=self._settings.observe_s), self.node.transfer.open(target)
        )
        return replace(load, bandwidth_bytes_per_s=path.bandwidth_bytes_per_s, rtt_s=path.rtt_s)


def outcome_of(record: MigrationRecord) -> ActionOutcome:
    """A migration's record as the outcome of its instruction. Only what runs on its target with its memory is done."""
    done = record.state is MigrationState.MIGRATED
    detail = (
        f"{record.container}: {record.source} -> {record.target} by {record.method} in {record.total_s:.2f} s, "
        f"{record.state.replace('_', ' ')}, runs on {record.runs_on}"
    )
    why = f"{record.error} ({record.hint})" if record.hint else record.error
    return ActionOutcome(
        key=record.key,
        done=done,
        started_at_s=record.started_at_s,
        finished_at_s=record.started_at_s + record.total_s,
        downtime_s=record.downtime_s,
        backend=record.backend,
        detail=detail,
        error="" if done else why or f"the container was {record.state.replace('_', ' ')}",
        phases=record.phases,
        record=record,
    )
