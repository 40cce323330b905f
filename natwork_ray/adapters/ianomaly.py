"""Recordings in the format of the iAnomaly data set (the data that D3.3 section 6.2 evaluates on).

A folder holds `normal_data/<service>_normal<n>.csv` and `anomaly_data/<service>_other_anoms<n>.csv` and
`<service>_usersurge<n>.csv`; `<n>` is the run number, left out for run 1. Twelve metrics per row, a row every 10 s;
anomaly files also hold `Normal/Attack` (0 or 1). Other services, more or fewer runs and gaps in the numbering are fine.

Rules kept:

- Units are turned into SI once, here: bytes per ns and requests per ns become per second, ns become seconds.
- The data write 0 for a latency that was not measured, because nobody asked in those 10 s. That is NaN here.
- The anomaly type is no column. It is derived from how the set was recorded: an `other_anoms` file holds three blocks,
  CPU, memory and network delay in this order; a block of at most 8 rows in a `usersurge` file is a spike, a longer one
  a step. Where a file does not fit this, its anomalous rows are of unlabelled type (-1).
- Parsing is strict and bounded: an odd cell is an `InputError` with file, row and column, never a guess.
- For judging (`recorded_files`) more is allowed than for training: cells that were not measured are NaN, labels may be
  absent, and a file may have two million rows. Columns may not be absent, nor units wrong, not even in one row: a
  metric beyond what any container does, or not 0 and yet less than any container can do, is an error.

The set carries no licence, so it is read from where the user has it and is not part of this package.

    >>> recordings = read_recordings(Path("ianomaly"))
    >>> runs = labelled_runs(recordings)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from natwork_ray.adapters.number_table import read_numbers
from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError, NatworkError, PreconditionError

STEP_S = 10.0
COMMISSIONING_SAMPLES = 360
MAX_ROWS = 100_000
MAX_FILE_BYTES = 64 * 2**20
MAX_FILES = 2_000
# What may be judged is larger than what may be trained on: judging needs memory for numbers and verdicts only.
MAX_JUDGED_ROWS = 2_000_000
MAX_JUDGED_BYTES = 512 * 2**20
# Longest block of a usersurge recording that is a spike rather than a step (the longest spike seen has 6 rows).
SPIKE_ROWS = 8

LABEL = "Normal/Attack"
# Ignored: the authors' supplement adds it.
_IGNORED = frozenset({"time_"})
_NAME = re.compile(
    r"(?P<service>[A-Za-z0-9][A-Za-z0-9_.-]{0,62}?)_(?P<kind>normal|other_anoms|usersurge)(?P<run>\d{0,9})\.csv"
)


@dataclass(frozen=True)
class _Column:
    """A column of the files: what multiplies it into SI, and the range in SI that a service can be in.

    `low` is for all values; `least` is for those that are not 0, which is what an idle or stopped service shows.
    """

    name: str
    to_si: float
    low: float
    high: float
    least: float = 0.0


# The ranges catch rows in the wrong unit, off by 10^9 either way: no container reads a terabyte a second, none that
# does anything sends less than a packet (40 bytes) an hour, holds less than a page, computes less than 1 us in 10 s, or
# is asked less than once in three hours. The published set stays away from all of them by a factor of ten or more.
_COLUMNS: dict[Metric, _Column] = {
    Metric.DISK_READ: _Column("total_disk_read_throughput", 1e9, 0.0, 1e12, 0.01),
    Metric.DISK_WRITE: _Column("total_disk_write_throughput", 1e9, 0.0, 1e12, 0.01),
    Metric.MEMORY_RSS: _Column("rss", 1.0, 0.0, 1e14, 4096.0),
    Metric.MEMORY_VSIZE: _Column("vsize", 1.0, 0.0, 1e15, 4096.0),
    Metric.CPU: _Column("cpu_usage", 1.0, 0.0, 64.0, 1e-7),
    Metric.NETWORK_RX: _Column("rx_bytes_per_ns", 1e9, 0.0, 1e12, 0.01),
    Metric.NETWORK_TX: _Column("tx_bytes_per_ns", 1e9, 0.0, 1e12, 0.01),
    Metric.LATENCY_P50: _Column("latency_p50", 1e-9, 1e-6, 1e5),
    Metric.LATENCY_P90: _Column("latency_p90", 1e-9, 1e-6, 1e5),
    Metric.LATENCY_P99: _Column("latency_p99", 1e-9, 1e-6, 1e5),
    Metric.THROUGHPUT: _Column("request_throughput", 1e9, 0.0, 1e8, 1e-4),
    Metric.ERRORS: _Column("errors_per_ns", 1e9, 0.0, 1e8, 1e-4),
}
_NAMES = [_COLUMNS[metric].name for metric in METRICS]
_LATENCIES = (Metric.LATENCY_P50, Metric.LATENCY_P90, Metric.LATENCY_P99)


class RecordingKind(StrEnum):
    """What was recorded, in the order in which a replay plays it."""

    NORMAL = "normal"
    OTHER_ANOMALIES = "other_anoms"
    USER_SURGE = "usersurge"


@dataclass(frozen=True, eq=False)
class Recording:
    """One file."""

    kind: RecordingKind
    labelled: LabelledRun


@dataclass(frozen=True, eq=False)
class RecordedFile:
    """One file to be judged.

    Attributes:
        name: path below the folder, e.g. `anomaly_data/fd_usersurge2.csv`.
        labelled: its samples; `kinds` means nothing where `has_labels` is false.
        has_labels: whether the file says which rows are anomalous. Normal recordings are normal by their name.
    """

    name: str
    kind: RecordingKind
    labelled: LabelledRun
    has_labels: bool


@dataclass(frozen=True)
class UnreadableFile:
    """A file that breaks the format, and how."""

    name: str
    error: NatworkError


def read_recordings(folder: Path) -> tuple[Recording, ...]:
    """All recordings of a folder, sorted by run number, service and kind.

    `folder` is `sample_dataset` itself or the folder that holds it.

    Raises:
        PreconditionError: the folder or its recordings are not there.
        InputError: a file that breaks the format; the message names file, row and column.
    """
    return tuple(
        Recording(found.kind, read_recording(found.path, service=found.service, run=str(found.run), kind=found.kind))
        for found in _found_in(folder)
    )


def recorded_files(folder: Path) -> Iterator[RecordedFile | UnreadableFile]:
    """The files of a folder for judging, sorted by run number, service and kind, one at a time.

    Raises:
        PreconditionError: the folder or its recordings are not there.
        InputError: a file's name breaks the format. What is inside a file never raises: it is an `UnreadableFile`.
    """
    root = _root_of(folder)
    for found in _found_in(folder):
        name = found.path.relative_to(root).as_posix()
        try:
            labelled, has_labels = _read_leniently(found)
        except InputError as error:
            yield UnreadableFile(name, error)
        else:
            yield RecordedFile(name, found.kind, labelled, has_labels)


@dataclass(frozen=True)
class _Found:
    run: int
    service: str
    kind: RecordingKind
    path: Path


def _root_of(folder: Path) -> Path:
    return folder / "sample_dataset" if (folder / "sample_dataset").is_dir() else folder


def _found_in(folder: Path) -> list[_Found]:
    root = _root_of(folder)
    found: list[_Found] = []
    paths = sorted(p for part in ("normal_data", "anomaly_data") for p in (root / part).glob("*.csv"))
    if len(paths) > MAX_FILES:
        raise InputError(f"{root} holds {len(paths)} files", hint=f"at most {MAX_FILES} are read at once")
    for path in paths:
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise InputError(
                f"{path}: not a name of the iAnomaly format",
                hint="names are <service>_normal<n>.csv, <service>_other_anoms<n>.csv, <service>_usersurge<n>.csv",
            )
        found.append(_Found(int(match["run"] or 1), match["service"], RecordingKind(match["kind"]), path))
    if not found:
        raise PreconditionError(
            f"no recordings under {root}",
            hint="name the folder that holds normal_data/ and anomaly_data/; docs/data.md says where it is published",
        )
    order = list(RecordingKind)
    found.sort(key=lambda one: (one.run, one.service, order.index(one.kind)))
    twice = next((b for a, b in pairwise(found) if (a.run, a.service, a.kind) == (b.run, b.service, b.kind)), None)
    if twice is not None:
        raise InputError(f"{twice.path}: run {twice.run} is there twice", hint="keep one of the two files")
    return found


def labelled_runs(recordings: tuple[Recording, ...]) -> tuple[LabelledRun, ...]:
    """The recordings as labelled runs; those of one run number share the run's name, and so its fold."""
    return tuple(recording.labelled for recording in recordings)


def read_recording(path: Path, *, service: str, run: str, kind: RecordingKind) -> LabelledRun:
    """Parse one file.

    Raises:
        InputError: the file breaks the format; the message names file, row (1 is the first below the header), column.
    """
    with_label = kind is not RecordingKind.NORMAL
    table = read_numbers(
        path,
        [*_NAMES, LABEL] if with_label else _NAMES,
        ignored=_IGNORED,
        max_rows=MAX_ROWS,
        max_bytes=MAX_FILE_BYTES,
    ).values
    return _as_run(path, table, service=service, run=run, kind=kind)


def _read_leniently(found: _Found) -> tuple[LabelledRun, bool]:
    table = read_numbers(
        found.path,
        _NAMES,
        optional=(LABEL,),
        ignored=_IGNORED,
        missing_allowed=True,
        max_rows=MAX_JUDGED_ROWS,
        max_bytes=MAX_JUDGED_BYTES,
    ).values
    has_labels = table.shape[1] > len(_NAMES)
    run = _as_run(found.path, table, service=found.service, run=str(found.run), kind=found.kind)
    return run, has_labels or found.kind is RecordingKind.NORMAL


def _as_run(path: Path, table: NDArray[np.float64], *, service: str, run: str, kind: RecordingKind) -> LabelledRun:
    values = _to_si(path, table)
    labels = table[:, len(_NAMES)] if table.shape[1] > len(_NAMES) else np.zeros(len(table))
    odd = np.flatnonzero((labels != 0.0) & (labels != 1.0))
    if len(odd):
        raise InputError(
            f"{path}, row {int(odd[0]) + 1}, column {LABEL}: '{labels[odd[0]]:g}'", hint="0 is normal, 1 is anomalous"
        )
    anomalous = labels != 0.0
    # A normal hour that is labelled otherwise is normal only up to there.
    hour = min(len(table), COMMISSIONING_SAMPLES) if kind is RecordingKind.NORMAL else 0
    return LabelledRun(
        service=service,
        run=run,
        backend=Backend.REPLAYED,
        step_s=STEP_S,
        values=values,
        kinds=_kinds(anomalous, kind),
        commissioning=int(np.flatnonzero(anomalous)[0]) if anomalous[:hour].any() else hour,
    )


def blocks(anomalous: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open index ranges of consecutive true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], anomalous, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _kinds(anomalous: NDArray[np.bool_], kind: RecordingKind) -> NDArray[np.int8]:
    kinds = np.where(anomalous, -1, 0).astype(np.int8)
    if kind is RecordingKind.NORMAL:
        return kinds
    found = blocks(anomalous)
    if kind is RecordingKind.OTHER_ANOMALIES:
        names = [AnomalyKind.HIGH_CPU, AnomalyKind.HIGH_MEMORY, AnomalyKind.NETWORK_LATENCY]
        if len(found) != len(names):
            return kinds
    else:
        names = [
            AnomalyKind.TRAFFIC_SPIKE if end - start <= SPIKE_ROWS else AnomalyKind.STEP_LOAD for start, end in found
        ]
    for (start, end), name in zip(found, names, strict=True):
        kinds[start:end] = STAGE_2_CLASSES.index(name)
    return kinds


def _to_si(path: Path, table: NDArray[np.float64]) -> NDArray[np.float32]:
    values = np.empty((len(table), len(METRICS)), dtype=np.float64)
    for k, metric in enumerate(METRICS):
        column = _COLUMNS[metric]
        si = table[:, k] * column.to_si
        if metric in _LATENCIES:
            si = np.where(si == 0.0, np.nan, si)
        bad = (si < column.low) | (si > column.high) | ((si > 0.0) & (si < column.least))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            zero = "0, or " if column.low == 0.0 else ""
            expected = f"{zero}{max(column.low, column.least):g} to {column.high:g}"
            raise InputError(
                f"{path}, row {row + 1}, column {column.name}: {float(table[row, k])!r} cannot be right",
                hint=f"in SI units that is {si[row]:.3g}; expected {expected}: check the unit",
            )
        values[:, k] = si
    return values.astype(np.float32)
