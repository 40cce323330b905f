"""Two ways to have a migration done from the command line: through the running system's doors, or in this process.

Both take the same wishes and give the same answers, so that the commands need not know. Through the doors, the loop
that runs decides and its agents act. In this process (`InProcess`), nothing runs yet: the same control service is
opened on the journal of the state directory, and the world is the testbed of this machine, or a scenario of the
emulation that lives for this one command.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import quote

from natwork_ray.adapters.sqlite_journal import DATABASE, LOCK, SqliteJournal
from natwork_ray.backends import World, WorldFacts, move_predictor, run_started
from natwork_ray.cli.doors import Doors
from natwork_ray.cli.migration_view import LEFT_OPEN
from natwork_ray.cli.output import printable, talk
from natwork_ray.cli.replayed import replayed_loop
from natwork_ray.config import Config
from natwork_ray.control.api import ControlApi
from natwork_ray.control.desk import (
    Consideration,
    Migration,
    MigrationDesk,
    MoveWish,
    ServiceWish,
    migrations_in,
    now_s,
)
from natwork_ray.control.direct import DirectControl
from natwork_ray.control.events import Event, OrderEvent, OutcomeReported, TopologyObserved
from natwork_ray.control.loop import ControlLoop
from natwork_ray.control.service_moves import deliveries
from natwork_ray.domain.actions import ActionOutcome, Instruction, Migrate
from natwork_ray.domain.decisions import Decision, DecisionStatus
from natwork_ray.domain.status import LoopStatus
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import Backend, decode, plain
from natwork_ray.errors import ConflictError, PreconditionError, RefusedError, StoreError, TimedOutError

T = TypeVar("T")
Wish = MoveWish | ServiceWish
# Told again and again of the migrations of one order, until all are over.
Watcher = Callable[[Sequence[Migration]], None]

AUDIT_ORIGIN = "natwork-ray/control"
_POLL_S = 0.2


class MigrationShell(Protocol):
    """Whoever has wishes carried out."""

    def consider(self, wish: Wish) -> Consideration:
        """The dry run."""
        ...

    def carry_out(self, wish: Wish, *, key: str, watch: Watcher, patience_s: float) -> tuple[Migration, ...]:
        """Give the order and wait until every part of it is over.

        Raises:
            RefusedError: the loop refused it.
            TimedOutError: not over after `patience_s`; it goes on. (What is done in this process is waited for.)
        """
        ...


def over(migration: Migration) -> bool:
    """Whether nothing more will happen to it."""
    return migration.outcome is not None or migration.status not in (DecisionStatus.ISSUED, DecisionStatus.FAILED)


class ThroughDoors:
    """The running system, by its HTTP doors."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    def consider(self, wish: Wish) -> Consideration:
        """See `MigrationShell`."""
        return _value(Consideration, self._doors.change("POST", "/migration-forecasts", _body(wish)))

    def carry_out(self, wish: Wish, *, key: str, watch: Watcher, patience_s: float) -> tuple[Migration, ...]:
        """See `MigrationShell`."""
        deadline = time.monotonic() + patience_s
        if isinstance(wish, MoveWish):
            answers = [self._doors.change("POST", "/migrations", _body(wish), key=key)]
        else:
            answers = self._doors.change("POST", "/service-migrations", _body(wish), key=key)["migrations"]
        found = tuple(_value(Migration, a) for a in answers)
        watch(found)
        while not all(over(m) for m in found):
            if time.monotonic() > deadline:
                keys = ", ".join(m.instruction.key for m in found if not over(m))
                raise TimedOutError(
                    f"not over after {patience_s:.0f} s: {keys}", hint=f"it goes on: `natwork migration show {keys}`"
                )
            time.sleep(_POLL_S)
            found = tuple(m if over(m) else self.migration(m.instruction.key) for m in found)
            watch(found)
        return found

    def migration(self, key: str) -> Migration:
        """One migration as it stands now."""
        return _value(Migration, self._doors.get(f"/migrations/{quote(key, safe='')}"))


class InProcess:
    """The world that the configuration names, and the control service over a journal in `state_dir`."""

    def __init__(self, config: Config, state_dir: Path, make_world: Callable[[Config], World]) -> None:
        self._config, self._state_dir, self._make_world = config, state_dir, make_world

    def consider(self, wish: Wish) -> Consideration:
        """See `MigrationShell`. Reads the journal and the world, and writes nothing.

        Raises:
            RefusedError: a migration of another command is under way.
        """
        if (pid := held_by(self._state_dir)) is not None:
            raise under_way(pid, self._state_dir)
        if left := left_open(self._state_dir):
            keys = ", ".join(m.instruction.key for m in left)
            talk.print(printable(f"{keys}: {LEFT_OPEN}"), soft_wrap=True)

        async def scene() -> Consideration:
            world = self._make_world(self._config)
            try:
                loop = replayed_loop(self._state_dir) if _has_journal(self._state_dir) else None
                if loop is None or not loop.started:
                    loop = ControlLoop(move_predictor(self._config))
                topology = await world.orchestrator.topology()
                loop.handle(_charge(loop.status() if loop.started else None, world, self._config, topology))
                # Of all that a control service does, a dry run asks for these two.
                control = cast(ControlApi, _Foresight(loop))
                return await MigrationDesk(control, world.agents).consider(wish)
            finally:
                await world.close()

        return asyncio.run(scene())

    def carry_out(self, wish: Wish, *, key: str, watch: Watcher, patience_s: float) -> tuple[Migration, ...]:
        """See `MigrationShell`. What was left under way by a command that was killed is finished first.

        An interrupt does not stop a migration half-way: it is brought to its end. Only a second one does, and then the
        next command settles it.
        """

        async def order(control: DirectControl, world: World) -> tuple[Migration, ...]:
            desk = MigrationDesk(control, world.agents)
            if isinstance(wish, MoveWish):
                decision, _ = await desk.move(wish, key=f"move:{key}")
            else:
                decision, _ = await desk.move_service(wish, key=f"service:{key}")
            work = asyncio.ensure_future(_deliver(control, world))
            try:
                while not work.done():
                    await asyncio.wait({work}, timeout=_POLL_S)
                    watch(await _migrations_of(desk, decision))
            except BaseException as error:  # also one of the watching: what runs is never cut off
                if isinstance(error, asyncio.CancelledError):
                    talk.print("interrupted: the migration is brought to its end first", soft_wrap=True)
                await work
                raise
            work.result()
            return await _migrations_of(desk, decision)

        return self._with_control(order)

    def recover(self, left: Sequence[Migration]) -> tuple[Migration, ...]:
        """Bring what was left open to its end, as its journal and the world allow; how each of it stands then.

        Raises:
            RefusedError: another command is about it.
        """

        async def settled(control: DirectControl, world: World) -> tuple[Migration, ...]:
            desk = MigrationDesk(control, world.agents)
            return tuple([await desk.migration(m.instruction.key) for m in left])

        return self._with_control(settled) if left else self._agents_only()

    def _agents_only(self) -> tuple[Migration, ...]:
        """Settle what the nodes' own journals hold open: they may know more than a control journal begun anew."""

        async def scene() -> None:
            world = self._make_world(self._config)
            try:
                journal = _opened(self._state_dir)  # for its lock: nobody else gives orders meanwhile
                try:
                    await world.recover()
                finally:
                    journal.close()
            finally:
                await world.close()

        asyncio.run(scene())
        return ()

    def _with_control(self, work: Callable[[DirectControl, World], Coroutine[Any, Any, T]]) -> T:
        async def scene() -> T:
            world = self._make_world(self._config)
            try:
                journal = _opened(self._state_dir)
            except BaseException:
                await world.close()
                raise
            try:
                await world.recover()
                control = DirectControl(journal, move_predictor(self._config))
                await _take_charge(control, world, self._config)
                return await work(control, world)
            finally:
                journal.close()
                await world.close()

        return asyncio.run(scene())


async def _take_charge(control: DirectControl, world: World, config: Config) -> None:
    """Let the loop know the world as it is; a run of the same world goes on, with its quota."""
    try:
        status = await control.status()
    except ConflictError:
        status = None
    if status is not None and _goes_on(status, world.facts()):
        await _deliver(control, world)
        status = await control.status()
    (answer,) = await control.submit((_charge(status, world, config, await world.orchestrator.topology()),))
    answer.unwrap()


def _goes_on(status: LoopStatus, facts: WorldFacts) -> bool:
    return (status.backend, status.scenario, status.seed) == (facts.backend, facts.scenario, facts.seed)


def _charge(status: LoopStatus | None, world: World, config: Config, topology: Topology) -> Event:
    """What tells the loop of the world: that a run begins, or, where it is the same world, what runs where now."""
    facts = world.facts()
    if status is None or not _goes_on(status, facts):
        return run_started(config, facts, topology)
    at_s = now_s(status)
    return TopologyObserved(id=f"topology@{at_s:.6f}", at_s=at_s, topology=topology)


@dataclass(frozen=True)
class _Foresight:
    """The loop as a dry run asks it; nothing of it is stored."""

    loop: ControlLoop

    async def status(self) -> LoopStatus:
        return self.loop.status()

    async def consider(self, order: OrderEvent) -> Decision:
        return self.loop.consider(order)


def held_by(state_dir: Path) -> str | None:
    """The process id of who writes the journal of a state directory now ("unknown" where it is not told), or None.

    The lock is the kernel's, so it tells the dead from the living, also when a process id was given out again.
    """
    try:
        descriptor = os.open(state_dir / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{state_dir / LOCK}: {error}", hint="check access rights") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
    finally:
        os.close(descriptor)
    return None


def under_way(pid: str, state_dir: Path) -> RefusedError:
    """The refusal of what has to wait for another process."""
    return RefusedError(
        f"another migration is under way: process {pid} carries it out, on the journal in {state_dir}",
        hint="`natwork migration list` shows it; give the order again when it is over",
    )


def left_open(state_dir: Path) -> tuple[Migration, ...]:
    """The migrations of a real world that are not over while nobody is there to carry them on.

    Raises:
        StoreError, InputError, VerificationError: the journal cannot be read.
    """
    from agents import cluster

    if not _has_journal(state_dir) or held_by(state_dir) is not None or cluster.running(state_dir) is not None:
        return ()
    loop = replayed_loop(state_dir)
    if not loop.started or loop.status().backend is not Backend.REAL:
        return ()
    waiting = {i.key for i in loop.outbox()}
    # Looked again: who drove it may have ended it, or somebody may have taken it up, while the journal was read.
    if held_by(state_dir) is not None:
        return ()
    return tuple(m for m in migrations_in(loop) if m.instruction.key in waiting)


def _has_journal(state_dir: Path) -> bool:
    return (state_dir / DATABASE).is_file()


def _opened(state_dir: Path) -> SqliteJournal:
    """The journal, for writing.

    Raises:
        RefusedError: another process writes it.
    """
    try:
        return SqliteJournal.open(state_dir, origin=AUDIT_ORIGIN)
    except PreconditionError as error:
        pid = held_by(state_dir)
        if pid is None:
            raise
        raise under_way(pid, state_dir) from error


async def _deliver(control: DirectControl, world: World) -> None:
    """Carry out what is in the outbox, all at once, and report each outcome as it comes; a service's together."""
    outbox = await control.outbox()
    topology = await world.orchestrator.topology() if outbox else Topology(nodes=(), links=(), slices=(), containers=())

    async def one(parts: Sequence[Instruction]) -> None:
        moves = [i for i in parts if isinstance(i, Migrate) and i.together is not None]
        outcomes: Sequence[ActionOutcome]
        try:
            outcomes = await carried_out(parts, moves)
        except StoreError as error:
            # A node's damaged journal: what it concerns stays in the outbox, everything else goes on.
            keys = ", ".join(i.key for i in parts)
            talk.print(printable(f"{keys}: stays open: {error.what}\nhint: {error.hint}"), soft_wrap=True)
            return
        at_s = now_s(await control.status())
        reports = [OutcomeReported(id=f"outcome:{o.key}", at_s=at_s, outcome=o) for o in outcomes]
        for answer in await control.submit(reports):
            answer.unwrap()

    async def carried_out(parts: Sequence[Instruction], moves: Sequence[Migrate]) -> Sequence[ActionOutcome]:
        if world.service_hands is not None and moves:
            return await world.service_hands.move_together(moves, topology)
        return await _all(world.apply(i) for i in parts)

    await _all(one(parts) for parts in deliveries(outbox))


async def _all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, once all have ended: the first error does not cut off those that still run."""
    found = await asyncio.gather(*coroutines, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [one for one in found if not isinstance(one, BaseException)]


async def _migrations_of(desk: MigrationDesk, decision: Decision) -> tuple[Migration, ...]:
    return tuple([await desk.migration(i.key) for i in decision.instructions])


def _body(wish: Wish) -> dict[str, Any]:
    body: dict[str, Any] = plain(wish)
    return body


def _value(kind: type[T], document: Any) -> T:
    """What the doors said, as the value that it is."""
    found: T = decode(kind, json.dumps(document))
    return found
