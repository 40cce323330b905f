"""The control actor: the durable control service with a name, a place and a new life after each death.

Named and detached, pinned to the machine that holds the state directory, restarted for ever. What it knows is in
the journal: `__init__` reads it back. Calls are at-least-once; ids make their effects exactly-once.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from agents.calls import PATIENCE_S, NamedActor
from agents.metrics import ControlMetrics
from agents.naming import CONTROL, HOST_LABEL, NAMESPACE, SERVED_MODELS
from natwork_ray import __version__
from natwork_ray.adapters.model_directory import ModelDirectory
from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.audit.log import AuditEntry
from natwork_ray.audit.proofs import ConsistencyProof, InclusionProof
from natwork_ray.backends import model_source, move_predictor
from natwork_ray.config import Config
from natwork_ray.control.direct import DirectControl
from natwork_ray.control.events import Event, OrderEvent, VerdictsReached
from natwork_ray.control.models import ModelShelf
from natwork_ray.control.service import Answer
from natwork_ray.domain.actions import ActionOutcome, Instruction
from natwork_ray.domain.decisions import Decision
from natwork_ray.domain.model_versions import ModelInUse, ModelOverview, ModelVersion
from natwork_ray.domain.profiles import ProfilesInUse
from natwork_ray.domain.shown_turn import ShownTurn
from natwork_ray.domain.status import LoopStatus

AUDIT_ORIGIN = "natwork-ray/control"
MODELS_FOLDER = "models"  # in the state directory

# No turn for so long is trouble: a death costs some seconds, a slow pace some turns.
QUIET_S = 20.0
QUIET_TURNS = 5

_log = logging.getLogger(__name__)


class ControlActor(DirectControl):
    """`DirectControl` on a SQLite journal, with metrics; gives up its process when the disk fails."""

    def __init__(self, state_dir: Path, config: Config) -> None:
        journal = SqliteJournal.open(state_dir, origin=AUDIT_ORIGIN)
        super().__init__(journal, move_predictor(config), ControlMetrics().count)
        store = ModelDirectory(state_dir / MODELS_FOLDER)
        self._shelf = ModelShelf(self, store, {name: model_source(config, store, name) for name in SERVED_MODELS})

        self._trouble = ""
        self._pace_s: float | None = None
        self._turned_at = self._shown_at = time.monotonic()

    async def submit(self, events: Sequence[Event]) -> tuple[Answer, ...]:
        """See `ControlApi`."""
        if any(isinstance(event, VerdictsReached) for event in events):
            self._turned_at = time.monotonic()
        try:
            return await super().submit(events)
        except Exception:
            # Memory may be ahead of the disk now. Ray makes a new process, which reads the journal.
            _log.exception("the journal or the loop failed; this process ends")
            os._exit(70)

    async def report_trouble(self, trouble: str) -> None:
        """Whoever turns the loop says why it stands still; empty when it turns again. Not kept: it is about now."""
        self._trouble = trouble

    async def expect_turns(self, pace_s: float | None) -> None:
        """How often turns are to come, so that their absence is noticed; None when the run is over."""
        self._pace_s, self._turned_at = pace_s, time.monotonic()

    async def status(self) -> LoopStatus:
        """See `ControlApi`."""
        still_s = time.monotonic() - self._turned_at
        trouble = self._trouble
        if not trouble and self._pace_s is not None and still_s > max(QUIET_S, QUIET_TURNS * self._pace_s):
            trouble = f"no turn for {still_s:.0f} s"
        return replace(await super().status(), trouble=trouble)

    async def show_turn(self, turn: ShownTurn) -> None:
        """See `DirectControl`."""
        self._shown_at = time.monotonic()
        await super().show_turn(turn)

    async def shown_turn(self) -> ShownTurn | None:
        """The newest turn that was shown; None when it is so long ago that it tells nothing of now."""
        old_s = time.monotonic() - self._shown_at
        return None if old_s > max(QUIET_S, QUIET_TURNS * (self._pace_s or 0.0)) else await super().shown_turn()

    async def models(self) -> tuple[ModelOverview, ...]:
        """See `ShelfApi`."""
        return await self._shelf.models()

    async def publish_model(self, name: str, data: bytes) -> ModelVersion:
        """See `ShelfApi`."""
        return await self._shelf.publish_model(name, data)

    async def model_data(self, name: str, sha256: str) -> bytes:
        """See `ShelfApi`."""
        return await self._shelf.model_data(name, sha256)

    async def choose_model(
        self, name: str, sha256: str, *, by: str, note: str, key: str | None
    ) -> tuple[ModelInUse, bool]:
        """See `ShelfApi`."""
        return await self._shelf.choose_model(name, sha256, by=by, note=note, key=key)

    async def model_in_use(self, name: str, *, other_than: str | None, patience_s: float) -> ModelInUse:
        """See `ShelfApi`."""
        return await self._shelf.model_in_use(name, other_than=other_than, patience_s=patience_s)

    async def pid(self) -> int:
        """Process id, for tests that kill it."""
        return os.getpid()

    async def version(self) -> str:
        """Version of the code that this process runs; a detached actor may outlive an upgrade."""
        return __version__


class ControlClient:
    """`ControlApi` across Ray."""

    def __init__(self, namespace: str = NAMESPACE, patience_s: float = PATIENCE_S) -> None:
        self._actor = NamedActor(CONTROL, namespace=namespace, what="control actor", patience_s=patience_s)

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await self._actor.call(method, *args, **kwargs)

    async def submit(self, events: Sequence[Event]) -> tuple[Answer, ...]:
        """See `ControlApi`."""
        answers: tuple[Answer, ...] = await self._ask("submit", tuple(events))
        return answers

    async def outbox(self) -> tuple[Instruction, ...]:
        """See `ControlApi`."""
        pending: tuple[Instruction, ...] = await self._ask("outbox")
        return pending

    async def status(self) -> LoopStatus:
        """See `ControlApi`."""
        status: LoopStatus = await self._ask("status")
        return status

    async def decisions(self) -> tuple[Decision, ...]:
        """See `ControlApi`."""
        decisions: tuple[Decision, ...] = await self._ask("decisions")
        return decisions

    async def decision(self, decision_id: str) -> Decision:
        """See `ControlApi`."""
        decision: Decision = await self._ask("decision", decision_id)
        return decision

    async def consider(self, order: OrderEvent) -> Decision:
        """See `ControlApi`."""
        decision: Decision = await self._ask("consider", order)
        return decision

    async def profiles(self) -> ProfilesInUse:
        """See `ControlApi`."""
        profiles: ProfilesInUse = await self._ask("profiles")
        return profiles

    async def outcomes(self) -> tuple[ActionOutcome, ...]:
        """See `ControlApi`."""
        outcomes: tuple[ActionOutcome, ...] = await self._ask("outcomes")
        return outcomes

    async def audit_size(self) -> int:
        """See `ControlApi`."""
        size: int = await self._ask("audit_size")
        return size

    async def audit_entries(self, start: int, limit: int) -> tuple[AuditEntry, ...]:
        """See `ControlApi`."""
        entries: tuple[AuditEntry, ...] = await self._ask("audit_entries", start, limit)
        return entries

    async def audit_entry(self, seq: int) -> AuditEntry:
        """See `ControlApi`."""
        entry: AuditEntry = await self._ask("audit_entry", seq)
        return entry

    async def audit_checkpoint(self) -> bytes:
        """See `ControlApi`."""
        note: bytes = await self._ask("audit_checkpoint")
        return note

    async def audit_verifier_key(self) -> str:
        """See `ControlApi`."""
        key: str = await self._ask("audit_verifier_key")
        return key

    async def audit_inclusion(self, seq: int) -> InclusionProof:
        """See `ControlApi`."""
        proof: InclusionProof = await self._ask("audit_inclusion", seq)
        return proof

    async def audit_consistency(self, old_size: int) -> ConsistencyProof:
        """See `ControlApi`."""
        proof: ConsistencyProof = await self._ask("audit_consistency", old_size)
        return proof

    async def report_trouble(self, trouble: str) -> None:
        """See `ControlActor.report_trouble`."""
        await self._ask("report_trouble", trouble)

    async def expect_turns(self, pace_s: float | None) -> None:
        """See `ControlActor.expect_turns`."""
        await self._ask("expect_turns", pace_s)

    async def show_turn(self, turn: ShownTurn) -> None:
        """See `ControlActor.show_turn`."""
        await self._ask("show_turn", turn)

    async def shown_turn(self) -> ShownTurn | None:
        """See `ControlActor.shown_turn`."""
        turn: ShownTurn | None = await self._ask("shown_turn")
        return turn

    async def models(self) -> tuple[ModelOverview, ...]:
        """See `ShelfApi`."""
        models: tuple[ModelOverview, ...] = await self._ask("models")
        return models

    async def publish_model(self, name: str, data: bytes) -> ModelVersion:
        """See `ShelfApi`."""
        version: ModelVersion = await self._ask("publish_model", name, data)
        return version

    async def model_data(self, name: str, sha256: str) -> bytes:
        """See `ShelfApi`."""
        data: bytes = await self._ask("model_data", name, sha256)
        return data

    async def choose_model(
        self, name: str, sha256: str, *, by: str, note: str, key: str | None
    ) -> tuple[ModelInUse, bool]:
        """See `ShelfApi`. Without a key a call repeated after a restart could be a second choice: it gets one here."""
        key = key or str(uuid.uuid4())
        answer: tuple[ModelInUse, bool] = await self._ask("choose_model", name, sha256, by=by, note=note, key=key)
        return answer

    async def model_in_use(self, name: str, *, other_than: str | None, patience_s: float) -> ModelInUse:
        """See `ShelfApi`."""
        in_use: ModelInUse = await self._ask("model_in_use", name, other_than=other_than, patience_s=patience_s)
        return in_use

    async def pid(self) -> int:
        """Process id of the actor."""
        pid: int = await self._ask("pid")
        return pid

    async def version(self) -> str:
        """Version of the code that the actor runs."""
        version: str = await self._ask("version")
        return version


def start_control(state_dir: Path, *, config: Config, namespace: str = NAMESPACE) -> ControlClient:
    """Make the control actor, or find it when it is there."""
    ray.remote(ControlActor).options(
        name=CONTROL,
        namespace=namespace,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=1000,
        num_cpus=0,
        label_selector={HOST_LABEL: "yes"},
    ).remote(state_dir, config)
    return ControlClient(namespace)


def connect(namespace: str = NAMESPACE, *, patience_s: float = 10.0) -> ControlClient:
    """A client of the control actor that runs already; calls raise TimedOutError when there is none."""
    return ControlClient(namespace, patience_s)
