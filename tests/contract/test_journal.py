"""The port `Journal`: every implementation passes these. Add a factory to `FACTORIES` to join."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.domain.auditing import AuditKind, AuditRecord
from natwork_ray.errors import ConflictError, InputError
from natwork_ray.ports import Journal

# Opens the journal that lives in a folder: called again, it finds what was committed there.
Factory = Callable[[Path], Journal]
FACTORIES: dict[str, Factory] = {
    "sqlite": lambda folder: SqliteJournal.open(folder, origin="natwork.test/contract"),
}
RECORD = AuditRecord(at_s=1.0, kind=AuditKind.RUN, subject="test", body={"n": 1})


@pytest.fixture(params=sorted(FACTORIES))
def factory(request: pytest.FixtureRequest) -> Factory:
    return FACTORIES[request.param]


@pytest.fixture
def journal(factory: Factory, tmp_path: Path) -> Iterator[Journal]:
    opened = factory(tmp_path)
    yield opened
    opened.close()


def test_it_begins_empty(journal: Journal) -> None:
    assert list(journal.events()) == []
    assert not journal.has_event("a")


def test_events_come_back_in_order_also_after_reopening(factory: Factory, tmp_path: Path) -> None:
    journal = factory(tmp_path)
    expected = [(f"id-{i}", b'{"n":%d}' % i) for i in range(2500)]
    journal.commit(expected[:1], [RECORD])
    journal.commit(expected[1:], [])
    journal.commit([], [RECORD, RECORD])
    journal.commit([], [])
    assert list(journal.events()) == expected
    journal.close()
    again = factory(tmp_path)
    assert list(again.events()) == expected
    assert again.has_event("id-7")
    assert not again.has_event("id-2500")
    again.close()


def test_events_may_be_committed_while_others_are_read(journal: Journal) -> None:
    journal.commit([("a", b"1"), ("b", b"2")], [])
    reading = journal.events()
    assert next(reading) == ("a", b"1")
    journal.commit([("c", b"3")], [])
    assert ("b", b"2") in list(reading)


@pytest.mark.parametrize("second", [[("b", b""), ("a", b"")], [("b", b""), ("b", b"")]])
def test_a_known_event_changes_nothing(journal: Journal, second: list[tuple[str, bytes]]) -> None:
    journal.commit([("a", b"1")], [RECORD])
    with pytest.raises(ConflictError) as caught:
        journal.commit(second, [RECORD])
    assert caught.value.hint
    assert list(journal.events()) == [("a", b"1")]
    journal.commit([("b", b"2")], [RECORD])
    assert list(journal.events()) == [("a", b"1"), ("b", b"2")]


def test_a_record_that_cannot_be_written_changes_nothing(journal: Journal) -> None:
    bad = AuditRecord(at_s=1.0, kind=AuditKind.RUN, subject="test", body={"n": float("nan")})
    with pytest.raises(InputError):
        journal.commit([("a", b"1")], [RECORD, bad])
    assert not journal.has_event("a")
    journal.commit([("a", b"1")], [RECORD])
    assert journal.has_event("a")
