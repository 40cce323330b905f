"""The migration data set on disk: a CSV file, compressed where its name ends with .gz, and a collection on its way.

A collection is long, so what is done is kept: `.<name>.part` beside the file to be holds the plan in its first line and
then the rows of finished runs, appended and synced run by run. A kill loses what was under way and nothing else; the
next call reads the part file, cuts off the run that was torn, and goes on: what was kept is never written again. A part
file of another plan is refused, and so is one that another process has open (flock, freed by the kernel with its
holder). When all runs are there, the rows are put in order and take the file's place at once, so that equal plans give
equal files, byte by byte, whoever made the rows and however often it was interrupted.

    >>> with CollectionFile.open(Path("migrations.csv.gz"), plan) as collection:
    ...     for key in collection.missing():
    ...         collection.append(collect_run(plan, key, laboratory))
    ...     collection.finish()

Reading is bounded in bytes, decompressed, in line length and in rows.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import io
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from natwork_ray.domain.values import decode, encode
from natwork_ray.errors import ConflictError, InputError, PreconditionError
from natwork_ray.limi.collection import CollectionPlan, RunKey, in_order
from natwork_ray.limi.dataset import MAX_LINE, MigrationRow, dataset_lines, parse_dataset, row_line

MAX_BYTES = 512 * 2**20  # decompressed
_ANEW = "begin anew with `natwork migrations collect --restart`: the part file is thrown away"


def read_dataset(path: Path) -> tuple[MigrationRow, ...]:
    """Every row of a file.

    Raises:
        PreconditionError: it cannot be read.
        InputError: it is no data set; the message names the file, and line and column where one is at fault.
    """
    try:
        with path.open("rb") as raw:
            return _parsed(raw, compressed=path.suffix == ".gz")
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise InputError(f"{path} is no gzip file", hint="name it .csv when it is not compressed") from error
        raise PreconditionError(
            f"cannot read {path}: {error.strerror}", hint="`natwork migrations collect` makes a data set"
        ) from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged or cut off: {error}", hint="copy it again") from error
    except InputError as error:
        raise InputError(f"{path}: {error.what}", hint=error.hint) from error


def write_dataset(stream: BinaryIO, rows: Iterable[MigrationRow], *, compressed: bool) -> None:
    """Rows as CSV. Equal rows give equal bytes: gzip's header carries neither time nor name."""
    if compressed:
        with gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed:
            packed.writelines(line.encode() for line in dataset_lines(rows))
    else:
        stream.writelines(line.encode() for line in dataset_lines(rows))


def part_of(out: Path) -> Path:
    """Where a collection on its way to `out` is kept."""
    return out.with_name(f".{out.name}.part")


class CollectionFile:
    """A collection on its way into a file. One process at a time."""

    def __init__(self, out: Path, plan: CollectionPlan, part: BinaryIO, rows: Sequence[MigrationRow]) -> None:
        """Use `open`."""
        self._out, self._plan, self._part = out, plan, part
        self._rows = list(rows)
        self._done = {(row.load_class, row.repetition) for row in rows}

    @classmethod
    def open(cls, out: Path, plan: CollectionPlan, *, restart: bool = False) -> CollectionFile:
        """Begin a collection, or go on with one that was cut off. With `restart`, forget what was kept of one.

        Raises:
            ConflictError: the part file belongs to another plan, or another process collects into it.
            InputError: the part file is damaged otherwise than by being cut off, or larger than `MAX_BYTES`.
            OSError: the folder cannot be written to.
        """
        path = part_of(out)
        part = _locked(path)
        try:
            if restart:
                part.truncate(0)
            rows, whole = _kept(part, path, plan)
            # Only what is torn goes; a kill here leaves the file as it was or as it will be.
            part.truncate(whole)
            part.seek(whole)
            if not whole:
                part.write(encode(plan) + b"\n")
                part.flush()
                _sync_folder(path.parent)
            os.fsync(part.fileno())
        except BaseException:
            part.close()
            raise
        return cls(out, plan, part, rows)

    @property
    def done(self) -> int:
        """Migrations that are kept."""
        return len(self._rows)

    def missing(self) -> tuple[RunKey, ...]:
        """Runs still to be made."""
        return tuple(k for k in self._plan.keys() if (k.load_class, k.repetition) not in self._done)  # noqa: SIM118

    def append(self, rows: Sequence[MigrationRow]) -> None:
        """Keep the rows of one run or of several whole ones; durable when it returns."""
        fresh = [row for row in rows if (row.load_class, row.repetition) not in self._done]
        self._write(fresh)
        self._rows += fresh
        self._done.update((row.load_class, row.repetition) for row in fresh)

    def finish(self) -> Path:
        """Put the rows in order into the file, and forget the part file.

        Raises:
            ConflictError: runs are missing.
        """
        missing = len(self.missing())
        if missing:
            raise ConflictError(f"{missing} runs are missing", hint="call again: it goes on where it was")
        fresh = self._out.with_name(f".{self._out.name}.new")
        try:
            with fresh.open("wb") as stream:
                write_dataset(stream, in_order(self._plan, self._rows), compressed=self._out.suffix == ".gz")
                stream.flush()
                os.fsync(stream.fileno())
            fresh.replace(self._out)
            _sync_folder(self._out.parent)
        finally:
            fresh.unlink(missing_ok=True)
        # Before the lock is freed: whoever takes it next must not find rows that are in the file already.
        part_of(self._out).unlink()
        self._part.close()
        return self._out

    def _write(self, rows: Iterable[MigrationRow]) -> None:
        self._part.write("".join(row_line(row) for row in rows).encode())
        self._part.flush()
        os.fsync(self._part.fileno())

    def __enter__(self) -> CollectionFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._part.close()


def _locked(path: Path) -> BinaryIO:
    """The part file, there and ours until it is closed."""
    while True:
        try:
            part = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644), "r+b")
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise ConflictError(f"{path} is a symbolic link", hint="remove it, or give another --out") from error
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(part, path):
                return part
        except BlockingIOError as error:
            part.close()
            raise ConflictError(
                f"{path} is in use: another process collects into the same file",
                hint="let it finish, or give another --out",
            ) from error
        except BaseException:
            part.close()
            raise
        part.close()  # its holder finished, and deleted it, between our two calls


def _is_at(part: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(part.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _kept(part: BinaryIO, path: Path, plan: CollectionPlan) -> tuple[list[MigrationRow], int]:
    """Rows of whole runs, and the length of the file up to their end: 0 when not even the plan is whole."""
    kept = part.read(MAX_BYTES + 1)
    if len(kept) > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES // 2**20} MiB: no collection has", hint=_ANEW)
    first, ended, body = kept.partition(b"\n")
    if not ended:
        return [], 0
    if first != encode(plan):
        raise ConflictError(
            f"{path} is a collection with other parameters: {_described(first)}",
            hint=f"finish it with the parameters that it was begun with, or {_ANEW}",
        )
    lines = body.split(b"\n")[:-1]  # what follows the last line break was cut off
    texts = (line.decode("ascii", errors="replace") for line in lines)
    try:
        # The plan's line stands where a data set has its header, so that lines are numbered as in the file.
        rows = list(parse_dataset([next(dataset_lines(())), *texts]))
    except InputError as error:
        raise InputError(f"{path} is damaged: {error.what}", hint=_ANEW) from error
    sizes = Counter(row.run for row in rows)
    # Runs are appended whole, but a power cut may leave a part of the last one.
    torn = sizes[rows[-1].run] if rows and sizes[rows[-1].run] < len(plan.methods) else 0
    rows = rows[: len(rows) - torn]
    for run in dict.fromkeys(row.run for row in rows):
        if sizes[run] != len(plan.methods):
            raise InputError(f"{path} is damaged: run {run} has {sizes[run]} of {len(plan.methods)} rows", hint=_ANEW)
    return rows, len(first) + 1 + sum(len(line) + 1 for line in lines[: len(rows)])


def _sync_folder(folder: Path) -> None:
    """Make it durable that a file is there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed(raw: BinaryIO, *, compressed: bool) -> tuple[MigrationRow, ...]:
    stream = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if compressed else raw
    return tuple(parse_dataset(_lines(stream)))


def _lines(stream: BinaryIO | io.BufferedReader) -> Iterator[str]:
    read = 0
    while line := stream.readline(MAX_LINE + 1):
        read += len(line)
        if read > MAX_BYTES:
            raise InputError(f"more than {MAX_BYTES // 2**20} MiB of text", hint="split the file")
        # Other bytes become a character that no cell may hold, so the parser names line and column.
        yield line.decode("ascii", errors="replace")


def _described(head: bytes) -> str:
    try:
        plan: CollectionPlan = decode(CollectionPlan, head)
    except InputError:
        return "its first line is no plan"
    return (
        f"{plan.backend}, seed {plan.seed}, {plan.repetitions} repetitions of {len(plan.classes)} classes "
        f"under {len(plan.methods)} methods"
    )
