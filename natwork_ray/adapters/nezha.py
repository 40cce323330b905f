"""Recordings of the Nezha data set: metrics of two microservice applications once a minute, with timed fault
injections.

A folder holds the metrics, one file for all (`nezha_metrics_60s.csv.gz`) or one per pod as published
(`<date>/metric/<pod>_metric.csv`), and `<date>-fault_list.json` files anywhere below it. Each day is one recording of
one application (Online Boutique in 2022, Train Ticket in 2023).

Rules kept:

- Units become SI once, here. CPU is a fraction of the pod's limit. A latency of 0 is one that nobody measured (NaN),
  and so is a whole row without memory: a container without memory is one that was not scraped.
- **Written times are believed, epoch stamps are not.** `TimeStamp` of one service of one day is off by 200,000,000 s
  and some, and `inject_timestamp` of the 2023 lists is 8 h off, give or take minutes, once a copy of the line before.
  `Time` and `inject_time` (both UTC) agree with each other everywhere.
- The service is the pod's name without the two generated parts.
- Parsing is strict and bounded: an odd cell is an `InputError` with file, row and column.

Left out: the percentiles at 95 % and what clients measured (no place among the twelve metrics), system calls (counts,
not bytes), `PodSuccessRate` (0 throughout), node metrics. Traces and logs of the set are not read: the loop has none
either.

    >>> days = read_nezha(Path("nezha"))
    >>> days[0].faults[0]
    NezhaFault(at_s=1661140434.0, service='frontend', kind='cpu_contention')
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric, TelemetryWindow
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError, PreconditionError

STEP_S = 60.0
MAX_BYTES = 512 * 2**20
MAX_FAULT_BYTES = 4 * 2**20
MAX_FILES = 2_000
MAX_DAY_SAMPLES = 1_500  # a day of minutes, and some

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d{1,9})? \+0000 UTC( m=\+[0-9.]+)?", re.ASCII)
_POD = re.compile(r"(?P<service>[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?)-[a-z0-9]{6,10}-[a-z0-9]{5}", re.ASCII)


@dataclass(frozen=True)
class _Column:
    name: str
    to_si: float
    most: float  # in SI; beyond it the column is in another unit


_COLUMNS: dict[Metric, _Column] = {
    Metric.MEMORY_RSS: _Column("MemoryUsage(Mi)", 2.0**20, 1e14),
    Metric.CPU: _Column("CpuUsageRate(%)", 0.01, 64.0),
    Metric.NETWORK_RX: _Column("NetworkReceiveBytes", 1.0, 1e12),
    Metric.NETWORK_TX: _Column("NetworkTransmitBytes", 1.0, 1e12),
    Metric.LATENCY_P90: _Column("PodServerLatencyP90(s)", 1.0, 1e5),
    Metric.LATENCY_P99: _Column("PodServerLatencyP99(s)", 1.0, 1e5),
    Metric.THROUGHPUT: _Column("PodWorkload(Ops)", 1.0, 1e8),
}
_LATENCIES = (METRICS.index(Metric.LATENCY_P90), METRICS.index(Metric.LATENCY_P99))


@value
class NezhaFault:
    """One injection; how long it lasted is not recorded (three to eight minutes, by the metrics)."""

    at_s: float
    service: str
    kind: str


@dataclass(frozen=True, eq=False)
class NezhaDay:
    """One day of one application. Times are seconds since 1970 (UTC); NaN where nothing was measured."""

    date: str
    telemetry: TelemetryWindow
    faults: tuple[NezhaFault, ...]

    @property
    def starts_s(self) -> float:
        """Time of the first sample."""
        return self.telemetry.end_s - (self.telemetry.length - 1) * self.telemetry.step_s

    @property
    def application(self) -> str:
        """`train-ticket` or `online-boutique`."""
        train = any(name.startswith("ts-") for name in self.telemetry.services)
        return "train-ticket" if train else "online-boutique"


def read_nezha(folder: Path) -> tuple[NezhaDay, ...]:
    """Every day that has both metrics and a fault list, oldest first.

    Raises:
        PreconditionError: the folder, the metrics or the fault lists are not there.
        InputError: a file that breaks the format; the message names file, row and column.
    """
    paths = [*sorted(folder.glob("nezha_metrics*.csv*")), *sorted(folder.glob("*/metric/*_metric.csv"))]
    lists = sorted(folder.glob("**/*-fault_list.json"))
    if not paths or not lists:
        raise PreconditionError(
            f"no {'metrics' if not paths else 'fault lists'} of Nezha under {folder}",
            hint="name the folder with nezha_metrics_60s.csv.gz and *-fault_list.json; docs/data.md says where from",
        )
    if len(paths) + len(lists) > MAX_FILES:
        raise InputError(f"{folder} holds {len(paths) + len(lists)} files", hint=f"at most {MAX_FILES} are read")
    samples: dict[str, dict[str, dict[float, list[float]]]] = {}
    for path in paths:
        for pod, at_s, row in _rows(path):
            date = datetime.fromtimestamp(at_s, UTC).date().isoformat()
            samples.setdefault(date, {}).setdefault(pod, {})[at_s] = row
    days = []
    for path in lists:
        date = path.name.removesuffix("-fault_list.json")
        if date in samples:
            days.append(_day(path, date, samples[date]))
    if not days:
        raise InputError(f"{folder}: no day has both metrics and a fault list", hint="keep the dates in the file names")
    return tuple(sorted(days, key=lambda day: day.date))


def _day(path: Path, date: str, pods: dict[str, dict[float, list[float]]]) -> NezhaDay:
    first = min(min(rows) for rows in pods.values())
    length = 1 + round((max(max(rows) for rows in pods.values()) - first) / STEP_S)
    if length > MAX_DAY_SAMPLES:
        raise InputError(f"{path.parent}: {date} spans {length} minutes", hint="times of one day only")
    services = {pod: _service(path, pod) for pod in sorted(pods)}
    if len(set(services.values())) != len(services):
        raise InputError(f"{path}: two pods of one service on {date}", hint="one pod per service is read")
    values = np.full((len(services), length, N_METRICS), np.nan, dtype=np.float32)
    for i, pod in enumerate(services):
        for at_s, row in pods[pod].items():
            values[i, round((at_s - first) / STEP_S)] = row
    names = tuple(services.values())
    window = TelemetryWindow(
        containers=names, services=names, end_s=first + (length - 1) * STEP_S, step_s=STEP_S, values=values
    )
    faults = tuple(_faults(path, set(names)))
    return NezhaDay(date=date, telemetry=window, faults=faults)


def _service(path: Path, pod: str) -> str:
    match = _POD.fullmatch(pod)
    if match is None:
        raise InputError(f"{path}: pod {pod!r}", hint="pods are called <service>-<generated>-<generated>")
    return match["service"]


def _faults(path: Path, services: set[str]) -> Iterator[NezhaFault]:
    if path.stat().st_size > MAX_FAULT_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes", hint=f"a fault list has at most {MAX_FAULT_BYTES}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: no JSON: {error}", hint="take the file as published") from error
    hours = document.values() if isinstance(document, dict) else ()
    entries = [entry for hour in hours if isinstance(hour, list) for entry in hour]
    if not entries or not isinstance(document, dict):
        raise InputError(f"{path}: no injections", hint="an object of hours, each a list of injections")
    found = []
    for number, entry in enumerate(entries, start=1):
        try:
            written, pod, kind = (str(entry[key]) for key in ("inject_time", "inject_pod", "inject_type"))
            at_s = datetime.strptime(written, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: injection {number}: {error}", hint="inject_time (UTC), inject_pod and inject_type are needed"
            ) from error
        service = _service(path, pod)
        if service not in services:
            raise InputError(f"{path}: injection {number} into {service}, which has no metrics", hint="keep all pods")
        found.append(NezhaFault(at_s=at_s, service=service, kind=kind))
    yield from sorted(found, key=lambda fault: fault.at_s)


def _rows(path: Path) -> Iterator[tuple[str, float, list[float]]]:
    """(pod, time, twelve metrics in SI) of each row."""
    reader = csv.reader(io.StringIO(_text(path)), strict=True)
    try:
        header = next(reader, [])
        wanted = ("Time", "PodName", *(column.name for column in _COLUMNS.values()))
        missing = [name for name in wanted if header.count(name) != 1]
        if missing:
            raise InputError(
                f"{path}: column {missing[0]!r} is {'there twice' if missing[0] in header else 'missing'}",
                hint=f"the header needs {', '.join(wanted)}",
            )
        when, pod = header.index("Time"), header.index("PodName")
        places = [(METRICS.index(metric), header.index(c.name), c) for metric, c in _COLUMNS.items()]
        for number, cells in enumerate(reader, start=1):
            if len(cells) != len(header):
                raise InputError(f"{path}, row {number}: {len(cells)} cells", hint=f"the header has {len(header)}")
            yield cells[pod], _time(path, number, cells[when]), _metrics(path, number, cells, places)
    except csv.Error as error:
        raise InputError(f"{path}: {error}", hint="take the file as published") from error


def _metrics(path: Path, number: int, cells: list[str], places: list[tuple[int, int, _Column]]) -> list[float]:
    row = [np.nan] * N_METRICS
    for k, place, column in places:
        cell = cells[place]
        if cell == "":
            continue
        if not _NUMBER.fullmatch(cell):
            raise InputError(f"{path}, row {number}, {column.name}: {cell[:40]!r}", hint="a number, or empty")
        figure = float(cell) * column.to_si
        if not 0.0 <= figure <= column.most:
            raise InputError(
                f"{path}, row {number}, {column.name}: {cell[:40]}", hint="not negative, and in the published unit"
            )
        row[k] = figure
    for k in _LATENCIES:
        if row[k] == 0.0:
            row[k] = np.nan
    if not row[METRICS.index(Metric.MEMORY_RSS)] > 0.0:
        return [np.nan] * N_METRICS
    return row


def _time(path: Path, number: int, cell: str) -> float:
    match = _TIME.fullmatch(cell)
    written = match[1] if match else ""
    try:
        return datetime.strptime(written, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise InputError(
            f"{path}, row {number}, Time: {cell[:60]!r}", hint="as '2022-08-22 03:51:19.8 +0000 UTC'"
        ) from error


def _text(path: Path) -> str:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as packed:
                data = packed.read(MAX_BYTES + 1)
        else:
            with path.open("rb") as plain:
                data = plain.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(f"{path}: more than {MAX_BYTES} bytes", hint="split the file by day")
        return data.decode("utf-8")
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}", hint="take the file as published, UTF-8, whole") from error
