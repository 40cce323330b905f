"""The control loop made durable: journal first, then the world.

`submit` takes a batch of events, handles them, and commits events, decisions and audit records in one transaction
before it returns. Only what was committed may be carried out. A restart replays the journal and stands where the
process before it fell; `outbox` then names the instructions whose outcome is still unknown, under their old keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from natwork_ray.control.events import Event
from natwork_ray.control.loop import ControlLoop, Step
from natwork_ray.control.planner import MovePredictor
from natwork_ray.domain.auditing import AuditRecord
from natwork_ray.domain.decisions import Decision
from natwork_ray.domain.values import decode, encode, value
from natwork_ray.errors import NatworkError, StoreError
from natwork_ray.ports import Journal


@value
class StoredEvent:
    """What the journal keeps of an event: itself, and the decisions it led to."""

    event: Event
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What became of one submitted event.

    `known` is true when an event of that id had been committed before; then nothing happened now. `error` is set when
    the loop refused the event; then nothing was stored of it.
    """

    step: Step
    known: bool = False
    error: NatworkError | None = None

    def unwrap(self) -> Step:
        """The step, or the error raised."""
        if self.error is not None:
            raise self.error
        return self.step


class ControlService:
    """A `ControlLoop` with a journal under it."""

    def __init__(self, journal: Journal, predict_move: MovePredictor) -> None:
        self._journal = journal
        self._broken: Exception | None = None
        self.loop = ControlLoop(predict_move)
        self.replayed = 0
        for _, body in journal.events():
            stored: StoredEvent = decode(StoredEvent, body)
            self.loop.handle(stored.event, decided=stored.decisions)
            self.replayed += 1

    def submit(self, events: Sequence[Event]) -> tuple[Answer, ...]:
        """Handle and commit a batch.

        Raises:
            StoreError: the journal failed. Memory and disk may then differ, so this object refuses all further work,
                as after any other unforeseen error: make a new one from the journal.
        """
        if self._broken is not None:
            raise StoreError(f"the journal failed before: {self._broken}", hint="restart the control actor")
        try:
            return self._submit(events)
        except Exception as error:
            self._broken = error
            raise

    def _submit(self, events: Sequence[Event]) -> tuple[Answer, ...]:
        answers: list[Answer] = []
        rows: dict[str, bytes] = {}
        records: list[AuditRecord] = []
        for event in events:
            if event.id in rows or self._journal.has_event(event.id):
                answers.append(Answer(Step(), known=True))
                continue
            try:
                # What the journal could not give back after a restart (NaN, a wrong type) must not be handled now.
                sound: Event = decode(Event, encode(event, Event))
                step = self.loop.handle(sound)
            except NatworkError as error:
                answers.append(Answer(Step(), error=error))
                continue
            rows[event.id] = encode(StoredEvent(event=sound, decisions=step.decisions))
            records += step.records
            answers.append(Answer(step))
        if rows:
            self._journal.commit(tuple(rows.items()), records)
        return tuple(answers)
