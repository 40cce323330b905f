"""The journal on SQLite: events and audit entries in one durable transaction (port `Journal`; docs/audit.md).

Rules kept: WAL with `synchronous=FULL`, so what `commit` returned from is on the disk. One commit is one
transaction with its events, entries, new Merkle nodes and the signed checkpoint over the new head: after a
kill at any point the directory holds all of a commit or nothing of it. One writer at a time, by a file lock
that dies with its process; any number of readers beside it, which need no private key.

The directory (mode 0700): `journal.sqlite3` (and its -wal, -shm), `audit.key`, `audit.pub`, `lock`.

Merkle nodes are stored from level 1 up, by (level, position); leaf hashes are computed from the lines. The
`kind` column is an index for listings only: what is proved is the line. Events are durable but not part of
the audit log; whoever needs them proved records them as entries.

    with closing(SqliteJournal.open(directory, origin="natwork.example/audit")) as journal:
        journal.commit([("e-1", b"{}")], [record])
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from natwork_ray.adapters.journal_files import connect, prepare, store_errors, take_lock
from natwork_ray.adapters.key_files import create_signer, load_signer
from natwork_ray.audit.export import write_export
from natwork_ray.audit.log import FIRST_PREV, AuditEntry, AuditLog, parse_entry
from natwork_ray.audit.merkle import (
    consistency_proof,
    frontier_positions,
    inclusion_proof,
    leaf_hash,
    root_at,
    verify_inclusion,
)
from natwork_ray.audit.notes import Signer, VerifierKey, open_checkpoint, sign_checkpoint
from natwork_ray.audit.proofs import ConsistencyProof, InclusionProof
from natwork_ray.domain.auditing import AuditKind, AuditRecord
from natwork_ray.errors import (
    ConflictError,
    NatworkError,
    NotFoundError,
    PreconditionError,
    StoreError,
    UsageError,
)

DATABASE = "journal.sqlite3"
LOCK = "lock"
MAX_LISTING = 10_000
_BATCH = 1000


class SqliteJournal:
    """Durable events and audit log in one directory. Safe to call from several threads; each call is one step.

    Made by `open` (the one writer) or `open_read_only`.
    """

    def __init__(self, database: Path, connection: sqlite3.Connection, signer: Signer | None, lock: int | None) -> None:
        self._database = database
        self._connection = connection
        self._signer = signer
        self._lock_file = lock
        self._guard = threading.RLock()
        with self._reading():
            self._key = VerifierKey.parse(self._head()[0])
        if signer is not None and signer.verifier_key != self._key:
            raise PreconditionError(
                f"{database} was signed by key {self._key}, the key at hand is {signer.verifier_key}",
                hint="restore audit.key from the backup that belongs to this journal",
            )
        # None after a failed write: restored from the disk before the next.
        self._log: AuditLog | None = self._restore()

    # Opening and closing.

    @classmethod
    def open(cls, directory: Path, *, origin: str) -> SqliteJournal:
        """Open for writing; make directory, keys and database where there is nothing yet.

        Raises:
            PreconditionError: another process writes, the key is readable by others, missing or another log's.
            InputError: `origin` cannot name a log.
            VerificationError, StoreError: head, last entry and tree disagree, or the disk refuses.
        """
        database = directory / DATABASE
        with store_errors(database):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = take_lock(directory / LOCK)
        try:
            fresh = not database.exists() or database.stat().st_size == 0
            try:
                signer = load_signer(directory, origin)
            except NotFoundError as error:
                if not fresh:
                    raise PreconditionError(
                        f"{directory} holds an audit log but not the key that signs it",
                        hint="restore audit.key from a backup, or start a new log in another directory",
                    ) from error
                signer = create_signer(directory, origin)
            with store_errors(database):
                # The umask decides over the database's mode; entries may name people and addresses.
                os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                connection = connect(database, read_only=False)
            try:
                with store_errors(database):
                    prepare(connection, signer)
                return cls(database, connection, signer, lock)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def open_read_only(cls, directory: Path) -> SqliteJournal:
        """Open for reading, also while a writer is at work; the private key is not touched.

        Raises:
            PreconditionError: there is no journal.
            VerificationError, StoreError: as `open`.
        """
        database = directory / DATABASE
        if not database.is_file():
            raise PreconditionError(
                f"there is no journal in {directory}", hint="run the loop first, or set state_dir to its folder"
            )
        with store_errors(database):
            connection = connect(database, read_only=True)
        try:
            return cls(database, connection, None, None)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Release the files and the writer's lock. Nothing is lost when this is never called."""
        with self._guard:
            self._connection.close()
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None

    # Events.

    def events(self) -> Iterator[tuple[str, bytes]]:
        """Every committed (event id, JSON) in the order of commitment."""
        last = 0
        while True:
            with self._reading():
                rows = self._connection.execute(
                    "SELECT seq, id, body FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (last, _BATCH)
                ).fetchall()
            for last, event_id, body in rows:  # noqa: B007 - the last one read is where the next batch starts
                yield event_id, body
            if len(rows) < _BATCH:
                return

    def has_event(self, event_id: str) -> bool:
        """Whether an event of that id was committed."""
        return self._one("SELECT 1 FROM events WHERE id = ?", (event_id,)) is not None

    # Writing.

    def commit(self, events: Sequence[tuple[str, bytes]], records: Sequence[AuditRecord]) -> None:
        """Append events and audit records in one durable transaction, and sign the new head of the log.

        Raises:
            ConflictError: an event id is there already; nothing was written.
            InputError: a record cannot be written as an entry; nothing was written.
            StoreError: the disk refused; nothing was written.
            UsageError: the journal was opened read-only.
        """
        signer = self._signer
        if signer is None:
            raise UsageError("the journal was opened read-only", hint="open it with SqliteJournal.open")
        if not events and not records:
            return
        with self._guard:
            self._refuse_known(events)
            log = self._log or self._restore()
            grown = log.append(records)
            self._log = None
            with store_errors(self._database), self._transaction():
                run = self._connection.executemany
                run("INSERT INTO events (id, body) VALUES (?, ?)", events)
                if records:
                    first = log.size
                    run(
                        "INSERT INTO entries (seq, kind, line) VALUES (?, ?, ?)",
                        [
                            (first + i, str(r.kind), line)
                            for i, (r, line) in enumerate(zip(records, grown.lines, strict=True))
                        ],
                    )
                    run("INSERT INTO nodes VALUES (?, ?, ?)", [node for node in grown.nodes if node.level])
                    note = sign_checkpoint(signer, grown.log.size, grown.log.root())
                    self._connection.execute(
                        "UPDATE head SET size = ?, last_hash = ?, checkpoint = ?",
                        (grown.log.size, grown.log.last_hash, note),
                    )
            self._log = grown.log

    def _refuse_known(self, events: Sequence[tuple[str, bytes]]) -> None:
        seen: set[str] = set()
        for event_id, _ in events:
            if event_id in seen or self.has_event(event_id):
                raise ConflictError(
                    f"event {event_id!r} was committed already", hint="it has had its effect: do not handle it again"
                )
            seen.add(event_id)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    # Reading.

    @property
    def verifier_key(self) -> VerifierKey:
        """The public key that checkpoints are signed with."""
        return self._key

    def entry_count(self) -> int:
        """Number of audit entries."""
        with self._reading():
            return self._head()[1]

    def entry(self, seq: int) -> AuditEntry:
        """One entry.

        Raises:
            NotFoundError: there is none of that number.
        """
        with self._reading():
            return parse_entry(self._line(seq))

    def entries(self, start: int = 0, limit: int = 100, kind: AuditKind | None = None) -> tuple[AuditEntry, ...]:
        """Up to `limit` entries (1 to 10000) from number `start` on, of one kind where one is named.

        Raises:
            UsageError: `start` is negative or `limit` out of range.
        """
        if not 0 <= start < 2**63 or not 1 <= limit <= MAX_LISTING:
            raise UsageError(
                f"entries from {start}, at most {limit}", hint=f"start is 0 or more, limit 1 to {MAX_LISTING}"
            )
        query, values = "SELECT line FROM entries WHERE seq >= ? ORDER BY seq LIMIT ?", (start, limit)
        with self._reading():
            if kind is None:
                rows = self._connection.execute(query, values).fetchall()
            else:
                query = query.replace("WHERE", "WHERE kind = ? AND")
                rows = self._connection.execute(query, (str(kind), *values)).fetchall()
        return tuple(parse_entry(line) for (line,) in rows)

    def checkpoint(self) -> bytes:
        """The newest signed checkpoint: keep copies elsewhere, they are the witnesses of a later verification."""
        with self._reading():
            return self._head()[3]

    def inclusion_proof(self, seq: int) -> InclusionProof:
        """That entry `seq` is in the log of the newest checkpoint.

        Raises:
            NotFoundError: there is no such entry.
        """
        with self._reading():
            _, size, _, note = self._head()
            if not 0 <= seq < size:
                raise _no_entry(seq, size)
            return InclusionProof(seq, size, inclusion_proof(seq, size, self._node), note)

    def consistency_proof(self, old_size: int) -> ConsistencyProof:
        """That the log of the newest checkpoint begins with its first `old_size` entries.

        Raises:
            InputError: the log has fewer.
        """
        with self._reading():
            _, size, _, note = self._head()
            return ConsistencyProof(old_size, size, consistency_proof(old_size, size, self._node), note)

    def export(self, stream: BinaryIO, upto: int | None = None) -> int:
        """Write the export of the first `upto` entries (default: all), and return their number.

        It reads one snapshot through a connection of its own: the writer goes on meanwhile.

        Raises:
            UsageError: the log has fewer entries, or a read-only journal would have to sign a shorter one.
            StoreError: the database cannot be read.
            OSError: `stream` cannot be written.
        """
        with store_errors(self._database):
            snapshot = connect(self._database, read_only=True)
        with closing(snapshot):
            with store_errors(self._database):
                snapshot.execute("BEGIN")
                size, note = snapshot.execute("SELECT size, checkpoint FROM head").fetchone()
            count = size if upto is None else upto
            if not 0 <= count <= size or (count != size and self._signer is None):
                raise UsageError(
                    f"cannot export {count} of {size} entries",
                    hint="a reader exports the whole log; the writer any number of entries from the first on",
                )
            if count != size and self._signer is not None:
                with self._reading():
                    note = sign_checkpoint(self._signer, count, root_at(count, self._node))
            return write_export(stream, self._key, self._stored_lines(snapshot, count), note)

    def _stored_lines(self, snapshot: sqlite3.Connection, count: int) -> Iterator[bytes]:
        for start in range(0, count, _BATCH):
            # Only the reading: an error of the stream that is written to is its own and not the store's.
            with store_errors(self._database):
                rows = snapshot.execute(
                    "SELECT line FROM entries WHERE seq >= ? AND seq < ? ORDER BY seq",
                    (start, min(start + _BATCH, count)),
                ).fetchall()
            for (line,) in rows:
                yield line

    # State.

    def _restore(self) -> AuditLog:
        """The log's state from the disk, after checking that head, checkpoint, tree and last entry agree.

        Raises:
            VerificationError, StoreError: they do not.
        """
        with self._reading():
            _, size, last_hash, note = self._head()
            signed = open_checkpoint(note, self._key)
            count = self._one("SELECT coalesce(max(seq) + 1, 0), count(*) FROM entries")
            if count != (size, size) or signed.size != size:
                raise StoreError(
                    f"{self._database}: {count[1]} entries, the head says {size}, its checkpoint {signed.size}",
                    hint="the database was altered: restore it from a backup",
                )
            frontier = tuple(self._node(level, position) for level, position in frontier_positions(size))
            log = AuditLog(size, last_hash, frontier)
            last = self._line(size - 1) if size else None
            if log.root() != signed.root or last_hash != (sha256(last).hexdigest() if last else FIRST_PREV):
                raise StoreError(
                    f"{self._database}: the last of {size} entries does not fit the signed head",
                    hint="the database was altered: restore it from a backup",
                )
            if last:
                proof = inclusion_proof(size - 1, size, self._node)
                verify_inclusion(leaf_hash(last), size - 1, size, proof, signed.root)
            return log

    def _head(self) -> tuple[str, int, str, bytes]:
        row = self._one("SELECT key, size, last_hash, checkpoint FROM head")
        if row is None:
            raise StoreError(f"{self._database} has no head", hint="restore it from a backup")
        key, size, last_hash, note = row
        return key, size, last_hash, note

    def _line(self, seq: int) -> bytes:
        row = self._one("SELECT line FROM entries WHERE seq = ?", (seq,)) if 0 <= seq < 2**63 else None
        if row is None:
            raise _no_entry(seq, self._head()[1])
        line: bytes = row[0]
        return line

    def _node(self, level: int, position: int) -> bytes:
        if level == 0:
            return leaf_hash(self._line(position))
        row = self._one("SELECT hash FROM nodes WHERE level = ? AND position = ?", (level, position))
        if row is None:
            raise StoreError(
                f"{self._database}: Merkle node {position} of level {level} is missing",
                hint="restore the database from a backup",
            )
        node: bytes = row[0]
        return node

    def _one(self, query: str, values: tuple[object, ...] = ()) -> Any:
        with self._guard, store_errors(self._database):
            return self._connection.execute(query, values).fetchone()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One snapshot for several reads, and one thread at a time on the connection."""
        with self._guard, store_errors(self._database):
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")


def _no_entry(seq: int, size: int) -> NatworkError:
    return NotFoundError(f"there is no audit entry {seq}", hint=f"the log has {size}, counted from 0")
