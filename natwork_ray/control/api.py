"""What the doors (HTTP, command line) may ask of the control service, wherever it runs.

`control.direct.DirectControl` answers in one process; `agents.control.ControlClient` answers across Ray, with the
same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from natwork_ray.audit.log import AuditEntry
from natwork_ray.audit.proofs import ConsistencyProof, InclusionProof
from natwork_ray.control.events import Event, OrderEvent
from natwork_ray.control.service import Answer
from natwork_ray.domain.actions import ActionOutcome, Instruction
from natwork_ray.domain.decisions import Decision
from natwork_ray.domain.migrations import MigrationOutlook, MigrationProgress
from natwork_ray.domain.phases import Gate
from natwork_ray.domain.profiles import ProfilesInUse
from natwork_ray.domain.status import LoopStatus
from natwork_ray.limi.holding import HoldNews


class ControlApi(Protocol):
    """Reading and feeding the loop. Every coroutine may raise TimedOutError while the service restarts."""

    async def submit(self, events: Sequence[Event]) -> tuple[Answer, ...]:
        """Handle events durably, in order; an id that was committed before is answered as known."""
        ...

    async def outbox(self) -> tuple[Instruction, ...]:
        """Instructions whose outcome is not known yet."""
        ...

    async def status(self) -> LoopStatus:
        """The loop at this moment; ConflictError when no run was started."""
        ...

    async def decisions(self) -> tuple[Decision, ...]:
        """Every decision in its newest form, oldest first."""
        ...

    async def decision(self, decision_id: str) -> Decision:
        """One decision; NotFoundError when there is none of that id."""
        ...

    async def consider(self, order: OrderEvent) -> Decision:
        """What the answer to an order would be now; nothing is stored."""
        ...

    async def profiles(self) -> ProfilesInUse:
        """Where profiles were learnt, which have drifted, and which are to be learnt anew."""
        ...

    async def outcomes(self) -> tuple[ActionOutcome, ...]:
        """Every outcome reported, oldest first."""
        ...

    async def audit_size(self) -> int:
        """Number of entries in the audit log."""
        ...

    async def audit_entries(self, start: int, limit: int) -> tuple[AuditEntry, ...]:
        """Entries from `start` on, at most `limit`."""
        ...

    async def audit_entry(self, seq: int) -> AuditEntry:
        """One entry; NotFoundError when there is none of that number."""
        ...

    async def audit_checkpoint(self) -> bytes:
        """The newest signed checkpoint note."""
        ...

    async def audit_verifier_key(self) -> str:
        """The public key in signed-note form."""
        ...

    async def audit_inclusion(self, seq: int) -> InclusionProof:
        """Inclusion proof of an entry, with the signed checkpoint that it leads to."""
        ...

    async def audit_consistency(self, old_size: int) -> ConsistencyProof:
        """Proof that the log extends its first `old_size` entries, with the signed checkpoint."""
        ...


class GateAgents(Protocol):
    """What who conducts a service asks of the LiMi agents, found by the migration's source. Calls may be repeated."""

    async def news(self, key: str, *, source: str, after: int, patience_s: float) -> HoldNews:
        """How far a migration is: as soon as more than `after` milestones are told, or after `patience_s`.

        Asking tells the agent that its conductor lives. TimedOutError: the agent does not answer.
        """
        ...

    async def release(self, key: str, gate: Gate, *, source: str) -> None:
        """Let it pass a gate."""
        ...

    async def cancel(self, key: str, reason: str, *, source: str) -> None:
        """Take it back, if it still can go back."""
        ...


class LimiAgents(Protocol):
    """What the doors may ask of the LiMi agents, who know what the journal does not."""

    async def outlook(self, container: str, *, source: str, target: str, weight: float | None) -> MigrationOutlook:
        """Measure a container on its node and say how each method would go; `weight` None: the configured one.

        Raises:
            PreconditionError: real migration is not possible on these machines; the message says why.
            TimedOutError: the agent does not answer.
        """
        ...

    async def progress(self, key: str, *, source: str) -> MigrationProgress | None:
        """How far a migration has come; None when the agent of its source has none of that key under way."""
        ...
