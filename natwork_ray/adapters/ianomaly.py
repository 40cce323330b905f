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

The set carries no licence, so it is read from where the user has it and is not part of this package.

    >>> recordings = read_recordings(Path("ianomaly"))
    >>> runs = labelled_runs(recordings)
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
# Longest block of a usersurge recording that is a spike rather than a step (the longest spike seen has 6 rows).
SPIKE_ROWS = 8

LABEL = "Normal/Attack"
# Ignored: the authors' supplement adds it.
_IGNORED = frozenset({"time_"})
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NAME = re.compile(
    r"(?P<service>[A-Za-z0-9][A-Za-z0-9_.-]{0,62}?)_(?P<kind>normal|other_anoms|usersurge)(?P<run>\d{0,9})\.csv"
)


@dataclass(frozen=True)
class _Column:
    """A column of the files: what multiplies it into SI, and the range in SI that a service can be in."""

    name: str
    to_si: float
    low: float
    high: float


# The ranges catch columns in the wrong unit, off by 10^9: no container reads a terabyte a second.
_COLUMNS: dict[Metric, _Column] = {
    Metric.DISK_READ: _Column("total_disk_read_throughput", 1e9, 0.0, 1e12),
    Metric.DISK_WRITE: _Column("total_disk_write_throughput", 1e9, 0.0, 1e12),
    Metric.MEMORY_RSS: _Column("rss", 1.0, 0.0, 1e14),
    Metric.MEMORY_VSIZE: _Column("vsize", 1.0, 0.0, 1e15),
    Metric.CPU: _Column("cpu_usage", 1.0, 0.0, 64.0),
    Metric.NETWORK_RX: _Column("rx_bytes_per_ns", 1e9, 0.0, 1e12),
    Metric.NETWORK_TX: _Column("tx_bytes_per_ns", 1e9, 0.0, 1e12),
    Metric.LATENCY_P50: _Column("latency_p50", 1e-9, 1e-6, 1e5),
    Metric.LATENCY_P90: _Column("latency_p90", 1e-9, 1e-6, 1e5),
    Metric.LATENCY_P99: _Column("latency_p99", 1e-9, 1e-6, 1e5),
    Metric.THROUGHPUT: _Column("request_throughput", 1e9, 0.0, 1e8),
    Metric.ERRORS: _Column("errors_per_ns", 1e9, 0.0, 1e8),
}
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


def read_recordings(folder: Path) -> tuple[Recording, ...]:
    """All recordings of a folder, sorted by run number, service and kind.

    `folder` is `sample_dataset` itself or the folder that holds it.

    Raises:
        PreconditionError: the folder or its recordings are not there.
        InputError: a file that breaks the format; the message names file, row and column.
    """
    root = folder / "sample_dataset" if (folder / "sample_dataset").is_dir() else folder
    found: list[tuple[int, str, RecordingKind, Path]] = []
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
        kind = RecordingKind(match["kind"])
        found.append((int(match["run"] or 1), match["service"], kind, path))
    if not found:
        raise PreconditionError(
            f"no recordings under {root}",
            hint="name the folder that holds normal_data/ and anomaly_data/; docs/data.md says where it is published",
        )
    order = list(RecordingKind)
    found.sort(key=lambda entry: (entry[0], entry[1], order.index(entry[2])))
    keys = [entry[:3] for entry in found]
    twice = next((e for e, key in zip(found[1:], keys, strict=False) if e[:3] == key), None)
    if twice is not None:
        raise InputError(f"{twice[3]}: run {twice[0]} is there twice", hint="keep one of the two files")
    return tuple(
        Recording(kind, read_recording(path, service=service, run=str(run), kind=kind))
        for run, service, kind, path in found
    )


def labelled_runs(recordings: tuple[Recording, ...]) -> tuple[LabelledRun, ...]:
    """The recordings as labelled runs; those of one run number share the run's name, and so its fold."""
    return tuple(recording.labelled for recording in recordings)


def read_recording(path: Path, *, service: str, run: str, kind: RecordingKind) -> LabelledRun:
    """Parse one file.

    Raises:
        InputError: the file breaks the format; the message names file, row (1 is the first below the header), column.
    """
    with_label = kind is not RecordingKind.NORMAL
    table = _read_table(path, with_label=with_label)
    values = _to_si(path, table)
    labels = table[:, len(METRICS)].astype(np.int8) if with_label else np.zeros(len(table), dtype=np.int8)
    return LabelledRun(
        service=service,
        run=run,
        backend=Backend.REPLAYED,
        step_s=STEP_S,
        values=values,
        kinds=_kinds(labels, kind),
        commissioning=min(len(table), COMMISSIONING_SAMPLES) if kind is RecordingKind.NORMAL else 0,
    )


def blocks(anomalous: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open index ranges of consecutive true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], anomalous, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _kinds(labels: NDArray[np.int8], kind: RecordingKind) -> NDArray[np.int8]:
    kinds = np.where(labels != 0, -1, 0).astype(np.int8)
    found = blocks(labels != 0)
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


def _read_table(path: Path, *, with_label: bool) -> NDArray[np.float64]:
    """(rows, 12 or 13) numbers in the files' own units, in the order of `METRICS`, the label last."""
    wanted = [_COLUMNS[m].name for m in METRICS] + ([LABEL] if with_label else [])
    rows: list[list[float]] = []
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path}: {size} bytes", hint=f"a recording has at most {MAX_FILE_BYTES} bytes")
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            places = _places(path, next(reader, []), wanted)
            for number, cells in enumerate(reader, start=1):
                if number > MAX_ROWS:
                    raise InputError(
                        f"{path}: more than {MAX_ROWS} rows", hint="split the recording, or keep every 10 s only"
                    )
                rows.append(_numbers(path, number, cells, places))
    except NatworkError:
        raise
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: {error}", hint="it must be a readable UTF-8 CSV file") from error
    if not rows:
        raise InputError(f"{path}: no rows", hint="the recording is empty: leave the file out")
    return np.array(rows, dtype=np.float64)


def _places(path: Path, header: list[str], wanted: list[str]) -> dict[str, int]:
    """Where each wanted column stands; the header's width is checked against every row through `''`."""
    missing = [name for name in wanted if name not in header]
    if missing:
        raise InputError(
            f"{path}: columns missing: {', '.join(missing)}", hint=f"the header must name {', '.join(wanted)}"
        )
    odd = [name for name in header if name not in wanted and name not in _IGNORED]
    if odd or len(set(header)) != len(header):
        raise InputError(
            f"{path}: unknown or repeated columns: {', '.join(odd or header)[:200]}",
            hint=f"the header must name each of these once: {', '.join(wanted)}",
        )
    return {name: header.index(name) for name in wanted} | {"": len(header)}


def _numbers(path: Path, number: int, cells: list[str], places: dict[str, int]) -> list[float]:
    if len(cells) != places[""]:
        raise InputError(
            f"{path}, row {number}: {len(cells)} cells instead of {places['']}",
            hint="every row is as wide as the header",
        )
    row = []
    for name, place in places.items():
        if not name:
            continue
        text = cells[place].strip(" ")
        if len(text) > 64 or _NUMBER.fullmatch(text) is None:
            raise InputError(
                f"{path}, row {number}, column {name}: {cells[place][:40]!r} is not a number",
                hint="every cell is a decimal number; drop rows that were not measured",
            )
        cell = float(text)
        if name == LABEL and cell not in (0.0, 1.0):
            raise InputError(f"{path}, row {number}, column {name}: {text!r}", hint="0 is normal, 1 is anomalous")
        if cell < 0 or not math.isfinite(cell):
            raise InputError(
                f"{path}, row {number}, column {name}: {text!r} is out of range",
                hint="metrics are finite and not negative",
            )
        row.append(cell)
    return row


def _to_si(path: Path, table: NDArray[np.float64]) -> NDArray[np.float32]:
    values = np.empty((len(table), len(METRICS)), dtype=np.float64)
    for k, metric in enumerate(METRICS):
        column = _COLUMNS[metric]
        si = table[:, k] * column.to_si
        if metric in _LATENCIES:
            si = np.where(si == 0.0, np.nan, si)
        bad = (si < column.low) | (si > column.high)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"{path}, row {row + 1}, column {column.name}: {float(table[row, k])!r} cannot be right",
                hint=f"in SI units that is {si[row]:.3g}; expected {column.low:g} to {column.high:g}: check the unit",
            )
        values[:, k] = si
    return values.astype(np.float32)
