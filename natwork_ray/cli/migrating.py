"""Two ways to have a migration done from the command line: through the running system's doors, or in this process.

Both take the same wishes and give the same answers, so that the commands need not know. Through the doors, the loop
that runs decides and its agents act. In this process (`InProcess`), nothing runs yet: the same control service is
opened on the journal of the state directory, and the world is the testbed of this machine, or a scenario of the
emulation that lives for this one command.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.backends import World, move_predictor, run_started
from natwork_ray.cli.doors import Doors
from natwork_ray.cli.output import talk
from natwork_ray.config import Config
from natwork_ray.control.desk import Consideration, Migration, MigrationDesk, MoveWish, ServiceWish, now_s
from natwork_ray.control.direct import DirectControl
from natwork_ray.control.events import Event, OutcomeReported, TopologyObserved
from natwork_ray.control.service_moves import deliveries
from natwork_ray.domain.actions import ActionOutcome, Instruction, Migrate
from natwork_ray.domain.decisions import Decision, DecisionStatus
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import decode, plain
from natwork_ray.errors import ConflictError, TimedOutError

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
        """See `MigrationShell`."""

        async def ask(control: DirectControl, world: World) -> Consideration:
            return await MigrationDesk(control, world.agents).consider(wish)

        return self._with_control(ask)

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
            except asyncio.CancelledError:
                talk.print("interrupted: the migration is brought to its end first", soft_wrap=True)
                await work
                raise
            work.result()
            return await _migrations_of(desk, decision)

        return self._with_control(order)

    def _with_control(self, work: Callable[[DirectControl, World], Coroutine[Any, Any, T]]) -> T:
        async def scene() -> T:
            world = self._make_world(self._config)
            journal = SqliteJournal.open(self._state_dir, origin=AUDIT_ORIGIN)
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
    topology, facts = await world.orchestrator.topology(), world.facts()
    event: Event = run_started(config, facts, topology)
    try:
        status = await control.status()
    except ConflictError:
        status = None
    if status is not None and (status.backend, status.scenario, status.seed) == (
        facts.backend,
        facts.scenario,
        facts.seed,
    ):
        await _deliver(control, world)
        topology, at_s = await world.orchestrator.topology(), now_s(status)
        event = TopologyObserved(id=f"topology@{at_s:.6f}", at_s=at_s, topology=topology)
    (answer,) = await control.submit((event,))
    answer.unwrap()


async def _deliver(control: DirectControl, world: World) -> None:
    """Carry out what is in the outbox, all at once, and report each outcome as it comes; a service's together."""
    outbox = await control.outbox()
    topology = await world.orchestrator.topology() if outbox else Topology(nodes=(), links=(), slices=(), containers=())

    async def one(parts: Sequence[Instruction]) -> None:
        moves = [i for i in parts if isinstance(i, Migrate) and i.together is not None]
        outcomes: Sequence[ActionOutcome]
        if world.service_hands is not None and moves:
            outcomes = await world.service_hands.move_together(moves, topology)
        else:
            outcomes = await asyncio.gather(*(world.apply(i) for i in parts))
        at_s = now_s(await control.status())
        reports = [OutcomeReported(id=f"outcome:{o.key}", at_s=at_s, outcome=o) for o in outcomes]
        for answer in await control.submit(reports):
            answer.unwrap()

    await asyncio.gather(*(one(parts) for parts in deliveries(outbox)))


async def _migrations_of(desk: MigrationDesk, decision: Decision) -> tuple[Migration, ...]:
    return tuple([await desk.migration(i.key) for i in decision.instructions])


def _body(wish: Wish) -> dict[str, Any]:
    body: dict[str, Any] = plain(wish)
    return body


def _value(kind: type[T], document: Any) -> T:
    """What the doors said, as the value that it is."""
    found: T = decode(kind, json.dumps(document))
    return found
