"""The SQLite journal: keys, locks, proofs, export beside a writer, tampering with the files, and kills."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.audit.bench import measure
from natwork_ray.audit.proofs import verify_entry, verify_extension
from natwork_ray.audit.verify import AuditReport, verify_export
from natwork_ray.domain.auditing import AuditKind, AuditRecord
from natwork_ray.errors import (
    InputError,
    NatworkError,
    NotFoundError,
    PreconditionError,
    StoreError,
    UsageError,
    VerificationError,
)

ORIGIN = "natwork.test/journal"


def record(n: int, kind: AuditKind = AuditKind.VERDICT) -> AuditRecord:
    return AuditRecord(at_s=float(n), kind=kind, subject=f"upf-{n}", body={"n": n})


def opened(folder: Path) -> SqliteJournal:
    return SqliteJournal.open(folder, origin=ORIGIN)


def verified(journal: SqliteJournal, upto: int | None = None, witness: bytes | None = None) -> AuditReport:
    out = io.BytesIO()
    count = journal.export(out, upto)
    out.seek(0)
    report = verify_export(out, pinned_key=journal.verifier_key, witness=witness)
    assert report.entries == count
    return report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def journal(folder: Path) -> Iterator[SqliteJournal]:
    with closing(opened(folder)) as made:
        made.commit([], [record(n, AuditKind.RUN if n % 3 else AuditKind.QUOTA) for n in range(11)])
        yield made


def test_files_are_private_and_the_key_is_published(journal: SqliteJournal, folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("audit.key", "journal.sqlite3", "lock"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert (folder / "audit.pub").read_text() == f"{journal.verifier_key}\n"


def test_reading_entries(journal: SqliteJournal) -> None:
    assert journal.entry_count() == 11
    assert [e.seq for e in journal.entries(3, 4)] == [3, 4, 5, 6]
    assert [e.seq for e in journal.entries(1, 2, AuditKind.QUOTA)] == [3, 6]
    assert journal.entries(11) == ()
    assert (journal.entry(4).body, journal.entry(4).at_s) == ({"n": 4}, 4.0)
    for seq in (-1, 11, 2**70):
        with pytest.raises(NotFoundError):
            journal.entry(seq)
        with pytest.raises(NotFoundError):
            journal.inclusion_proof(seq)
    for start, limit in ((-1, 1), (0, 0), (0, 10_001), (2**63, 1)):
        with pytest.raises(UsageError):
            journal.entries(start, limit)


def test_every_proof_of_every_size(folder: Path) -> None:
    with closing(opened(folder)) as journal:
        notes = [journal.checkpoint()]
        for size in range(1, 20):
            journal.commit([], [record(size)])
            notes.append(journal.checkpoint())
            for seq in range(size):
                entry = journal.entry(seq)
                assert verify_entry(entry.line, journal.inclusion_proof(seq), journal.verifier_key) == entry
            for old, note in enumerate(notes):
                assert verify_extension(note, journal.consistency_proof(old), journal.verifier_key).size == size
                assert verified(journal, upto=old).entries == old
            assert verified(journal, witness=notes[size // 2]).witnessed == size // 2
        with pytest.raises(InputError):
            journal.consistency_proof(20)
        with pytest.raises(UsageError):
            journal.export(io.BytesIO(), 20)


def test_a_reader_beside_the_writer_needs_no_key(journal: SqliteJournal, folder: Path) -> None:
    (folder / "audit.key").rename(folder / "elsewhere")
    with closing(SqliteJournal.open_read_only(folder)) as reader:
        journal.commit([("e", b"{}")], [record(11)])
        assert reader.entry_count() == 12
        assert verified(reader) == verified(journal)
        assert list(reader.events()) == [("e", b"{}")]
        with pytest.raises(UsageError):
            reader.commit([("f", b"{}")], [])
        with pytest.raises(UsageError):
            reader.export(io.BytesIO(), 3)
    journal.close()
    with closing(SqliteJournal.open_read_only(folder)) as reader:
        assert verified(reader).entries == 12


def test_no_journal_there(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="no journal"):
        SqliteJournal.open_read_only(tmp_path)


def test_a_second_writer_is_refused_and_names_the_first(journal: SqliteJournal, folder: Path) -> None:
    with pytest.raises(PreconditionError, match=f"pid {os.getpid()}"):
        opened(folder)
    journal.close()
    journal.close()
    opened(folder).close()


def test_a_key_that_others_may_read_is_refused(journal: SqliteJournal, folder: Path) -> None:
    journal.close()
    (folder / "audit.key").chmod(0o640)
    with pytest.raises(PreconditionError, match="0640") as caught:
        opened(folder)
    assert "chmod 600" in caught.value.hint
    (folder / "audit.key").chmod(0o600)
    opened(folder).close()


def _lose_key(folder: Path) -> None:
    (folder / "audit.key").unlink()


def _link_key(folder: Path) -> None:
    (folder / "audit.key").rename(folder / "k")
    (folder / "audit.key").symlink_to("k")


def _change_key(folder: Path) -> None:
    for name in ("audit.key", "audit.pub"):
        (folder / name).unlink()
    other = folder / "other"
    SqliteJournal.open(other, origin=ORIGIN).close()
    for name in ("audit.key", "audit.pub"):
        (other / name).rename(folder / name)


@pytest.mark.parametrize("spoil", [_lose_key, _link_key, _change_key])
def test_a_key_that_is_not_the_logs_is_refused(
    journal: SqliteJournal, folder: Path, spoil: Callable[[Path], None]
) -> None:
    journal.close()
    spoil(folder)
    with pytest.raises(PreconditionError) as caught:
        opened(folder)
    assert caught.value.hint


def test_another_origin_is_refused(journal: SqliteJournal, folder: Path) -> None:
    journal.close()
    with pytest.raises(PreconditionError, match="origin"):
        SqliteJournal.open(folder, origin="natwork.test/other")
    with pytest.raises(InputError):
        SqliteJournal.open(folder.with_name("new"), origin="not a name")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries WHERE seq = 10",
        "DELETE FROM entries WHERE seq = 3",
        "UPDATE entries SET line = replace(line, 'upf', 'UPF') WHERE seq = 10",
        "UPDATE nodes SET hash = zeroblob(32) WHERE level = 3",
        "DELETE FROM nodes WHERE level = 1 AND position = 4",
        "DELETE FROM head",
        "UPDATE head SET size = 9",
        "UPDATE head SET last_hash = '0'",
        "UPDATE head SET checkpoint = zeroblob(9)",
        "PRAGMA user_version = 9",
        "DROP TABLE entries",
    ],
)
def test_a_database_that_disagrees_with_itself_does_not_open(
    journal: SqliteJournal, folder: Path, statement: str
) -> None:
    journal.close()
    with closing(sqlite3.connect(folder / "journal.sqlite3")) as direct, direct:
        if "replace(line" in statement:
            direct.execute("UPDATE entries SET line = CAST(replace(line,'upf','UPF') AS BLOB) WHERE seq = 10")
        else:
            direct.execute(statement)
    for opening in (opened, SqliteJournal.open_read_only):
        with pytest.raises((StoreError, VerificationError, NotFoundError)) as caught:
            opening(folder)
        assert caught.value.hint


def test_an_entry_altered_in_the_middle_is_found_by_verification(journal: SqliteJournal, folder: Path) -> None:
    with closing(sqlite3.connect(folder / "journal.sqlite3")) as direct, direct:
        direct.execute("UPDATE entries SET line = CAST(replace(line,'upf','UPF') AS BLOB) WHERE seq = 5")
    with pytest.raises(VerificationError, match=r"entry 5 .*it was altered; entry 6"):
        verified(journal)


def test_a_failed_write_leaves_nothing_behind_and_the_next_works(journal: SqliteJournal, folder: Path) -> None:
    with closing(sqlite3.connect(folder / "journal.sqlite3")) as direct:
        direct.execute("CREATE TRIGGER full BEFORE INSERT ON nodes BEGIN SELECT raise(ABORT, 'disk full'); END")
        with pytest.raises(StoreError, match="disk full"):
            journal.commit([("e", b"{}")], [record(11)])
        assert not journal.has_event("e")
        assert journal.entry_count() == 11
        direct.execute("DROP TRIGGER full")
    journal.commit([("e", b"{}")], [record(11)])
    assert verified(journal).entries == 12


def test_threads_may_share_it(journal: SqliteJournal) -> None:
    failures: list[NatworkError] = []

    def work(name: int) -> None:
        try:
            for i in range(10):
                journal.commit([(f"{name}-{i}", b"{}")], [record(i)])
                journal.inclusion_proof(journal.entry_count() - 1)
                verified(journal)
        except NatworkError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert verified(journal).entries == 51
    assert len(list(journal.events())) == 40


WRITER = """
import sys
from pathlib import Path
from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.domain.auditing import AuditKind, AuditRecord
journal = SqliteJournal.open(Path(sys.argv[1]), origin="natwork.test/journal")
for n in range(sum(1 for _ in journal.events()), 10**6):
    made = AuditRecord(at_s=float(n), kind=AuditKind.RUN, subject="w", body={"n": n})
    journal.commit([(f"e-{n}", b"{}")], [made] * 3)
    print(n, flush=True)
"""


def test_a_kill_at_any_point_loses_nothing_that_was_acknowledged(folder: Path) -> None:
    dice = random.Random(7)
    committed = 0
    witness: bytes | None = None
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(dice.randrange(1, 60)):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            # What it had said before it died, without a last line cut short.
            for line in writer.stdout.read().splitlines(keepends=True):
                acknowledged = int(line) if line.endswith(b"\n") else acknowledged
        with closing(opened(folder)) as journal:
            events = [event_id for event_id, _ in journal.events()]
            assert events == [f"e-{n}" for n in range(len(events))]
            assert len(events) > acknowledged >= committed
            # All of a commit or nothing: three entries for each event.
            assert [json.loads(e.line)["body"]["n"] for e in journal.entries(0, 10_000)] == [
                n for n in range(len(events)) for _ in range(3)
            ]
            assert verified(journal, witness=witness).entries == 3 * len(events)
            committed, witness = len(events), journal.checkpoint()


def test_the_bench_measures_a_real_journal(folder: Path) -> None:
    figures = measure(lambda: opened(folder), entries=250, batch=100)
    assert (figures.entries, figures.batch) == (250, 100)
    assert figures.append_entries_per_s > 0
    assert figures.verify_million_s == pytest.approx(1e6 / figures.verify_entries_per_s)
    assert figures.commit_p50_ms <= figures.commit_p99_ms
    other = folder.with_name("used")
    with closing(opened(other)) as used:
        used.commit([], [record(0)])
    with pytest.raises(UsageError, match="fresh"):
        measure(lambda: opened(other), entries=5, batch=5)
    with pytest.raises(UsageError):
        measure(lambda: opened(folder), entries=0)
