"""The shell of the migration state machine: performs its instructions and keeps its journal.

Rules kept:

- Steps without an order between them run at the same time; their events are handled as they come, several at once
  where they come together, and written to the journal with one append (one fsync).
- A step marked `durable` is handed out only once all events so far are in the journal; if the disk refuses, the step
  has failed, and going back does not need the disk. Other steps are handed out first and the journal is written while
  they work: between freeze and restore only the restore itself waits for an fsync.
- A `NatworkError` from a performer means that the step failed without effect, except `TimedOutError`, which means, as
  any other exception does, that nobody knows: the step is lost.
- With `before`, each first attempt on the way forward is held until that has returned: no time-out runs, and what is
  recorded of the hold is a phase of its own.
- Cancelling the coroutine ends waiting, not the steps: `recover` settles what its journal tells.

    record = await drive(started, source=node_a, target=node_b, journal=journal, clock=clock)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from natwork_ray.domain.migrations import MigrationProgress, MigrationRecord
from natwork_ray.domain.values import decode, encode
from natwork_ray.errors import (
    ActionError,
    ConflictError,
    InputError,
    NatworkError,
    NotFoundError,
    StoreError,
    TimedOutError,
)
from natwork_ray.limi.machine import Migration
from natwork_ray.limi.register import SUFFIX
from natwork_ray.limi.retries import Timeouts
from natwork_ray.limi.steps import (
    Abandon,
    Cancelled,
    CoordinatorRecovered,
    Finish,
    Hold,
    Instruction,
    MigrationEvent,
    MigrationStarted,
    Perform,
    Side,
    Step,
    StepDone,
    StepFailed,
    StepLost,
    StepReleased,
    StepReport,
    Wait,
    WaitOver,
)
from natwork_ray.ports import Clock, MigrationJournal

logger = logging.getLogger(__name__)

_CLOSE_ATTEMPTS = 5
_CLOSE_WAIT_S = 0.2
_MAX_ERROR = 1000  # characters of a performer's error that an event keeps


class Performer(Protocol):
    """One side of a migration: a `LimiNode`, or a shell that reaches one on another machine."""

    async def perform(self, step: Step) -> StepReport:
        """Do the step.

        Raises:
            TimedOutError: nobody knows whether it was done.
            NatworkError: it failed, without effect.
        """
        ...


async def drive(
    start: MigrationStarted,
    *,
    source: Performer,
    target: Performer,
    journal: MigrationJournal,
    clock: Clock,
    timeouts: Timeouts | None = None,
    progress: Callable[[MigrationProgress], None] | None = None,
    cancelled: asyncio.Future[str] | None = None,
    before: Callable[[Step], Awaitable[None]] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> MigrationRecord:
    """Carry a migration out, to its end in one direction or the other.

    `progress` is called after every change. `cancelled` may be given a reason at any time: the migration is rolled back
    if no restore was handed out yet. `before` is awaited before each step in `steps.GATED` is handed to its side, at
    its first attempt; what it raises counts as that step's failure, and it is cancelled when the step is no longer
    wanted. `sleep` waits for back-offs.

    Raises:
        ConflictError: a migration of that key was begun before and is not over.
        StoreError: the journal refused the beginning; nothing was done.
    """
    if journal.read(start.key):
        raise ConflictError(f"migration {start.key} was begun before", hint="recover it, or use a key of its own")
    drive = _Drive(Migration(), start.key, source, target, journal, clock, timeouts, progress, sleep, before)
    drive.take([replace(start, gated=before is not None)])
    drive.write()
    return await drive.run(cancelled)


async def recover(
    key: str,
    *,
    source: Performer,
    target: Performer,
    journal: MigrationJournal,
    clock: Clock,
    timeouts: Timeouts | None = None,
    progress: Callable[[MigrationProgress], None] | None = None,
    cancelled: asyncio.Future[str] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> MigrationRecord:
    """Settle a migration whose coordinator died, from its journal; see `unfinished`.

    Raises:
        NotFoundError: the journal knows nothing of it.
        StoreError: the journal cannot be read or holds something else.
    """
    events = _read(journal, key)
    if not events:
        raise NotFoundError(f"no unfinished migration {key}", hint="`natwork migration list` shows those that are over")
    drive = _Drive(Migration.replay(events), key, source, target, journal, clock, timeouts, progress, sleep)
    if drive.machine.record is None:
        drive.take([CoordinatorRecovered(at_s=clock.now_s())])
    else:
        drive.instructions.append(Finish(record=drive.machine.record))
    return await drive.run(cancelled)


def unfinished(journal: MigrationJournal) -> tuple[MigrationStarted, ...]:
    """The migrations that this node began as source and that are not over, for `recover`.

    Raises:
        StoreError: the journal cannot be read or holds something else.
    """
    found = []
    for key in journal.open_keys():
        if not key.endswith(SUFFIX):
            first = _read(journal, key)[:1]
            found += [event for event in first if isinstance(event, MigrationStarted)]
    return tuple(found)


def _read(journal: MigrationJournal, key: str) -> tuple[MigrationEvent, ...]:
    events: list[MigrationEvent] = []
    for entry in journal.read(key):
        for line in entry.splitlines():  # a batch is one entry to the journals that keep entries whole
            try:
                events.append(decode(MigrationEvent, line))
            except InputError as error:
                raise StoreError(
                    f"the journal of migration {key} holds what is no event: {error.what}",
                    hint="the file was changed: restore it from a backup, or settle the container by hand",
                ) from error
    if events and not isinstance(events[0], MigrationStarted):
        raise StoreError(
            f"the journal of migration {key} does not begin with its start",
            hint="the file was changed: restore it from a backup, or settle the container by hand",
        )
    return tuple(events)


def _text(message: str) -> str:
    """Bounded, and fit for JSON: what a program said may hold bytes that are no text."""
    return message[:_MAX_ERROR].encode("utf-8", "replace").decode()


class _Drive:
    """One migration under way."""

    def __init__(
        self,
        machine: Migration,
        key: str,
        source: Performer,
        target: Performer,
        journal: MigrationJournal,
        clock: Clock,
        timeouts: Timeouts | None,
        progress: Callable[[MigrationProgress], None] | None,
        sleep: Callable[[float], Awaitable[None]],
        before: Callable[[Step], Awaitable[None]] | None = None,
    ) -> None:
        self.machine = machine
        self.instructions: list[Instruction] = []
        self._key = key
        self._sides = {Side.SOURCE: source, Side.TARGET: target}
        self._journal = journal
        self._clock = clock
        self._timeouts = timeouts or Timeouts()
        self._progress = progress
        self._sleep = sleep
        self._before = before
        self._events: asyncio.Queue[MigrationEvent] = asyncio.Queue()
        self._unwritten: list[bytes] = []
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def take(self, events: Sequence[MigrationEvent]) -> None:
        """Handle events; what they ask for and what is to be journalled is kept for later."""
        for event in events:
            self.instructions += self.machine.handle(event)
            self._unwritten.append(encode(event, MigrationEvent))

    def write(self) -> None:
        """Journal what is not there yet, in one append.

        Raises:
            StoreError: the disk refused; it will be tried again with the next events.
        """
        if self._unwritten:
            self._journal.append(self._key, b"\n".join(self._unwritten))
            self._unwritten.clear()

    async def run(self, cancelled: asyncio.Future[str] | None) -> MigrationRecord:
        """Until the machine says that it is over."""

        def cancel(future: asyncio.Future[str]) -> None:
            if not future.cancelled():
                self._events.put_nowait(Cancelled(at_s=self._clock.now_s(), reason=_text(future.result())))

        if cancelled is not None:
            cancelled.add_done_callback(cancel)
        try:
            while True:
                record = await self._act()
                if record is not None:
                    return await self._close(record)
                events = [await self._events.get()]
                while not self._events.empty():
                    events.append(self._events.get_nowait())
                self.take(events)
        finally:
            if cancelled is not None:
                cancelled.remove_done_callback(cancel)
            for task in self._tasks.values():
                task.cancel()

    async def _act(self) -> MigrationRecord | None:
        """Perform what was asked for; the record when it is over."""
        instructions, self.instructions = self.instructions, []
        dropped = {i.number for i in instructions if isinstance(i, Abandon)}
        record = None
        for instruction in instructions:
            match instruction:
                case Perform(step=step) if step.number not in dropped:
                    if instruction.durable and (refusal := self._refusal()):
                        self._events.put_nowait(self._failure(step, refusal))
                    else:
                        self._begin(step.number, self._perform(step))
                case Hold(step=step) if step.number not in dropped:
                    self._begin(step.number, self._hold(step))
                case Wait(step=step, seconds=seconds) if step.number not in dropped:
                    self._begin(step.number, self._wait(step, seconds))
                case Abandon(number=number):
                    if task := self._tasks.pop(number, None):
                        task.cancel()
                case Finish():
                    record = instruction.record
                case _:
                    pass  # asked for and abandoned in one breath
        if self._progress is not None:
            self._progress(self.machine.progress(self._clock.now_s()))
        # Let the steps get under way first: the journal's fsync then runs beside them.
        await asyncio.sleep(0)
        if refusal := self._refusal():
            logger.warning("migration %s: %s", self._key, refusal)
        return record

    def _refusal(self) -> StoreError | None:
        try:
            self.write()
        except StoreError as error:
            return error
        return None

    def _begin(self, number: int, work: Awaitable[None]) -> None:
        former = self._tasks.pop(number, None)
        if former is not None:
            former.cancel()
        self._tasks[number] = asyncio.ensure_future(work)

    async def _hold(self, step: Step) -> None:
        event: MigrationEvent
        try:
            if self._before is not None:  # a migration that was gated before its coordinator died has no gates any more
                await self._before(step)
            event = StepReleased(at_s=self._clock.now_s(), number=step.number)
        except NatworkError as error:
            event = self._failure(step, error)
        except Exception as error:
            logger.exception("hold before step %s of migration %s", step.verb, self._key)
            told = ActionError(f"the hold before it: {type(error).__name__}: {error}", hint="see the agent's log")
            event = self._failure(step, told)
        self._events.put_nowait(event)

    async def _perform(self, step: Step) -> None:
        event: MigrationEvent
        try:
            async with asyncio.timeout(self._timeouts.of(step.verb)):
                report = await self._sides[step.side].perform(step)
            event = StepDone(at_s=self._clock.now_s(), number=step.number, report=report)
            try:
                encode(event)
            except InputError as error:
                event = self._loss(step, f"its report cannot be journalled: {error.what}", error.hint)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            event = self._loss(step, f"its side gave it up: {error}")
        except TimedOutError as error:
            event = self._loss(step, error.what, error.hint)
        except TimeoutError:
            event = self._loss(step, f"no answer within {self._timeouts.of(step.verb):g} s")
        except NatworkError as error:
            event = self._failure(step, error)
        except Exception as error:
            logger.exception("step %s of migration %s", step.verb, self._key)
            event = self._loss(step, f"{type(error).__name__}: {error}")
        self._events.put_nowait(event)

    async def _wait(self, step: Step, seconds: float) -> None:
        await self._sleep(seconds)
        self._events.put_nowait(WaitOver(at_s=self._clock.now_s(), number=step.number, attempt=step.attempt))

    def _loss(self, step: Step, error: str, hint: str = "") -> StepLost:
        return StepLost(
            at_s=self._clock.now_s(), number=step.number, error=_text(error), hint=_text(hint), attempt=step.attempt
        )

    def _failure(self, step: Step, error: NatworkError) -> StepFailed:
        return StepFailed(
            at_s=self._clock.now_s(),
            number=step.number,
            error=_text(error.what),
            hint=_text(error.hint),
            attempt=step.attempt,
        )

    async def _close(self, record: MigrationRecord) -> MigrationRecord:
        """File the record. Where the disk refuses for good, the journal stays open and `recover` files it later."""
        body = encode(record)
        for attempt in range(1, _CLOSE_ATTEMPTS + 1):
            try:
                self._journal.close(self._key, body)
            except StoreError as error:
                if attempt == _CLOSE_ATTEMPTS:
                    told = f"the record could not be filed: {error.what}"
                    errors = "; ".join(filter(None, (record.error, told)))
                    return replace(record, error=errors, hint=record.hint or error.hint)
                await self._sleep(_CLOSE_WAIT_S * attempt)
            else:
                break
        return record
