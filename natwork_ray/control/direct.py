"""`ControlApi` in one process, with group commit.

While one batch is being written, calls that arrive wait together and become the next batch: one transaction, one
signature and one fsync for all of them. Handling and writing happen on the event loop's own thread, so a reader
never sees a state that is not on the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from natwork_ray.audit.log import AuditEntry
from natwork_ray.audit.notes import VerifierKey
from natwork_ray.audit.proofs import ConsistencyProof, InclusionProof
from natwork_ray.control.events import Event, OrderEvent
from natwork_ray.control.planner import MovePredictor
from natwork_ray.control.service import Answer, ControlService
from natwork_ray.domain.actions import ActionOutcome, Instruction
from natwork_ray.domain.decisions import Decision
from natwork_ray.domain.model_versions import ModelInUse
from natwork_ray.domain.profiles import ProfilesInUse
from natwork_ray.domain.shown_turn import ShownTurn
from natwork_ray.domain.status import LoopStatus
from natwork_ray.ports import Journal


class ReadableJournal(Journal, Protocol):
    """A journal whose audit log can be read back and proved."""

    @property
    def verifier_key(self) -> VerifierKey:
        """The public key of the log."""
        ...

    def entry_count(self) -> int:
        """Number of entries."""
        ...

    def entry(self, seq: int) -> AuditEntry:
        """One entry."""
        ...

    def entries(self, start: int, limit: int) -> tuple[AuditEntry, ...]:
        """A range of entries."""
        ...

    def checkpoint(self) -> bytes:
        """The newest signed checkpoint."""
        ...

    def inclusion_proof(self, seq: int) -> InclusionProof:
        """Proof that an entry is in the log."""
        ...

    def consistency_proof(self, old_size: int) -> ConsistencyProof:
        """Proof that the log only grew."""
        ...


class DirectControl:
    """The control service behind `ControlApi`. `on_answers` is told of every batch (for metrics)."""

    def __init__(
        self,
        journal: ReadableJournal,
        predict_move: MovePredictor,
        on_answers: Callable[[Sequence[Event], Sequence[Answer]], None] | None = None,
    ) -> None:
        self._journal = journal
        self._service = ControlService(journal, predict_move)
        self._on_answers = on_answers
        self._waiting: list[tuple[tuple[Event, ...], asyncio.Future[tuple[Answer, ...]]]] = []
        self._shown: ShownTurn | None = None

    @property
    def replayed(self) -> int:
        """Events that were read back from the journal when this object was made."""
        return self._service.replayed

    async def submit(self, events: Sequence[Event]) -> tuple[Answer, ...]:
        """See `ControlApi`. All events of one call are in one transaction."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[Answer, ...]] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._commit_waiting)
        self._waiting.append((tuple(events), done))
        return await done

    def _commit_waiting(self) -> None:
        batch, self._waiting = self._waiting, []
        events = [event for group, _ in batch for event in group]
        try:
            answers = self._service.submit(events)
        except Exception as error:
            for _, done in batch:
                if not done.done():
                    done.set_exception(error)
            return
        start = 0
        for group, done in batch:
            if not done.done():
                done.set_result(answers[start : start + len(group)])
            start += len(group)
        # Last: whoever only counts must not keep an answer from those who wait for it.
        if self._on_answers is not None:
            self._on_answers(events, answers)

    @property
    def at_s(self) -> float:
        """Time of the newest event on the backend's clock."""
        return self._service.loop.at_s

    def models_chosen(self) -> tuple[ModelInUse, ...]:
        """The version in use of every model that a person chose one for."""
        return self._service.loop.models()

    async def show_turn(self, turn: ShownTurn) -> None:
        """What the newest turn said of every container. Not kept: it is about now."""
        self._shown = turn

    async def shown_turn(self) -> ShownTurn | None:
        """The newest turn that was shown."""
        return self._shown

    async def outbox(self) -> tuple[Instruction, ...]:
        """See `ControlApi`."""
        return self._service.loop.outbox()

    async def status(self) -> LoopStatus:
        """See `ControlApi`."""
        return self._service.loop.status()

    async def decisions(self) -> tuple[Decision, ...]:
        """See `ControlApi`."""
        return self._service.loop.decisions()

    async def decision(self, decision_id: str) -> Decision:
        """See `ControlApi`."""
        return self._service.loop.decision(decision_id)

    async def consider(self, order: OrderEvent) -> Decision:
        """See `ControlApi`."""
        return self._service.loop.consider(order)

    async def profiles(self) -> ProfilesInUse:
        """See `ControlApi`."""
        return self._service.loop.profiles()

    async def outcomes(self) -> tuple[ActionOutcome, ...]:
        """See `ControlApi`."""
        return self._service.loop.outcomes()

    async def audit_size(self) -> int:
        """See `ControlApi`."""
        return self._journal.entry_count()

    async def audit_entries(self, start: int, limit: int) -> tuple[AuditEntry, ...]:
        """See `ControlApi`."""
        return self._journal.entries(start, limit)

    async def audit_entry(self, seq: int) -> AuditEntry:
        """See `ControlApi`."""
        return self._journal.entry(seq)

    async def audit_checkpoint(self) -> bytes:
        """See `ControlApi`."""
        return self._journal.checkpoint()

    async def audit_verifier_key(self) -> str:
        """See `ControlApi`."""
        return str(self._journal.verifier_key)

    async def audit_inclusion(self, seq: int) -> InclusionProof:
        """See `ControlApi`."""
        return self._journal.inclusion_proof(seq)

    async def audit_consistency(self, old_size: int) -> ConsistencyProof:
        """See `ControlApi`."""
        return self._journal.consistency_proof(old_size)
