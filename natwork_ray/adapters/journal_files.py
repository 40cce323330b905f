"""The journal's database file: how it is opened, its tables, and the lock that keeps a second writer out.

WAL with `synchronous=FULL`: a commit that returned is on the disk. The lock is an flock, so it is freed by the kernel
however its process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from natwork_ray.audit.log import AuditLog
from natwork_ray.audit.notes import Signer, sign_checkpoint
from natwork_ray.errors import PreconditionError, StoreError

_VERSION = 1
_ASKERS, _ASKED_S = 3, 0.02
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE events (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body BLOB NOT NULL) STRICT;
CREATE TABLE entries (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, line BLOB NOT NULL) STRICT;
CREATE INDEX entries_by_kind ON entries (kind, seq);
CREATE TABLE nodes (level INTEGER NOT NULL, position INTEGER NOT NULL, hash BLOB NOT NULL,
                    PRIMARY KEY (level, position)) STRICT, WITHOUT ROWID;
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), key TEXT NOT NULL, size INTEGER NOT NULL,
                   last_hash TEXT NOT NULL, checkpoint BLOB NOT NULL) STRICT;
PRAGMA user_version = {_VERSION};
"""


def connect(database: Path, *, read_only: bool) -> sqlite3.Connection:
    """A connection in autocommit mode; a writer's makes every commit durable.

    Raises:
        StoreError: the database has another format.
        sqlite3.Error: it cannot be opened.
    """
    # as_uri escapes '?' and '#', which would otherwise end the path.
    uri = f"{database.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    connection = sqlite3.connect(uri, uri=True, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        _check_version(connection, database)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(connection: sqlite3.Connection, database: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, _VERSION):
        raise StoreError(
            f"{database} has format {version}, this version reads {_VERSION}",
            hint="use the version that wrote it",
        )


def prepare(connection: sqlite3.Connection, signer: Signer) -> None:
    """Make the tables of a fresh database, with the signed checkpoint of an empty log, at once or not at all."""
    if connection.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
        return
    empty = AuditLog()
    connection.executescript(_SCHEMA)
    connection.execute(
        "INSERT INTO head VALUES (1, ?, 0, ?, ?)",
        (str(signer.verifier_key), empty.last_hash, sign_checkpoint(signer, 0, empty.root())),
    )
    connection.execute("COMMIT")


def take_lock(path: Path) -> int:
    """Lock the file for this process until the returned descriptor is closed or the process dies.

    Raises:
        PreconditionError: another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _locked_soon(descriptor)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise PreconditionError(
            f"another process (pid {holder or 'unknown'}) writes to the journal in {path.parent}",
            hint="one control loop at a time: stop the other (`natwork down`), or use another state_dir",
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return descriptor


def _locked_soon(descriptor: int) -> None:
    # Who only asks whether somebody writes holds the lock for some microseconds.
    for _ in range(_ASKERS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_ASKED_S)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def store_errors(database: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the file system into `StoreError`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"{database}: {error}", hint="check free space and access rights; nothing was written"
        ) from error
