"""Durability: what was committed survives, what was refused leaves no trace, what failed stops everything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from natwork_ray.control.events import ApprovalAnswered, Event, OutcomeReported
from natwork_ray.control.planner import MovePrediction
from natwork_ray.control.service import ControlService
from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.auditing import AuditKind, AuditRecord
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.topology import Container
from natwork_ray.errors import ConflictError, InputError, NotFoundError, StoreError


@dataclass
class MemoryJournal:
    rows: dict[str, bytes] = field(default_factory=dict)
    records: list[AuditRecord] = field(default_factory=list)
    commits: int = 0
    failure: Exception | None = None
    has_failure: str = ""

    def events(self) -> Iterator[tuple[str, bytes]]:
        return iter(tuple(self.rows.items()))

    def has_event(self, event_id: str) -> bool:
        if event_id == self.has_failure:
            raise StoreError("the disk is gone", hint="mount it")
        return event_id in self.rows

    def commit(self, events: Sequence[tuple[str, bytes]], records: Sequence[AuditRecord]) -> None:
        if self.failure is not None:
            raise self.failure
        assert not {i for i, _ in events} & self.rows.keys()
        self.rows.update(events)
        self.records += records
        self.commits += 1

    def close(self) -> None:
        return None


def other(container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> MovePrediction:
    return MovePrediction(MigrationMethod.COLD, 3.0, 4.0)


def same(a: ControlService, b: ControlService) -> bool:
    x, y = a.loop, b.loop
    return (x.status(), x.outbox(), x.decisions(), x.outcomes()) == (
        y.status(),
        y.outbox(),
        y.decisions(),
        y.outcomes(),
    )


def reported(world: Any, key: str, at_s: float, **fields: Any) -> OutcomeReported:
    return OutcomeReported(id=f"outcome:{key}", at_s=at_s, outcome=world.outcome(key, **fields))


def test_a_batch_is_one_commit_and_each_step_is_audited(world: Any) -> None:
    journal = MemoryJournal()
    service = ControlService(journal, world.predict)
    verdict = world.verdict(kind=AnomalyKind.NETWORK_LATENCY)
    service.submit((world.run(), world.verdicts(10.0, verdict)))
    assert journal.commits == 1
    assert [r.kind for r in journal.records] == [
        AuditKind.RUN,
        AuditKind.VERDICT,
        AuditKind.DECISION,
        AuditKind.INSTRUCTION,
    ]
    (instruction,) = service.loop.outbox()
    service.submit((reported(world, instruction.key, 20.0, downtime_s=0.4),))
    last = journal.records[-1]
    assert last.kind is AuditKind.OUTCOME
    assert last.body["decision"] == "d-000001"
    assert last.body["quota"]["spent_s"] == 0.4
    assert last.subject == "front"


def test_a_restart_stands_where_the_process_before_it_fell(world: Any) -> None:
    journal = MemoryJournal()
    service = ControlService(journal, world.predict)
    service.submit((world.run(),))
    for turn in range(1, 6):
        kind = AnomalyKind.UNKNOWN if turn == 1 else AnomalyKind.HIGH_MEMORY
        service.submit((world.verdicts(400.0 * turn, world.verdict("front", kind), world.verdict("other", kind)),))
        assert same(ControlService(journal, other), service)
        for instruction in service.loop.outbox()[:1]:
            service.submit((reported(world, instruction.key, 400.0 * turn + 5, downtime_s=0.2),))
        again = ControlService(journal, other)
        assert same(again, service)
        assert again.replayed == len(journal.rows)
        for instruction in service.loop.outbox():
            service.submit((reported(world, instruction.key, 400.0 * turn + 6),))


def test_what_is_known_is_not_handled_again(world: Any) -> None:
    journal = MemoryJournal()
    service = ControlService(journal, world.predict)
    event = world.verdicts(10.0, world.verdict())
    service.submit((world.run(),))
    first, second = service.submit((event, event))
    assert (first.known, second.known) == (False, True)
    (third,) = service.submit((event,))
    assert third.known
    assert third.unwrap().decisions == ()
    assert service.loop.status().turns == 1
    (fourth,) = ControlService(journal, world.predict).submit((event,))
    assert fourth.known


def test_refused_events_are_not_stored_and_harm_no_neighbour(world: Any) -> None:
    journal = MemoryJournal()
    service = ControlService(journal, world.predict)
    ghost = world.verdicts(10.0, world.verdict("ghost"))
    answers = service.submit((world.run(), ghost, world.verdicts(20.0, world.verdict())))
    assert isinstance(answers[1].error, NotFoundError)
    with pytest.raises(NotFoundError):
        answers[1].unwrap()
    assert list(journal.rows) == ["run", "verdicts@20.000"]
    assert same(ControlService(journal, world.predict), service)
    (only,) = service.submit((ghost,))
    assert only.error is not None
    assert journal.commits == 1


BAD: list[dict[str, Any]] = [{"at_s": math.nan}, {"at_s": math.inf}, {"scanned": "3"}, {"degraded": ("\ud800",)}]


@pytest.mark.parametrize("fields", BAD)
def test_what_the_journal_could_not_give_back_is_refused(world: Any, fields: dict[str, Any]) -> None:
    journal = MemoryJournal()
    service = ControlService(journal, world.predict)
    service.submit((world.run(),))
    (answer,) = service.submit((replace(world.verdicts(10.0), **fields),))
    assert isinstance(answer.error, InputError)
    assert list(journal.rows) == ["run"]
    assert service.loop.status().turns == 0
    assert same(ControlService(journal, world.predict), service)


@pytest.mark.parametrize("downtime_s", [math.nan, math.inf, -3.0])
def test_an_outcome_with_a_senseless_downtime_is_refused_and_stays_under_way(world: Any, downtime_s: float) -> None:
    service = ControlService(MemoryJournal(), world.predict)
    service.submit((world.run(), world.verdicts(10.0, world.verdict())))
    (instruction,) = service.loop.outbox()
    (answer,) = service.submit((reported(world, instruction.key, 20.0, downtime_s=downtime_s),))
    assert answer.error is not None
    assert service.loop.outbox() == (instruction,)
    service.submit((reported(world, instruction.key, 20.0),))
    assert service.loop.outbox() == ()


@pytest.mark.parametrize("failure", [StoreError("disk full", hint="make room"), OSError("pulled out")])
def test_a_failing_journal_breaks_the_service(world: Any, failure: Exception) -> None:
    journal = MemoryJournal()
    service = ControlService(journal, world.predict)
    service.submit((world.run(),))
    journal.failure = failure
    event = world.verdicts(10.0, world.verdict())
    with pytest.raises(type(failure)):
        service.submit((event,))
    journal.failure = None
    with pytest.raises(StoreError, match="failed before"):
        service.submit((event,))
    again = ControlService(journal, world.predict)
    assert again.loop.status().turns == 0
    (answer,) = again.submit((event,))
    assert answer.step.instructions


def test_a_journal_that_fails_between_two_events_breaks_the_service_too(world: Any) -> None:
    journal = MemoryJournal(has_failure="verdicts@20.000")
    service = ControlService(journal, world.predict)
    with pytest.raises(StoreError):
        service.submit((world.run(), world.verdicts(10.0, world.verdict()), world.verdicts(20.0)))
    assert journal.rows == {}
    with pytest.raises(StoreError, match="failed before"):
        service.submit(())


def test_a_bug_in_the_loop_breaks_the_service(world: Any) -> None:
    def predict(container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> MovePrediction:
        raise ZeroDivisionError

    service = ControlService(MemoryJournal(), predict)
    service.submit((world.run(),))
    with pytest.raises(ZeroDivisionError):
        service.submit((world.verdicts(10.0, world.verdict(kind=AnomalyKind.UNKNOWN)),))
    with pytest.raises(StoreError):
        service.submit(())


def test_a_journal_of_something_else_is_refused_at_the_start(world: Any) -> None:
    with pytest.raises(InputError):
        ControlService(MemoryJournal(rows={"x": b'{"event": {"type": "evil"}}'}), world.predict)


def test_an_approval_is_audited_before_its_instruction(world: Any) -> None:
    journal = MemoryJournal()
    service = ControlService(journal, world.predict)
    service.submit((world.run(mode=Mode.APPROVE), world.verdicts(10.0, world.verdict())))
    assert service.loop.outbox() == ()
    granted: Event = ApprovalAnswered(id="a", at_s=11.0, decision="d-000001", granted=True, by="kim", note="go")
    service.submit((granted,))
    approval, instruction = journal.records[-2:]
    assert (approval.kind, instruction.kind) == (AuditKind.APPROVAL, AuditKind.INSTRUCTION)
    assert approval.body == {"decision": "d-000001", "granted": True, "by": "kim", "note": "go"}
    (again,) = service.submit((replace(granted, id="b"),))
    assert isinstance(again.error, ConflictError)
    assert same(ControlService(journal, other), service)
