"""CRIU dumps that the authors of CubeMig published (GitHub, wsoussi/CubeMig, `combined_data`, Apache-2.0).

Cold migrations only, and of each the checkpoint: its size and how long CRIU kept the processes frozen. Total times are
published as summaries, not per migration, so they are not read here.

Rules kept: sizes are MiB in the files and bytes here; frozen times are milliseconds, with or without the unit in the
cell. "Freezing time" is microseconds in some files and milliseconds in others, with nothing to tell them apart: it is
checked for being a number and not used. "Total dump time" counts the dump of memory twice: likewise.

    >>> dumps = read_dumps(Path("cubemig"))
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from natwork_ray.errors import InputError, PreconditionError
from natwork_ray.limi.dump_times import RecordedDump

MIB = float(2**20)
MAX_FILES = 100
MAX_ROWS = 100_000
MAX_FILE_BYTES = 64 * 2**20
_SUFFIX = "-combined-data.csv"
_COLUMNS = ("Image", "Checkpointed", "Checkpoint size", "Freezing time", "Frozen time", "Memdump time", "Memwrite time")
_SIZE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?) MiB", re.ASCII)
_MILLISECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(?: ms)?", re.ASCII)


def read_dumps(folder: Path) -> tuple[RecordedDump, ...]:
    """Every dump of every file in the folder, files by name.

    Raises:
        PreconditionError: the folder holds no such file.
        InputError: a file that is not what was published, with file, line and column.
    """
    files = sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else []
    if not files:
        raise PreconditionError(
            f"{folder} holds no file *{_SUFFIX}", hint="docs/data.md says where CubeMig's dumps are published"
        )
    if len(files) > MAX_FILES:
        raise InputError(f"{folder} holds {len(files)} files", hint=f"{MAX_FILES} at most")
    return tuple(dump for file in files for dump in _read(file))


def _read(file: Path) -> list[RecordedDump]:
    if file.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{file} has more than {MAX_FILE_BYTES // 2**20} MiB", hint="it is not the published file")
    dumps: list[RecordedDump] = []
    with file.open(encoding="utf-8", errors="replace", newline="") as stream:
        rows = csv.reader(stream)
        header = next(rows, [])
        if tuple(header[: len(_COLUMNS)]) != _COLUMNS:
            raise InputError(f"{file}, line 1: columns {header[:8]}"[:300], hint=f"expected {', '.join(_COLUMNS)}")
        for number, row in enumerate(rows, start=2):
            if number > MAX_ROWS or len(row) != len(header):
                raise InputError(f"{file}, line {number}: {len(row)} cells", hint="it is not the published file")
            size = _number(_SIZE, row[2], file, number, "Checkpoint size")
            frozen = _number(_MILLISECONDS, row[4], file, number, "Frozen time")
            dumps.append(
                RecordedDump(application=file.name.removesuffix(_SUFFIX), size_bytes=size * MIB, frozen_s=frozen / 1e3)
            )
    return dumps


def _number(pattern: re.Pattern[str], cell: str, file: Path, line: int, column: str) -> float:
    found = pattern.fullmatch(cell)
    if found is None or float(found[1]) <= 0:
        raise InputError(f"{file}, line {line}, column {column}: {cell[:40]!r}", hint="it is not the published file")
    return float(found[1])
