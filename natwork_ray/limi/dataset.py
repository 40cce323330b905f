"""The migration data set of D3.3 section 2.1: one row per migration, with every feature that the deliverable lists.

A *run* is one container as loaded at one time (a class and a repetition), moved by each of the methods; whatever
splits the data splits it by run, since the rows of a run share their container. A row holds

- what the run is: `run`, `load_class`, `repetition`, `method`, `backend`, `seed`;
- what was known before: the fields of `ContainerLoad`, names and units as there;
- what came of it: total time; pre-dump time, size and transfer; dump time, size and transfer; volume size and
  transfer; the parallel transfer with the move of the address; restore; approximate and precise downtime.

docs/migration-data.md has every column with its unit.

Rules kept: sizes are bytes and times are seconds, by name; a phase that a method does not have is 0; a precise downtime
that nobody measured is empty, not 0; only migrations that ended on the target become rows. Text is read strictly: the
exact header, plain decimals, no quotes, no migration twice. A wrong cell is an `InputError` with line and column.

    >>> text = "".join(dataset_lines(rows))
    >>> tuple(parse_dataset(text.splitlines(keepends=True))) == rows
    True
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from natwork_ray.domain.actions import MigrationMethod, Phase
from natwork_ray.domain.migrations import ContainerLoad, LoadClass, MigrationRecord, MigrationState
from natwork_ray.domain.values import Backend, value
from natwork_ray.errors import InputError
from natwork_ray.limi import load_classes
from natwork_ray.limi.steps import Verb

MAX_ROWS = 1_000_000
MAX_LINE = 4096
_DECIMALS = 6
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,6})?", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,15}", re.ASCII)
_HINT = "it must be a file that `natwork migrations collect` wrote"


@value
class MigrationRow:
    """One migration of the data set.

    Attributes:
        load_class: name of the load class; `repetition` counts from 0 within it; `seed` is the collection's.
        load: what was known before.
        total_s: from the first step to the last one, lazy pages included.
        pre_copy_rounds: pre-dumps made; their times and sizes are summed.
        pre_dump_bytes, dump_bytes: size of the checkpoint; `..._sent_bytes`: what crossed the link (differences only).
        volume_size_bytes: what the volume transfer had to carry; `volume_sent_bytes` what crossed the link.
        parallel_transfer_s: time in which dump, volume or address were under way, each moment counted once.
        lazy_pages_s, lazy_pages_bytes: fetched after the restore (post-copy and hybrid).
        approximate_downtime_s: dump + dump transfer + restore, as D3.3 sums it.
        downtime_s: from the freeze to the restored container, as the phases lay in time; the models' target.
        client_downtime_s: the longest gap that a client saw, queueing included; None where none was watching.
    """

    load_class: str
    repetition: int
    method: MigrationMethod
    backend: Backend
    seed: int
    load: ContainerLoad
    total_s: float
    pre_copy_rounds: int
    pre_dump_s: float
    pre_dump_bytes: float
    pre_dump_transfer_s: float
    pre_dump_sent_bytes: float
    dump_s: float
    dump_bytes: float
    dump_transfer_s: float
    dump_sent_bytes: float
    volume_size_bytes: float
    volume_sent_bytes: float
    volume_transfer_s: float
    parallel_transfer_s: float
    restore_s: float
    lazy_pages_s: float
    lazy_pages_bytes: float
    approximate_downtime_s: float
    downtime_s: float
    client_downtime_s: float | None

    @property
    def run(self) -> str:
        """Rows of one container under different methods share it."""
        return f"{self.backend}-{self.seed}-{self.load_class}-{self.repetition}"


_LOAD_COLUMNS = tuple(f.name for f in fields(ContainerLoad))
_IDENTITY_COLUMNS = ("run", "load_class", "repetition", "method", "backend", "seed")
_OUTCOME_COLUMNS = tuple(
    f.name for f in fields(MigrationRow) if f.name not in _IDENTITY_COLUMNS and f.name != "load"
)  # in the order of the class
COLUMNS: tuple[str, ...] = (*_IDENTITY_COLUMNS, *_LOAD_COLUMNS, *_OUTCOME_COLUMNS)
_COUNTS = frozenset({"repetition", "seed", "pre_copy_rounds"})
_MAY_BE_EMPTY = frozenset({"client_downtime_s"})


def row_of(record: MigrationRecord, *, load_class: LoadClass, repetition: int, seed: int) -> MigrationRow:
    """The row of a migration.

    Raises:
        InputError: it did not end on the target, or nobody measured the container before it.
    """
    if record.state is not MigrationState.MIGRATED:
        raise InputError(
            f"migration {record.key} ended {record.state}: {record.error or 'no reason given'}",
            hint="only migrations that ended on the target belong into the data set",
        )
    if record.load is None:
        raise InputError(
            f"migration {record.key} has no load", hint="measure the container before the migration, not after it"
        )

    def named(*verbs: Verb) -> list[Phase]:
        return [p for p in record.phases if p.name in verbs]

    def seconds(*verbs: Verb) -> float:
        return _rounded(sum(p.duration_s for p in named(*verbs)))

    def size(*verbs: Verb) -> float:
        return float(round(sum(p.size_bytes for p in named(*verbs))))

    def sent(*verbs: Verb) -> float:
        return float(round(sum(p.transferred_bytes for p in named(*verbs))))

    volume = (Verb.VOLUME_PRE_TRANSFER, Verb.VOLUME_TRANSFER)
    together = named(Verb.DUMP_TRANSFER, Verb.VOLUME_TRANSFER, Verb.ADDRESS_DETACH, Verb.ADDRESS_MOVE)
    dump_s, dump_transfer_s, restore_s = seconds(Verb.DUMP), seconds(Verb.DUMP_TRANSFER), seconds(Verb.RESTORE)
    return MigrationRow(
        load_class=load_class.name,
        repetition=repetition,
        method=record.method,
        backend=record.backend,
        seed=seed,
        load=_rounded_load(record.load),
        total_s=_rounded(record.total_s),
        pre_copy_rounds=record.pre_copy_rounds,
        pre_dump_s=seconds(Verb.PRE_DUMP),
        pre_dump_bytes=size(Verb.PRE_DUMP),
        pre_dump_transfer_s=seconds(Verb.PRE_DUMP_TRANSFER),
        pre_dump_sent_bytes=sent(Verb.PRE_DUMP_TRANSFER),
        dump_s=dump_s,
        dump_bytes=size(Verb.DUMP),
        dump_transfer_s=dump_transfer_s,
        dump_sent_bytes=sent(Verb.DUMP_TRANSFER),
        volume_size_bytes=size(*volume),
        volume_sent_bytes=sent(*volume),
        volume_transfer_s=seconds(*volume),
        parallel_transfer_s=_rounded(_union_s(together)),
        restore_s=restore_s,
        lazy_pages_s=seconds(Verb.PAGES_FETCHED),
        lazy_pages_bytes=sent(Verb.PAGES_FETCHED),
        approximate_downtime_s=_rounded(dump_s + dump_transfer_s + restore_s),
        downtime_s=_rounded(record.downtime_s),
        client_downtime_s=None if record.client_downtime_s is None else _rounded(record.client_downtime_s),
    )


def dataset_lines(rows: Iterable[MigrationRow]) -> Iterator[str]:
    """The data set as CSV: header, then a line per row."""
    yield ",".join(COLUMNS) + "\n"
    for row in rows:
        yield row_line(row)


def row_line(row: MigrationRow) -> str:
    """One row as a line of CSV."""
    cells = (row.run, row.load_class, row.repetition, row.method, row.backend, row.seed)
    load = (getattr(row.load, name) for name in _LOAD_COLUMNS)
    outcome = (getattr(row, name) for name in _OUTCOME_COLUMNS)
    return ",".join(_cell(cell) for cell in (*cells, *load, *outcome)) + "\n"


def parse_dataset(lines: Iterable[str]) -> Iterator[MigrationRow]:
    """Rows of a CSV text, checked one by one while they are read.

    Raises:
        InputError: anything but what `dataset_lines` writes; line and column are named.
    """
    seen: set[tuple[str, MigrationMethod]] = set()
    number = 0
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LINE:
            raise InputError(f"line {number} has more than {MAX_LINE} characters", hint=_HINT)
        cells = line.rstrip("\r\n").split(",")
        if number == 1:
            _check_header(cells)
            continue
        if number > MAX_ROWS + 1:
            raise InputError(f"more than {MAX_ROWS} rows", hint="split the file")
        row = _row(cells, number)
        if (row.run, row.method) in seen:
            raise InputError(f"line {number}: {row.method} of run {row.run} is there already", hint=_HINT)
        seen.add((row.run, row.method))
        yield row
    if number == 0:
        raise InputError("an empty file is no data set", hint=_HINT)


def runs_of(rows: Sequence[MigrationRow]) -> dict[str, tuple[MigrationRow, ...]]:
    """Rows by run, in the order in which runs appear; within a run in the order of `MigrationMethod`."""
    order = {method: place for place, method in enumerate(MigrationMethod)}
    groups: dict[str, list[MigrationRow]] = {}
    for row in rows:
        groups.setdefault(row.run, []).append(row)
    return {run: tuple(sorted(group, key=lambda r: order[r.method])) for run, group in groups.items()}


def _check_header(cells: Sequence[str]) -> None:
    for place, (given, expected) in enumerate(zip(cells, COLUMNS, strict=False), start=1):
        if given != expected:
            raise InputError(f"line 1, column {place} is {given[:40]!r}, not {expected!r}", hint=_HINT)
    if len(cells) != len(COLUMNS):
        raise InputError(f"line 1 has {len(cells)} columns, not {len(COLUMNS)}", hint=_HINT)


def _row(cells: Sequence[str], number: int) -> MigrationRow:
    if len(cells) != len(COLUMNS):
        raise InputError(f"line {number} has {len(cells)} columns, not {len(COLUMNS)}", hint=_HINT)
    named: dict[str, Any] = {}
    for name, cell in zip(COLUMNS, cells, strict=True):
        named[name] = _parsed(name, cell, number)
    run = named.pop("run")
    load = ContainerLoad(**{name: named.pop(name) for name in _LOAD_COLUMNS})
    if load.bandwidth_bytes_per_s <= 0:
        raise InputError(f"line {number}, column bandwidth_bytes_per_s: must be above 0", hint=_HINT)
    row = MigrationRow(load=load, **named)
    if run != row.run:
        raise InputError(f"line {number}, column run: {run[:80]!r} is not {row.run!r}", hint=_HINT)
    return row


def _parsed(name: str, cell: str, number: int) -> Any:
    def refuse(expected: str) -> InputError:
        return InputError(f"line {number}, column {name}: {cell[:40]!r} is not {expected}", hint=_HINT)

    if name == "run":
        return cell
    if name == "load_class":
        try:
            return load_classes.load_class(cell).name
        except InputError as error:
            raise refuse("one of the 34 load classes") from error
    if name in ("method", "backend"):
        kind = MigrationMethod if name == "method" else Backend
        try:
            return kind(cell)
        except ValueError as error:
            raise refuse(f"one of {', '.join(kind)}") from error
    if name in _COUNTS:
        if not _COUNT.fullmatch(cell):
            raise refuse("a whole number")
        return int(cell)
    if not cell and name in _MAY_BE_EMPTY:
        return None
    if not _NUMBER.fullmatch(cell):
        raise refuse("a plain decimal number, 0 or more")
    return float(cell)


def _cell(item: Any) -> str:
    if item is None:
        return ""
    if isinstance(item, float):
        return f"{item:.{_DECIMALS}f}".rstrip("0").rstrip(".")
    return str(item)


def _rounded(seconds: float) -> float:
    """To the microsecond, which the file keeps: a row is the same before it was written and after it was read."""
    return round(float(seconds), _DECIMALS)


def _rounded_load(load: ContainerLoad) -> ContainerLoad:
    """Bytes to the byte, the rest as `_rounded`."""
    return ContainerLoad(
        **{
            name: float(round(getattr(load, name))) if "bytes" in name else _rounded(getattr(load, name))
            for name in _LOAD_COLUMNS
        }
    )


def _union_s(phases: Sequence[Phase]) -> float:
    """Seconds covered by at least one of the phases."""
    covered_s, reached_s = 0.0, float("-inf")
    for phase in sorted(phases, key=lambda p: p.starts_s):
        ends_s = phase.starts_s + phase.duration_s
        covered_s += max(0.0, ends_s - max(phase.starts_s, reached_s))
        reached_s = max(reached_s, ends_s)
    return covered_s
