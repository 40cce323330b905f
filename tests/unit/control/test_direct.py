"""`DirectControl`: calls that come together are one commit, and each gets its own answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.control.direct import DirectControl
from natwork_ray.control.events import Event
from natwork_ray.control.service import Answer
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.errors import ConflictError, NotFoundError, StoreError


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    opened = SqliteJournal.open(tmp_path / "state", origin="natwork-ray/test")
    yield opened
    opened.close()


def test_calls_that_come_together_are_one_commit(
    world: Any, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[int] = []
    commit = journal.commit

    def counted(events: Any, records: Any) -> None:
        commits.append(len(events))
        commit(events, records)

    monkeypatch.setattr(journal, "commit", counted)
    told: list[tuple[int, int]] = []

    def on_answers(events: Sequence[Event], answers: Sequence[Answer]) -> None:
        told.append((len(events), len(answers)))

    control = DirectControl(journal, world.predict, on_answers)

    async def scenario() -> tuple[Any, ...]:
        first = await control.submit((world.run(),))
        together = await asyncio.gather(
            control.submit((world.verdicts(10.0), world.verdicts(20.0))),
            control.submit((world.verdicts(30.0),)),
            control.submit(()),
            control.submit((world.verdicts(10.0),)),
        )
        later = await control.submit((world.verdicts(40.0),))
        return first, *together, later

    answers = asyncio.run(scenario())
    assert [len(a) for a in answers] == [1, 2, 1, 0, 1, 1]
    # The repeated event of the fourth caller was known: answered, and not committed again.
    assert commits == [1, 3, 1]
    assert answers[4][0].known
    assert told == [(1, 1), (4, 4), (1, 1)]
    assert asyncio.run(control.status()).turns == 4


def test_a_failed_commit_fails_every_caller_of_the_batch(
    world: Any, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = DirectControl(journal, world.predict)

    def full(*_: object) -> None:
        raise StoreError("the disk is full", hint="make room")

    async def scenario() -> list[Any]:
        await control.submit((world.run(),))
        monkeypatch.setattr(journal, "commit", full)
        return await asyncio.gather(
            control.submit((world.verdicts(10.0),)), control.submit((world.verdicts(20.0),)), return_exceptions=True
        )

    failed = asyncio.run(scenario())
    assert [type(f) for f in failed] == [StoreError, StoreError]


def test_a_caller_that_went_away_does_not_hurt_the_others(world: Any, journal: SqliteJournal) -> None:
    control = DirectControl(journal, world.predict)

    async def scenario() -> Any:
        await control.submit((world.run(),))
        leaving = asyncio.ensure_future(control.submit((world.verdicts(10.0),)))
        staying = asyncio.ensure_future(control.submit((world.verdicts(20.0),)))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    (answer,) = asyncio.run(scenario())
    assert answer.error is None
    # What was handed in is in the journal all the same.
    assert journal.has_event("verdicts@10.000")


def test_callers_who_all_left_are_no_trouble_when_the_disk_fails(
    world: Any, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = DirectControl(journal, world.predict)

    async def scenario() -> None:
        await control.submit((world.run(),))
        leaving = asyncio.ensure_future(control.submit((world.verdicts(10.0),)))
        await asyncio.sleep(0)
        leaving.cancel()

        def full(*_: object) -> None:
            raise StoreError("the disk is full", hint="make room")

        monkeypatch.setattr(journal, "commit", full)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await asyncio.sleep(0)

    asyncio.run(scenario())


def test_every_question_of_the_doors(world: Any, journal: SqliteJournal, tmp_path: Path) -> None:
    control = DirectControl(journal, world.predict)

    async def scenario() -> None:
        with pytest.raises(ConflictError):
            await control.status()
        verdict = world.verdict(kind=AnomalyKind.NETWORK_LATENCY)
        await control.submit((world.run(), world.verdicts(10.0, verdict)))
        (decision,) = await control.decisions()
        assert await control.decision(decision.id) == decision
        with pytest.raises(NotFoundError):
            await control.decision("d-999999")
        assert [i.key for i in await control.outbox()] == [i.key for i in decision.instructions]
        assert await control.outcomes() == ()
        size = await control.audit_size()
        entries = await control.audit_entries(0, 100)
        assert len(entries) == size
        assert await control.audit_entry(1) == entries[1]
        assert await control.audit_verifier_key() == str(journal.verifier_key)
        inclusion = await control.audit_inclusion(1)
        consistency = await control.audit_consistency(1)
        assert inclusion.checkpoint == consistency.checkpoint == await control.audit_checkpoint()

    asyncio.run(scenario())
    assert control.replayed == 0
    journal.close()
    again = SqliteJournal.open(tmp_path / "state", origin="natwork-ray/test")
    try:
        assert DirectControl(again, world.predict).replayed == 2
    finally:
        again.close()
