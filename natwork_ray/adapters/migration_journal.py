"""A node's memory of its migrations, in plain files (port `MigrationJournal`).

    FOLDER/open/KEY.jsonl                 events of a migration that is not over, one JSON document per line
    FOLDER/records/00000000012 KEY.json   final records, numbered in the order of filing
    FOLDER/reserve                        space that is given back when the disk is full

KEY is percent-encoded, so any key is a file name. An append is one write and one fdatasync; a line without its end (the
machine died while writing) is left out when reading and cut off before the next append. A record is written beside,
synchronised and renamed; only then the events go. Where a crash left both, the record counts.

The reserve is what makes a full disk survivable: a migration that cannot note its last decisions could not be settled.
It is made anew as soon as there is room again.

What is read is bounded and has to be JSON; anything else raises `StoreError` with the file's name, and nothing is
repaired silently. Who only reads changes nothing: what a crash left half done is tidied up by the first write. One
agent per folder: Ray keeps an agent from running twice, nothing here does.

    >>> journal = FileMigrationJournal(Path("journal"))            # doctest: +SKIP
    >>> journal.append("m-1", b'{"type":"started"}')               # doctest: +SKIP
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from natwork_ray.errors import StoreError, UsageError

MAX_LINE_BYTES = 256 * 1024
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_RECORDS = 10_000  # that `records` returns: the newest
MAX_OPEN = 10_000
MAX_KEY_BYTES = 200  # as a file name, percent-encoded
RESERVE_BYTES = 256 * 1024

_OPEN, _RECORDS, _RESERVE = "open", "records", "reserve"
_EVENTS_SUFFIX, _RECORD_SUFFIX, _DRAFT_SUFFIX = ".jsonl", ".json", ".draft"
_DIGITS = 11
_ACCESS = "check free space and access rights, or restore it from a backup"
_MEND = (
    "restore it from a backup; or see that its container runs on one node only and that no order for it is open, and "
    "move the file to another folder; until then migrations that leave this node are refused"
)


class FileMigrationJournal:
    """Events and records of one node below one folder (mode 0700, made when missing)."""

    def __init__(self, folder: Path) -> None:
        """Make the folders where there are none; nothing else changes before the first write.

        Raises:
            StoreError: a folder cannot be made.
        """
        self.folder = folder
        self._open, self._records = folder / _OPEN, folder / _RECORDS
        with _store_errors(folder):
            for each in (folder, self._open, self._records):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._filed = 0  # highest number of a record
        self._tidy = False

    def _prepare(self) -> None:
        """Before the first write: finish what a crash left half done.

        Raises:
            StoreError: the folder cannot be read.
        """
        if self._tidy:
            return
        records = self._record_files()
        self._filed = max((int(path.name[:_DIGITS]) for path in records), default=0)
        keys = {path.name[_DIGITS + 1 : -len(_RECORD_SUFFIX)] for path in records}
        with _store_errors(self.folder):
            for draft in self._records.glob(f"*{_DRAFT_SUFFIX}"):
                draft.unlink(missing_ok=True)
            for events in self._open.glob(f"*{_EVENTS_SUFFIX}"):
                if events.name[: -len(_EVENTS_SUFFIX)] in keys:
                    events.unlink(missing_ok=True)
        self._reserve()
        self._tidy = True

    def append(self, key: str, event: bytes) -> None:
        """Add one event, or several with line breaks between them. Durable when it returns.

        Raises:
            StoreError: the disk refused, or the journal of this key is full; nothing was written.
            UsageError: the key cannot be a file name, or the event is not JSON on lines.
        """
        path = self._events_file(key)
        lines = event.split(b"\n")
        for line in lines:
            if problem := _problem(line):
                raise UsageError(f"event for {key}: {problem}", hint="append JSON documents, one per line")
        data = event + b"\n"
        self._prepare()
        with _store_errors(path):
            try:
                self._write_events(path, data)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                (self.folder / _RESERVE).unlink(missing_ok=True)
                self._write_events(path, data)

    def read(self, key: str) -> tuple[bytes, ...]:
        """All events of a migration that is not over, in order; empty when there are none.

        Raises:
            StoreError: the file is too large, or a line of it is not JSON.
        """
        path = self._events_file(key)
        with _store_errors(path):
            data = _read(path, MAX_FILE_BYTES)
        *lines, _torn = data.split(b"\n")
        for number, line in enumerate(lines, 1):
            if problem := _problem(line):
                raise _broken(path, f"line {number}: {problem}", hint=_MEND)
        return tuple(lines)

    def open_keys(self) -> tuple[str, ...]:
        """Keys with events and without a record, sorted.

        Raises:
            StoreError: the folder cannot be read, or holds too many or foreign files.
        """
        with _store_errors(self._open):
            names = sorted(path.name for path in self._open.iterdir())
        if len(names) > MAX_OPEN:
            raise _broken(self._open, f"{len(names)} files, {MAX_OPEN} at most")
        keys = [_key_of(self._open / name, _EVENTS_SUFFIX) for name in names]
        if not keys:
            return ()
        filed = {path.name[_DIGITS + 1 : -len(_RECORD_SUFFIX)] for path in self._record_files()}
        return tuple(key for key in keys if quote(key, safe="") not in filed)

    def close(self, key: str, record: bytes) -> None:
        """File the record and forget the events. Filing a key again changes nothing but to forget its events.

        Raises:
            StoreError: the disk refused; the migration is still open, or its record is filed.
            UsageError: the record is not one line of JSON.
        """
        events = self._events_file(key)
        if problem := _problem(record):
            raise UsageError(f"record for {key}: {problem}", hint="file one JSON document")
        name = quote(key, safe="")
        self._prepare()
        with _store_errors(events):
            if not any(path.name[_DIGITS + 1 : -len(_RECORD_SUFFIX)] == name for path in self._record_files()):
                final = self._records / f"{self._filed + 1:0{_DIGITS}d} {name}{_RECORD_SUFFIX}"
                try:
                    self._write_record(final, record)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    (self.folder / _RESERVE).unlink(missing_ok=True)
                    self._write_record(final, record)
                self._filed += 1
            events.unlink(missing_ok=True)
            _sync_folder(self._open)
        self._reserve()

    def records(self) -> tuple[bytes, ...]:
        """The newest `MAX_RECORDS` final records, oldest first.

        Raises:
            StoreError: one of them cannot be read, is too large or not JSON.
        """
        found = []
        for path in self._record_files()[-MAX_RECORDS:]:
            with _store_errors(path):
                data = _read(path, MAX_LINE_BYTES)
            if problem := _problem(data):
                raise _broken(path, problem)
            found.append(data)
        return tuple(found)

    def _record_files(self) -> list[Path]:
        with _store_errors(self._records):
            names = sorted(path.name for path in self._records.iterdir() if path.suffix != _DRAFT_SUFFIX)
        for name in names:
            number, _, rest = name.partition(" ")
            if len(number) != _DIGITS or not (number.isascii() and number.isdigit()):
                raise _broken(self._records / name, "no record has such a name")
            _key_of(self._records / rest, _RECORD_SUFFIX)
        return [self._records / name for name in names]

    def _events_file(self, key: str) -> Path:
        try:
            name = quote(key, safe="")
        except UnicodeError as error:
            raise UsageError(f"migration key {key!r} is no text", hint="use letters, digits and dashes") from error
        if not 0 < len(name) <= MAX_KEY_BYTES:
            raise UsageError(
                f"migration key {key[:40]!r} has {len(name)} bytes as a file name",
                hint=f"use 1 to {MAX_KEY_BYTES} letters, digits and dashes",
            )
        return self._open / (name + _EVENTS_SUFFIX)

    def _write_events(self, path: Path, data: bytes) -> None:
        fresh = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            size = _sound_size(descriptor)
            if size + len(data) > MAX_FILE_BYTES:
                raise _broken(path, f"{size} bytes, {MAX_FILE_BYTES} at most")
            try:
                _write_all(descriptor, data, size)
                os.fdatasync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if fresh:
            _sync_folder(self._open)

    def _write_record(self, final: Path, record: bytes) -> None:
        draft = final.with_name(final.name + _DRAFT_SUFFIX)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _write_all(descriptor, record, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        draft.rename(final)
        _sync_folder(self._records)

    def _reserve(self) -> None:
        """Keep the reserve filled. On a disk that is full already there is none, until there is room again."""
        path = self.folder / _RESERVE
        try:
            if path.exists() and path.stat().st_size == RESERVE_BYTES:
                return
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise _broken(path, str(error)) from error
            path.unlink(missing_ok=True)


def _problem(line: bytes) -> str:
    """Why a line is none of ours, or nothing."""
    if len(line) > MAX_LINE_BYTES:
        return f"{len(line)} bytes, {MAX_LINE_BYTES} at most"
    if b"\n" in line:
        return "more than one line"
    try:
        document = json.loads(line.decode())
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
        return f"not JSON: {error}"
    return "" if isinstance(document, dict) else f"a JSON {type(document).__name__}, not an object"


def _key_of(path: Path, suffix: str) -> str:
    stem = path.name.removesuffix(suffix)
    try:
        key = unquote_to_bytes(stem).decode()
    except UnicodeError:
        key = ""
    if not path.name.endswith(suffix) or not key or quote(key, safe="") != stem:
        raise _broken(path, "no file of the journal has such a name", hint="move it to another folder")
    return key


def _read(path: Path, limit: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise _broken(path, f"more than {limit} bytes")
    return data


def _sound_size(descriptor: int) -> int:
    """Size of the file without a torn last line."""
    size = os.fstat(descriptor).st_size
    end = size
    while end > 0:
        start = max(0, end - 65_536)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
    return end


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _broken(path: Path, problem: str, *, hint: str = _ACCESS) -> StoreError:
    return StoreError(f"{path}: {problem}", hint=hint)


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _broken(path, str(error)) from error
