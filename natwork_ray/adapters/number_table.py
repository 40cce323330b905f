"""Columns of decimal numbers from a CSV file, strictly and within bounds, and at numpy's speed where the file is plain.

The file is read in blocks of whole lines. A block that holds nothing but digits, signs, points, exponents and commas is
parsed by numpy; any other block, and any block that numpy refuses, goes through Python's csv reader cell by cell, which
either makes sense of it or names file, row and column. Both ways accept the same numbers.

Only regular files are read: a pipe or a device could keep the reader waiting for ever. A byte order mark is skipped.

Missing cells (empty, `nan`, `na`, `null`, `none`) are an error unless the caller allows them; then they are NaN.
Infinite and negative numbers are errors always.

    >>> table = read_numbers(Path("fd_normal.csv"), ("rss", "cpu_usage"), max_rows=100_000, max_bytes=2**26)
    >>> table.values.shape
    (360, 2)
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from natwork_ray.errors import InputError, NatworkError

_BLOCK_BYTES = 4 * 2**20
_LINE_BYTES = 2**20
_MAX_CELL = 64
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MISSING = frozenset({"", "nan", "na", "null", "none"})
_PLAIN = b"0123456789+-.eE, \r\n"
_LONG_CELL = re.compile(rb"[^,\r\n]{%d}" % (_MAX_CELL + 1))
_EMPTY_CELL = re.compile(rb"(?:(?<=,)|(?<=\n)|(?<=\A))(?=[,\r\n])")


@dataclass(frozen=True, eq=False)
class NumberTable:
    """`values` is float64 (rows, columns) in the order of `columns`, NaN where a cell was missing."""

    columns: tuple[str, ...]
    values: NDArray[np.float64]


def read_numbers(
    path: Path,
    wanted: Sequence[str],
    *,
    optional: Sequence[str] = (),
    ignored: frozenset[str] = frozenset(),
    missing_allowed: bool = False,
    max_rows: int,
    max_bytes: int,
) -> NumberTable:
    """Read the wanted columns, and the optional ones that are there; their order in the file is free.

    Raises:
        InputError: no regular file, or it breaks the format or the bounds; the message names file, row (1 is the
            first below the header) and column.
    """
    parts: list[NDArray[np.float64]] = []
    rows = 0
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a regular file", hint="copy what it holds into a file")
        if status.st_size > max_bytes:
            raise InputError(f"{path}: {status.st_size} bytes", hint=f"a recording has at most {max_bytes} bytes")
        with path.open("rb") as file:
            header = next(_csv_rows(_line(file, path).removeprefix(codecs.BOM_UTF8)), [])
            reader = _Reader(path, header, wanted, optional, ignored, missing_allowed, max_rows)
            for block in _blocks(file, path):
                part = reader.read(block, rows)
                rows += len(part)
                if rows > max_rows:
                    raise _too_many(path, max_rows)
                parts.append(part)
    except NatworkError:
        raise
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: {error}", hint="it must be a readable UTF-8 CSV file") from error
    if not rows:
        raise InputError(f"{path}: no rows", hint="the recording is empty: leave the file out")
    return NumberTable(reader.columns, np.concatenate(parts))


class _Reader:
    """Blocks of lines of one file, whose header is known."""

    def __init__(
        self,
        path: Path,
        header: list[str],
        wanted: Sequence[str],
        optional: Sequence[str],
        ignored: frozenset[str],
        missing_allowed: bool,
        max_rows: int,
    ) -> None:
        self._path = path
        self._missing_allowed = missing_allowed
        self._max_rows = max_rows
        self.columns = (*wanted, *(name for name in optional if name in header))
        missing = [name for name in wanted if name not in header]
        if missing:
            raise InputError(
                f"{path}: columns missing: {', '.join(missing)}", hint=f"the header must name {', '.join(wanted)}"
            )
        odd = [name for name in header if name not in self.columns and name not in ignored]
        if odd or len(set(header)) != len(header):
            raise InputError(
                f"{path}: unknown or repeated columns: {', '.join(odd or header)[:200]}",
                hint=f"the header must name each of these once: {', '.join(wanted)}",
            )
        self._width = len(header)
        self._places = [header.index(name) for name in self.columns]

    def read(self, block: bytes, before: int) -> NDArray[np.float64]:
        """The numbers of a block that follows `before` rows."""
        fast = self._plain(block)
        return self._careful(block, before) if fast is None else fast

    def _plain(self, block: bytes) -> NDArray[np.float64] | None:
        if block.translate(None, _PLAIN) or _LONG_CELL.search(block):
            return None
        text = block
        if b"\r" in text:
            if text.count(b"\r") != text.count(b"\r\n"):
                return None
            text = text.replace(b"\r\n", b"\n")
        if self._missing_allowed:
            text = _EMPTY_CELL.sub(b"nan", text if text.endswith(b"\n") else text + b"\n")
        lines = text.count(b"\n") + (not text.endswith(b"\n"))
        try:
            table = np.loadtxt(io.BytesIO(text), delimiter=",", comments=None, ndmin=2)
        except ValueError:
            return None
        # numpy skips empty lines, which are no rows of numbers, and takes 1e999 for infinity.
        if table.shape != (lines, self._width):
            return None
        picked: NDArray[np.float64] = table[:, self._places]
        if np.isinf(picked).any() or (picked < 0).any():
            return None
        return picked

    def _careful(self, block: bytes, before: int) -> NDArray[np.float64]:
        rows = []
        for number, cells in enumerate(_csv_rows(block), start=before + 1):
            if number > self._max_rows:
                raise _too_many(self._path, self._max_rows)
            rows.append(self._numbers(number, cells))
        return np.array(rows, dtype=np.float64).reshape(-1, len(self._places))

    def _numbers(self, number: int, cells: list[str]) -> list[float]:
        if len(cells) != self._width:
            raise InputError(
                f"{self._path}, row {number}: {len(cells)} cells instead of {self._width}",
                hint="every row is as wide as the header",
            )
        row = []
        for name, place in zip(self.columns, self._places, strict=True):
            text = cells[place].strip(" ")
            if self._missing_allowed and text.casefold() in _MISSING:
                row.append(math.nan)
                continue
            if len(text) > _MAX_CELL or _NUMBER.fullmatch(text) is None:
                raise InputError(
                    f"{self._path}, row {number}, column {name}: {cells[place][:40]!r} is not a number",
                    hint="every cell is a decimal number"
                    + ("; leave cells empty that were not measured" if self._missing_allowed else ""),
                )
            cell = float(text)
            if cell < 0 or not math.isfinite(cell):
                raise InputError(
                    f"{self._path}, row {number}, column {name}: {text!r} is out of range",
                    hint="metrics are finite and not negative",
                )
            row.append(cell)
        return row


def _csv_rows(text: bytes) -> Iterator[list[str]]:
    return iter(csv.reader(io.StringIO(text.decode("utf-8"), newline=""), strict=True))


def _line(file: BinaryIO, path: Path) -> bytes:
    line = file.readline(_LINE_BYTES)
    if len(line) == _LINE_BYTES and not line.endswith(b"\n"):
        raise InputError(f"{path}: a line of more than {_LINE_BYTES} bytes", hint="it must be a CSV file of numbers")
    return line


def _blocks(file: BinaryIO, path: Path) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block if block.endswith(b"\n") else block + _line(file, path)


def _too_many(path: Path, max_rows: int) -> InputError:
    return InputError(f"{path}: more than {max_rows} rows", hint="split the recording, or keep every 10 s only")
