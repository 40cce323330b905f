"""The migration data set on disk: a CSV file, compressed where its name ends with .gz, and a collection on its way.

A collection is long, so what is done is kept: `.<name>.part` beside the file to be holds the plan in its first line and
then the rows of finished runs, appended and synced run by run. A kill loses what was under way and nothing else; the
next call reads the part file, cuts a torn last line, and goes on. A part file of another plan is refused. When all runs
are there, the rows are put in order and take the file's place at once, so that equal plans give equal files, byte by
byte, whoever made the rows and however often it was interrupted.

    >>> with CollectionFile.open(Path("migrations.csv.gz"), plan) as collection:
    ...     for key in collection.missing():
    ...         collection.append(collect_run(plan, key, laboratory))
    ...     collection.finish()

Reading is bounded in bytes, decompressed, in line length and in rows.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from natwork_ray.domain.values import decode, encode
from natwork_ray.errors import ConflictError, InputError, PreconditionError
from natwork_ray.limi.collection import CollectionPlan, RunKey, in_order
from natwork_ray.limi.dataset import MAX_LINE, MigrationRow, dataset_lines, parse_dataset, row_line

MAX_BYTES = 512 * 2**20  # decompressed


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
    def open(cls, out: Path, plan: CollectionPlan) -> CollectionFile:
        """Begin a collection, or go on with one that was cut off.

        Raises:
            ConflictError: the part file belongs to another plan.
            InputError: the part file is damaged otherwise than by being cut off.
            OSError: the folder cannot be written to.
        """
        path = part_of(out)
        head = encode(plan) + b"\n"
        kept = path.read_bytes() if path.exists() else b""
        whole = kept[: kept.rfind(b"\n") + 1]
        if not whole:
            path.write_bytes(head)
            whole = head
        first, _, body = whole.partition(b"\n")
        if first + b"\n" != head:
            raise ConflictError(
                f"{path} is a collection with other parameters: {_described(first)}",
                hint="finish it with the parameters that it was begun with, or delete it",
            )
        lines = body.decode("ascii", errors="replace").splitlines(keepends=True)
        header = next(dataset_lines(()))
        runs: dict[str, list[MigrationRow]] = {}
        for row in parse_dataset([header, *lines]):
            runs.setdefault(row.run, []).append(row)
        # A run is appended in one write, but a power cut may still leave a part of it.
        rows = [row for run in runs.values() if len(run) == len(plan.methods) for row in run]
        part = path.open("r+b")
        part.truncate(len(head))
        part.seek(0, os.SEEK_END)
        collection = cls(out, plan, part, rows)
        collection._write(rows)
        return collection

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
        finally:
            fresh.unlink(missing_ok=True)
        self._part.close()
        part_of(self._out).unlink()
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
