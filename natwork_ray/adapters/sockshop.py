"""Sock Shop under fault injection, second by second: the set that comes with the RCD paper, in one CSV file.

A row every second; `<container>_cpu` and `<container>_mem` for each container, for some of them also requests
(`<container>_lod`) and latency quantiles (`_lat_50`, `_lat_90`, `_lat_99`); `case` is
`<container>-<fault>/<repetition>` and `phase` is `normal` (before the fault) or `anomalous`. The file may be gzipped.

Rules kept:

- A segment is one phase of one case: consecutive seconds. Segments are kept apart, because between two of them the
  application was restarted or left alone; a gap within one is an error.
- Units are turned into SI once, here: CPU is in per cent of a core and becomes a fraction of one core (container limits
  are not in the set); memory is the container's memory usage in bytes and stands where the resident set does; requests
  are per second, latencies seconds.
- What the set does not measure is NaN. So is a latency of 0, which stands for "nobody asked".
- The container that a fault was injected into is labelled with it (`cpu`, `mem`); all others in that phase are of
  unlabelled type (-1): the set does not say whom a fault reached.
- Parsing is strict and bounded, also of what a small gzip file unpacks to.

How the set was made matters for forecasts: its "1 s" CPU is a rate over 45 s of counters scraped about every 5 s, so
consecutive values are mostly identical and a level change arrives as a ramp (docs/forecasting.md).

    >>> segments = read_sockshop(Path("rcd_sockshop_1s.csv.gz"))
    >>> segments[0].telemetry.values.shape
    (13, 280, 12)
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric, TelemetryWindow
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError, PreconditionError

STEP_S = 1.0
MAX_FILE_BYTES = 256 * 2**20
MAX_TEXT_BYTES = 512 * 2**20
MAX_ROWS = 500_000
MAX_COLUMNS = 500
FILE_NAME = "rcd_sockshop_1s.csv.gz"

Phase = Literal["normal", "anomalous"]

# Column suffix, metric, what multiplies it into SI, and the highest value in SI that a container can have.
_SUFFIXES: dict[str, tuple[Metric, float, float]] = {
    "cpu": (Metric.CPU, 0.01, 256.0),
    "mem": (Metric.MEMORY_RSS, 1.0, 1e14),
    "lod": (Metric.THROUGHPUT, 1.0, 1e8),
    "lat_50": (Metric.LATENCY_P50, 1.0, 1e5),
    "lat_90": (Metric.LATENCY_P90, 1.0, 1e5),
    "lat_99": (Metric.LATENCY_P99, 1.0, 1e5),
}
_LATENCIES = frozenset({Metric.LATENCY_P50, Metric.LATENCY_P90, Metric.LATENCY_P99})
_COLUMN = re.compile(rf"(?P<container>[a-z0-9][a-z0-9-]{{0,62}})_(?P<suffix>{'|'.join(_SUFFIXES)})", re.ASCII)
_CASE = re.compile(
    r"(?P<container>[a-z0-9][a-z0-9-]{0,62})-(?P<fault>[a-z0-9]{1,16})/(?P<repetition>\d{1,4})", re.ASCII
)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_KINDS = {"cpu": AnomalyKind.HIGH_CPU, "mem": AnomalyKind.HIGH_MEMORY}


@dataclass(frozen=True, eq=False)
class Segment:
    """One phase of one case.

    Attributes:
        case: as the file names it.
        cause: the container that the fault was injected into; known in both phases.
        fault: which fault, `cpu` or `mem` in the published set.
        repetition: of the experiment, from 1.
        phase: before the fault, or during it.
        telemetry: all containers, one sample a second.
    """

    case: str
    cause: str
    fault: str
    repetition: int
    phase: Phase
    telemetry: TelemetryWindow


def read_sockshop(path: Path) -> tuple[Segment, ...]:
    """The segments in their order.

    `path` is the file, or the folder that holds it under its usual name.

    Raises:
        PreconditionError: there is no such file, or it cannot be read.
        InputError: the file breaks the format; the message names row (1 is the first below the header) and column.
    """
    file = path / FILE_NAME if path.is_dir() else path
    text = _text(file)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        places, containers = _places(file, header)
        rows: list[list[float]] = []
        keys: list[tuple[str, str]] = []
        for number, cells in enumerate(reader, start=1):
            if number > MAX_ROWS:
                raise InputError(f"{file}: more than {MAX_ROWS} rows", hint="split the file")
            rows.append(_row(file, number, cells, header, places))
            keys.append((cells[places["case"]], cells[places["phase"]]))
    except csv.Error as error:
        raise InputError(f"{file}: {error}", hint="it must be a CSV file") from error
    if not rows:
        raise InputError(f"{file}: no rows", hint="the file holds a header only")
    table = np.array(rows, dtype=np.float64)
    starts = [i for i in range(len(keys)) if i == 0 or keys[i] != keys[i - 1]]
    if len({keys[i] for i in starts}) != len(starts):
        raise InputError(f"{file}: a phase of a case is there twice", hint="rows of one phase stand together")
    return tuple(
        _segment(file, start, keys[start], table[start:end], header, places, containers)
        for start, end in zip(starts, [*starts[1:], len(keys)], strict=True)
    )


def labelled_runs(segments: Sequence[Segment]) -> tuple[LabelledRun, ...]:
    """One run per segment and container; those of one repetition share the run's name, and so its fold."""
    out = []
    for segment in segments:
        telemetry = segment.telemetry
        for i, container in enumerate(telemetry.containers):
            kinds = np.zeros(telemetry.length, dtype=np.int8)
            if segment.phase == "anomalous":
                kind = _KINDS.get(segment.fault) if container == segment.cause else None
                kinds[:] = STAGE_2_CLASSES.index(kind) if kind is not None else -1
            out.append(
                LabelledRun(
                    service=telemetry.services[i],
                    run=str(segment.repetition),
                    backend=Backend.REPLAYED,
                    step_s=telemetry.step_s,
                    values=telemetry.values[i],
                    kinds=kinds,
                    commissioning=0,
                )
            )
    return tuple(out)


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            packed = stream.read(MAX_FILE_BYTES + 1)
        if len(packed) > MAX_FILE_BYTES:
            raise InputError(f"{file}: more than {MAX_FILE_BYTES} bytes", hint="it is not the published set")
        if packed[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(packed)) as unpacked:
                # Bounded: a few kilobytes can unpack into gigabytes.
                packed = unpacked.read(MAX_TEXT_BYTES + 1)
        if len(packed) > MAX_TEXT_BYTES:
            raise InputError(f"{file}: unpacks to more than {MAX_TEXT_BYTES} bytes", hint="it is not the published set")
        return packed.decode("utf-8")
    except FileNotFoundError as error:
        raise PreconditionError(
            f"there is no file {file}", hint="docs/data.md says where the set is published"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise InputError(f"{file}: {error}", hint="it must be a CSV file in UTF-8, gzipped or not") from error
    except OSError as error:
        raise PreconditionError(f"cannot read {file}: {error}", hint="check the path and its permissions") from error


def _places(file: Path, header: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    if len(header) > MAX_COLUMNS or len(set(header)) != len(header):
        raise InputError(f"{file}: {len(header)} columns, or a name twice", hint=f"at most {MAX_COLUMNS}, each once")
    found: dict[str, set[str]] = {}
    for name in header:
        if name in ("time", "case", "phase"):
            continue
        match = _COLUMN.fullmatch(name)
        if match is None:
            raise InputError(
                f"{file}: unknown column {name[:60]!r}",
                hint=f"time, case, phase, and <container>_ followed by {', '.join(_SUFFIXES)}",
            )
        found.setdefault(match["container"], set()).add(match["suffix"])
    missing = [n for n in ("time", "case", "phase") if n not in header]
    missing += [f"{c}_{s}" for c, suffixes in found.items() for s in ("cpu", "mem") if s not in suffixes]
    if missing or not found:
        raise InputError(
            f"{file}: columns missing: {', '.join(missing or ['<container>_cpu'])[:200]}",
            hint="time, case, phase, and cpu and mem of each container",
        )
    return {name: i for i, name in enumerate(header)}, tuple(found)


def _row(file: Path, number: int, cells: list[str], header: list[str], places: dict[str, int]) -> list[float]:
    if len(cells) != len(header):
        raise InputError(
            f"{file}, row {number}: {len(cells)} cells instead of {len(header)}",
            hint="every row is as wide as the header",
        )
    row = []
    for name, cell in zip(header, cells, strict=True):
        if name in ("case", "phase"):
            row.append(math.nan)
            continue
        if not cell and name != "time":  # not measured
            row.append(math.nan)
            continue
        if len(cell) > 64 or _NUMBER.fullmatch(cell) is None or not 0 <= float(cell) < math.inf:
            raise InputError(
                f"{file}, row {number}, column {name}: {cell[:40]!r} is not a number, or out of range",
                hint="cells are finite decimal numbers, not negative; empty is not measured",
            )
        row.append(float(cell))
    if _CASE.fullmatch(cells[places["case"]]) is None or cells[places["phase"]] not in get_args(Phase):
        raise InputError(
            f"{file}, row {number}: case {cells[places['case']][:60]!r}, phase {cells[places['phase']][:20]!r}",
            hint="a case is <container>-<fault>/<repetition>, a phase normal or anomalous",
        )
    return row


def _segment(
    file: Path,
    start: int,
    key: tuple[str, str],
    table: NDArray[np.float64],
    header: list[str],
    places: dict[str, int],
    containers: tuple[str, ...],
) -> Segment:
    match = _CASE.fullmatch(key[0])
    assert match is not None  # noqa: S101 - every row was checked
    if match["container"] not in containers:
        raise InputError(
            f"{file}, row {start + 1}: case {key[0]} is of a container without columns",
            hint=f"containers are {', '.join(containers)[:200]}",
        )
    times = table[:, places["time"]]
    if (np.diff(times) != STEP_S).any():
        row = start + 2 + int(np.flatnonzero(np.diff(times) != STEP_S)[0])
        raise InputError(f"{file}, row {row}: not one second after the row before", hint="a phase has no gaps")
    values = np.full((len(containers), len(table), N_METRICS), np.nan)
    for name in header:
        column = _COLUMN.fullmatch(name)
        if column is None:
            continue
        metric, to_si, most = _SUFFIXES[column["suffix"]]
        si = table[:, places[name]] * to_si
        if (si > most).any():
            row = start + 1 + int(np.flatnonzero(si > most)[0])
            raise InputError(
                f"{file}, row {row}, column {name}: {float(table[row - start - 1, places[name]])!r} cannot be right",
                hint=f"in SI units at most {most:g}: check the unit",
            )
        if metric in _LATENCIES:
            si = np.where(si == 0.0, np.nan, si)
        values[containers.index(column["container"]), :, METRICS.index(metric)] = si
    phase: Phase = "normal" if key[1] == "normal" else "anomalous"
    return Segment(
        case=key[0],
        cause=match["container"],
        fault=match["fault"],
        repetition=int(match["repetition"]),
        phase=phase,
        telemetry=TelemetryWindow(
            containers=containers,
            services=containers,
            end_s=float(times[-1]),
            step_s=STEP_S,
            values=values.astype(np.float32),
        ),
    )
