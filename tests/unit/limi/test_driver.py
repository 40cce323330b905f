"""The driver over scripted performers: journalling, time-outs, cancelling, recovery, and what it costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from natwork_ray.adapters.migration_journal import FileMigrationJournal
from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.migrations import MigrationProgress, MigrationRecord, MigrationState
from natwork_ray.domain.runtime import ContainerSpec, PageServer, Revival
from natwork_ray.domain.values import Backend, decode, encode
from natwork_ray.emulation.virtual_time import VirtualClock, run_in_virtual_time
from natwork_ray.errors import ActionError, ConflictError, NotFoundError, StoreError, TimedOutError
from natwork_ray.limi.driver import drive, recover, unfinished
from natwork_ray.limi.machine import Migration
from natwork_ray.limi.retries import Timeouts
from natwork_ray.limi.steps import (
    WITHDRAWN,
    MigrationEvent,
    MigrationStarted,
    Step,
    StepReport,
    Verb,
)
from natwork_ray.ports import Clock

SPEC = ContainerSpec(name="c", image="busy", address="10.0.0.2/24", mac="02:00:00:00:00:02", command=("serve",))
START = MigrationStarted(
    at_s=0.0, key="k", container="c", source="a", target="b", method=MigrationMethod.COLD, backend=Backend.EMULATED
)
Reaction = Callable[[Step], Awaitable[None]]


class Wall:
    def now_s(self) -> float:
        return time.monotonic()


class Side:
    """Does every step at once, unless a reaction says otherwise; remembers what it was asked."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.under_way = 0
        self.most_at_once = 0
        self.reactions: dict[Verb, Reaction] = {}
        self.reports: dict[Verb, StepReport] = {
            Verb.CHECK_SOURCE: StepReport(spec=SPEC),
            Verb.DUMP: StepReport(size_bytes=5.0, port=7000),
            Verb.PAGE_TUNNEL: StepReport(page_server=PageServer(host="10.0.0.1", port=7000)),
            Verb.WITHDRAW: StepReport(decided=WITHDRAWN),
            Verb.FORCE_WITHDRAW: StepReport(decided=WITHDRAWN),
            Verb.REVIVE: StepReport(decided=Revival.THAWED),
        }

    @property
    def verbs(self) -> list[Verb]:
        return [step.verb for step in self.steps]

    async def perform(self, step: Step) -> StepReport:
        self.steps.append(step)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            reaction = self.reactions.get(step.verb)
            if reaction is not None:
                await reaction(step)
            else:
                await asyncio.sleep(0)
        finally:
            self.under_way -= 1
        return self.reports.get(step.verb, StepReport())


class Journal:
    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.filed: list[bytes] = []
        self.refuse: Callable[[int], bool] = lambda _: False
        self.calls = 0

    def _maybe(self) -> None:
        self.calls += 1
        if self.refuse(self.calls):
            raise StoreError("the disk is full", hint="make room")

    def append(self, key: str, event: bytes) -> None:
        self._maybe()
        self.entries.append(event)

    def read(self, key: str) -> tuple[bytes, ...]:
        return tuple(self.entries)

    def open_keys(self) -> tuple[str, ...]:
        return ("c@register", "k") if self.entries else ("c@register",)

    def close(self, key: str, record: bytes) -> None:
        self._maybe()
        self.entries = []
        self.filed.append(record)

    def records(self) -> tuple[bytes, ...]:
        return tuple(self.filed)

    @property
    def events(self) -> list[MigrationEvent]:
        return [decode(MigrationEvent, line) for entry in self.entries for line in entry.splitlines()]


async def no_sleep(_seconds: float) -> None:
    await asyncio.sleep(0)


class World:
    def __init__(self) -> None:
        self.side = Side()
        self.journal = Journal()
        self.told: list[MigrationProgress] = []
        self.timeouts = Timeouts()
        self.clock: Clock = Wall()

    async def drive(
        self,
        method: MigrationMethod = MigrationMethod.COLD,
        cancelled: asyncio.Future[str] | None = None,
        before: Reaction | None = None,
    ) -> MigrationRecord:
        start = MigrationStarted(
            at_s=self.clock.now_s(), key="k", container="c", source="a", target="b", method=method,
            backend=Backend.EMULATED,
        )  # fmt: skip
        return await drive(
            start, source=self.side, target=self.side, journal=self.journal, clock=self.clock, timeouts=self.timeouts,
            progress=self.told.append, cancelled=cancelled, before=before, sleep=no_sleep,
        )  # fmt: skip

    async def recover(self) -> MigrationRecord:
        return await recover(
            "k", source=self.side, target=self.side, journal=self.journal, clock=self.clock, progress=self.told.append,
            sleep=no_sleep,
        )  # fmt: skip


@pytest.fixture
def world() -> World:
    return World()


async def hang(_step: Step) -> None:
    await asyncio.Event().wait()


def raising(error: Exception, times: int = 1) -> Reaction:
    left = [times]

    async def react(_step: Step) -> None:
        if left[0]:
            left[0] -= 1
            raise error

    return react


@pytest.mark.parametrize("method", MigrationMethod)
def test_a_migration_is_carried_out_and_filed(world: World, method: MigrationMethod) -> None:
    record = asyncio.run(world.drive(method))
    assert record.state is MigrationState.MIGRATED
    assert world.journal.filed == [encode(record)]
    assert world.journal.entries == []
    assert world.side.most_at_once >= 3  # dump, address detach, volume transfer
    assert world.told[0].under_way == ("check source", "check target")
    assert world.told[-1].under_way == ()
    assert {"dump", "volume transfer", "address detach"} <= {name for told in world.told for name in told.under_way}


@pytest.mark.parametrize("refused", range(1, 30))
def test_no_step_that_must_be_known_runs_ahead_of_the_journal(world: World, refused: int) -> None:
    """Whatever the disk refuses, what was handed out follows from what is in the journal or needs none of it."""
    must = {Verb.OPEN_PATH, Verb.PREPARE, Verb.FREEZE, Verb.RESTORE}
    world.journal.refuse = lambda call: call >= refused

    async def look(step: Step) -> None:
        replayed = Migration.replay(world.journal.events)
        assert step.verb.value in replayed.progress(0.0).under_way, step.verb

    world.side.reactions = dict.fromkeys(must, look)
    try:
        record = asyncio.run(world.drive())
    except StoreError:
        assert refused == 1
        assert world.side.steps == []
        return
    if Verb.RESTORE not in world.side.verbs:
        assert record.state in (MigrationState.REFUSED, MigrationState.ROLLED_BACK)
    if not world.journal.filed:
        assert "could not be filed" in record.error
    for told in world.told:
        assert not any("no answer" in name for name in told.under_way)


def test_a_disk_that_refuses_for_a_while_loses_nothing(world: World) -> None:
    world.journal.refuse = lambda call: call == 6
    record = asyncio.run(world.drive())
    assert decode(MigrationRecord, world.journal.filed[0]) == record


def test_a_step_that_takes_too_long_is_lost_and_asked_again(world: World) -> None:
    world.timeouts = Timeouts(freeze_s=0.001)
    world.side.reactions[Verb.FREEZE] = hang
    record = asyncio.run(world.drive())
    assert [s.attempt for s in world.side.steps if s.verb is Verb.FREEZE] == [1, 2]
    assert record.state is MigrationState.ROLLED_BACK
    assert "freeze: no answer in 2 attempts, the last: no answer within 0.001 s" in record.error
    assert Verb.REVIVE in world.side.verbs


@pytest.mark.parametrize("error", [TimedOutError("gone", hint="wait"), RuntimeError("bug"), TimeoutError()])
def test_what_nobody_knows_is_lost(world: World, error: Exception) -> None:
    world.side.reactions[Verb.DUMP] = raising(error)
    record = asyncio.run(world.drive())
    assert record.state is MigrationState.MIGRATED
    assert [s.attempt for s in world.side.steps if s.verb is Verb.DUMP] == [1, 2]
    assert len({s.number for s in world.side.steps if s.verb is Verb.DUMP}) == 1


def test_a_side_that_gives_a_step_up_loses_it(world: World) -> None:
    world.side.reactions[Verb.DUMP] = raising(asyncio.CancelledError())  # type: ignore[arg-type]
    assert asyncio.run(world.drive()).state is MigrationState.MIGRATED


def test_a_report_that_cannot_be_journalled_is_none(world: World) -> None:
    world.side.reports[Verb.DUMP] = StepReport(size_bytes=float("nan"))
    record = asyncio.run(world.drive())
    assert record.state is MigrationState.ROLLED_BACK
    assert "cannot be journalled" in record.error


def test_a_failure_goes_back_and_is_told(world: World) -> None:
    world.side.reactions[Verb.DUMP] = raising(ActionError("criu said \udcff" + "x" * 9999, hint="look at its log"))
    record = asyncio.run(world.drive())
    assert record.state is MigrationState.ROLLED_BACK
    assert record.error.startswith("dump: criu said ?xxx")
    assert len(record.error) <= 2000
    assert record.hint == "look at its log"
    assert decode(MigrationRecord, world.journal.filed[0]) == record


def test_it_does_not_wait_for_what_it_abandoned(world: World) -> None:
    world.side.reactions = {Verb.VOLUME_TRANSFER: hang, Verb.DUMP: raising(ActionError("no", hint=""))}
    record = asyncio.run(asyncio.wait_for(world.drive(), 5))
    assert record.state is MigrationState.ROLLED_BACK


@pytest.mark.parametrize(
    ("verb", "state"), [(Verb.DUMP, MigrationState.ROLLED_BACK), (Verb.ADDRESS_MOVE, MigrationState.MIGRATED)]
)
def test_cancelling_with_a_reason(world: World, verb: Verb, state: MigrationState) -> None:
    async def run() -> MigrationRecord:
        cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def cancel(_step: Step) -> None:
            if not cancelled.done():
                cancelled.set_result("enough")
                await asyncio.sleep(0)
                await asyncio.sleep(0)

        world.side.reactions[verb] = cancel
        return await world.drive(cancelled=cancelled)

    record = asyncio.run(run())
    assert record.state is state
    assert record.error in ("cancelled: enough", "cancelled too late to be heeded: enough")


def test_a_hold_costs_no_time_out_and_comes_before_every_step_of_the_way_forward(world: World) -> None:
    world.timeouts = Timeouts(**dict.fromkeys(Timeouts.__dataclass_fields__, 60.0))
    held: list[Verb] = []

    async def before(step: Step) -> None:
        assert step.verb not in world.side.verbs
        held.append(step.verb)
        if step.verb is Verb.FREEZE:
            await asyncio.sleep(100)

    world.clock = clock = VirtualClock()
    record = run_in_virtual_time(clock, lambda: world.drive(MigrationMethod.POST_COPY, before=before))
    assert (record.state, record.error) == (MigrationState.MIGRATED, "")
    assert sorted(held) == sorted(world.side.verbs)
    phases = {phase.name: phase.duration_s for phase in record.phases}
    assert (phases["hold before freeze"], phases["freeze"], record.downtime_s) == (100.0, 0.0, 0.0)
    assert record.total_s == 100.0
    assert any("hold before freeze" in told.under_way for told in world.told)


@pytest.mark.parametrize("error", [ActionError("the conductor is gone", hint="see its log"), RuntimeError("bug")])
def test_a_hold_that_fails_brings_it_back(world: World, error: Exception) -> None:
    async def before(step: Step) -> None:
        if step.verb is Verb.RESTORE:
            raise error

    record = asyncio.run(world.drive(before=before))
    assert record.state is MigrationState.ROLLED_BACK
    assert str(error).split(" (")[0] in record.error
    assert "see " in record.hint
    assert Verb.RESTORE not in world.side.verbs
    assert not {Verb.WITHDRAW, Verb.REVIVE} - set(world.side.verbs)


def test_who_died_holding_goes_on_without(world: World) -> None:
    async def run() -> MigrationRecord:
        reached = asyncio.Event()

        async def before(step: Step) -> None:
            if step.verb is Verb.RESTORE:
                reached.set()
                await asyncio.Event().wait()

        driving = asyncio.create_task(world.drive(before=before))
        await reached.wait()
        driving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await driving
        return await world.recover()

    assert asyncio.run(run()).state is MigrationState.MIGRATED
    assert [step.attempt for step in world.side.steps if step.verb is Verb.RESTORE] == [2]


def test_a_cancellation_that_is_itself_cancelled_says_nothing(world: World) -> None:
    async def run() -> MigrationRecord:
        cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        cancelled.cancel()
        return await world.drive(cancelled=cancelled)

    assert asyncio.run(run()).state is MigrationState.MIGRATED


@pytest.mark.parametrize("method", MigrationMethod)
def test_recovery_from_every_prefix_of_the_journal(method: MigrationMethod) -> None:
    lines = _journal_of(method)
    for cut in range(1, len(lines) + 1):
        world = World()
        world.journal.entries = lines[:cut]
        assert [start.key for start in unfinished(world.journal)] == ["k"]
        record = asyncio.run(world.recover())
        assert record.state in (MigrationState.MIGRATED, MigrationState.ROLLED_BACK)
        assert len(world.journal.filed) == 1
        if cut == len(lines):
            assert world.side.steps == []  # it was over: only the record was missing


def _journal_of(method: MigrationMethod) -> list[bytes]:
    """All events of one migration, one by one."""
    world = World()
    kept: list[bytes] = []
    append = world.journal.append

    def keep(key: str, event: bytes) -> None:
        append(key, event)
        kept.extend(event.splitlines())

    world.journal.append = keep  # type: ignore[method-assign]
    asyncio.run(world.drive(method))
    return kept


def test_cancelling_the_coroutine_leaves_a_journal_that_recovers(world: World) -> None:
    async def run() -> MigrationRecord:
        reached = asyncio.Event()

        async def stop(_step: Step) -> None:
            reached.set()
            await asyncio.Event().wait()

        world.side.reactions[Verb.DUMP_TRANSFER] = stop
        driving = asyncio.create_task(world.drive())
        await reached.wait()
        driving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await driving
        await asyncio.sleep(0)
        assert world.side.under_way == 0
        world.side.reactions.clear()
        return await world.recover()

    record = asyncio.run(run())
    assert record.state is MigrationState.MIGRATED
    again = [step for step in world.side.steps if step.verb is Verb.DUMP_TRANSFER]
    assert [(step.number, step.attempt) for step in again] == [(again[0].number, 1), (again[0].number, 2)]


def test_a_key_that_is_under_way_does_not_begin_again(world: World) -> None:
    world.journal.entries = [encode(START)]
    with pytest.raises(ConflictError, match="begun before"):
        asyncio.run(world.drive())
    assert world.side.steps == []


def test_what_cannot_be_recovered_is_said(world: World) -> None:
    with pytest.raises(NotFoundError):
        asyncio.run(world.recover())
    for entries in ([b"no"], [b'{"type":"recovered","at_s":1.0}'], [encode(START), b'{"type":"step_done"}']):
        world.journal.entries = entries
        with pytest.raises(StoreError, match="migration k"):
            asyncio.run(world.recover())


def test_the_overhead_between_freeze_and_restored_is_small(tmp_path: Path) -> None:
    """With the real journal on the disk, and sides that take no time: everything measured is ours."""

    async def run(number: int) -> float:
        side = Side()
        record = await drive(
            MigrationStarted(at_s=Wall().now_s(), key=f"k-{number}", container="c", source="a", target="b",
                             method=MigrationMethod.POST_COPY, backend=Backend.EMULATED),
            source=side, target=side, journal=FileMigrationJournal(tmp_path), clock=Wall(),
        )  # fmt: skip
        return record.downtime_s

    spent = sorted(asyncio.run(run(number)) for number in range(9))
    assert spent[0] < 0.02  # the least: a busy machine may be slow, it cannot be too quick
