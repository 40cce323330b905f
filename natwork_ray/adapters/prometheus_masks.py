"""From answered queries to one window: which container a series belongs to, and which of its samples count.

Pure: no server, no clock. `natwork_ray.adapters.prometheus` holds the table of what is masked, and asks.

A series goes to the container whose namespace, pod and container it names; where it names no container, to all of its
pod; where it names no pod either, to all of its service. The closest of these wins, they are never added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.adapters.prometheus_queries import IdentityLabels, Masks, Queries, Spacing
from natwork_ray.adapters.prometheus_series import Grid, Series
from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric, TelemetryWindow
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError

Rows = NDArray[np.float64]
Flags = NDArray[np.bool_]

MAX_CONTAINERS = 10_000
MAX_REMARKS = 1_000
_MAX_NAME = 512
# What the kubelet calls the container that holds a pod's network namespace.
_NO_CONTAINER = frozenset({"", "POD"})
_NEVER = 9
# Beyond this something is in the wrong unit: no container reads a terabyte a second. As for recordings.
_MOST = {
    Metric.DISK_READ: 1e12,
    Metric.DISK_WRITE: 1e12,
    Metric.MEMORY_RSS: 1e14,
    Metric.MEMORY_VSIZE: 1e15,
    Metric.CPU: 64.0,
    Metric.NETWORK_RX: 1e12,
    Metric.NETWORK_TX: 1e12,
    Metric.LATENCY_P50: 1e5,
    Metric.LATENCY_P90: 1e5,
    Metric.LATENCY_P99: 1e5,
    Metric.THROUGHPUT: 1e8,
    Metric.ERRORS: 1e8,
}


@value
class Remark:
    """Something that is not as it should be: of one container or all (''), of one metric or several ('')."""

    container: str
    metric: str
    text: str


@dataclass(frozen=True, eq=False)
class Observation:
    """A window, and what has to be said of it.

    Attributes:
        degraded: why its newest samples, or some of them, are missing; the window must not pass for a whole one.
        notes: what is worth knowing and hides nothing, such as a CPU without a limit.
    """

    window: TelemetryWindow
    degraded: tuple[Remark, ...]
    notes: tuple[Remark, ...] = ()


@dataclass(frozen=True, eq=False)
class Answered:
    """One query's series, or why there are none."""

    series: tuple[Series, ...] = ()
    failure: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What a round of queries gave. `limit` and `node_cores` are the CPU's, in cores."""

    metrics: Mapping[Metric, Answered]
    guards: Mapping[str, Answered]
    limit: Answered = Answered()
    node_cores: Answered = Answered()


class Fleet:
    """The containers that any of the series name, sorted, and where each series belongs."""

    def __init__(self, series: Iterable[Series], labels: IdentityLabels, service_label: str) -> None:
        self._labels, self._service_label = labels, service_label
        self.remarks: list[Remark] = []
        newest: dict[tuple[str, str, str], tuple[int, str]] = {}
        for each in series:
            namespace, pod, container, service = self._named(each)
            if container:
                measured = np.flatnonzero(~np.isnan(each.values))
                seen = int(measured[-1]) if len(measured) else -1
                if seen > newest.get((namespace, pod, container), (-2, ""))[0]:
                    newest[namespace, pod, container] = seen, service or container
        if len(newest) > MAX_CONTAINERS:
            raise InputError(f"{len(newest)} containers", hint="narrow prometheus.selector")
        names: dict[str, tuple[str, str, str]] = {}
        for key in sorted(newest):
            name = "/".join(part for part in key if part)
            if len(name) > _MAX_NAME or name in names:
                self.remarks.append(
                    Remark(container=name[:_MAX_NAME], metric="", text="its name is no name of its own")
                )
            else:
                names[name] = key
        self.names = tuple(names)
        self.services = tuple(newest[key][1] for key in names.values())
        self._exact = {key: number for number, key in enumerate(names.values())}
        self._pods: dict[tuple[str, str], list[int]] = {}
        self._services: dict[tuple[str, str], list[int]] = {}
        for number, (namespace, pod, _) in enumerate(names.values()):
            self._pods.setdefault((namespace, pod), []).append(number)
            self._services.setdefault((namespace, self.services[number]), []).append(number)

    def rows(self, series: Iterable[Series], length: int, metric: str) -> tuple[Rows, list[Remark]]:
        """(N, T) values, NaN where there are none or where two series of one container differ, and what was odd."""
        values = np.full((len(self.names), length), np.nan)
        clash = np.zeros(values.shape, dtype=bool)
        level = np.full(len(self.names), _NEVER)
        odd: dict[tuple[int, str], None] = {}
        placed = sorted(((*self._place(each), each) for each in series), key=lambda entry: entry[0])
        for distance, numbers, each in placed:
            for number in numbers:
                if distance > level[number]:
                    continue
                level[number] = distance
                here, old = ~np.isnan(each.values), values[number]
                clash[number] |= here & ~np.isnan(old) & (old != each.values)
                values[number] = np.where(here, each.values, old)
                odd.update(dict.fromkeys((number, fault) for fault in each.faults))
        values[clash] = np.nan
        odd.update(
            dict.fromkeys((int(n), "two series of one container that differ") for n in np.flatnonzero(clash.any(1)))
        )
        return values, [Remark(container=self.names[number], metric=metric, text=text) for number, text in odd]

    def _named(self, series: Series) -> tuple[str, str, str, str]:
        labels = self._labels
        container = series.labels.get(labels.container, "")
        return (
            series.labels.get(labels.namespace, ""),
            series.labels.get(labels.pod, ""),
            "" if container in _NO_CONTAINER else container,
            series.labels.get(self._service_label, "") if self._service_label != labels.container else "",
        )

    def _place(self, series: Series) -> tuple[int, Sequence[int]]:
        namespace, pod, container, service = self._named(series)
        if container:
            number = self._exact.get((namespace, pod, container))
            return 0, () if number is None else (number,)
        if pod:
            return 1, self._pods.get((namespace, pod), ())
        return 2, self._services.get((namespace, service), ()) if service else ()


@dataclass(frozen=True, eq=False)
class Guarded:
    """What a guard says of each container and moment.

    Attributes:
        fresh: (N, T) true where a scrape is recent enough.
        steady: (N, T) true where a rate over the range up to there is one of a single, whole counter.
        why: per container, what is wrong with the newest sample; '' when nothing is.
        seen: (N,) true where the guard has the container at all.
    """

    fresh: Flags
    steady: Flags
    why: tuple[str, ...]
    seen: Flags


def guarded(answered: Answered, fleet: Fleet, length: int, masks: Masks, spacing: Spacing) -> Guarded:
    """Judge by a guard's answer (`Queries.guard_query`)."""
    parts: dict[str, list[Series]] = {}
    for each in answered.series:
        parts.setdefault(each.labels.get("natwork_guard", ""), []).append(each)

    def rows(part: str) -> Rows:
        return fleet.rows(parts.get(part, ()), length, "")[0]

    age, scrapes, before = rows("age_s"), rows("scrapes"), rows("before")
    reset, restarted = rows("resets") > 0, rows("restarts") > 0
    oldest = masks.stale_after_intervals * spacing.interval_ms / 1000.0
    within = f"{spacing.range_ms / 1000.0:g} s"
    fresh = (age >= -0.001) & (age <= oldest)
    few, young = ~(scrapes >= masks.min_scrapes), ~(before > 0)
    why = []
    for n in range(len(fleet.names)):
        if np.isnan(age[n, -1]):
            why.append("not scraped")
        elif not fresh[n, -1]:
            why.append(f"last scraped {age[n, -1]:.3g} s ago")
        elif restarted[n, -1] or reset[n, -1]:
            why.append(f"restarted, or its counters went back, within the last {within}")
        elif young[n, -1]:
            why.append(f"began within the last {within}")
        elif few[n, -1]:
            why.append(f"fewer than {masks.min_scrapes} scrapes within the last {within}")
        else:
            why.append("")
    seen = ~np.isnan(age).all(axis=1) if length else np.zeros(len(fleet.names), dtype=bool)
    return Guarded(fresh, fresh & ~few & ~young & ~reset & ~restarted, tuple(why), np.asarray(seen))


def assembled(queries: Queries, answers: Answers, *, service_label: str, grid: Grid, spacing: Spacing) -> Observation:
    """The window of a round of answers.

    Raises:
        InputError: more containers than can be.
    """
    every = (*answers.guards.values(), *answers.metrics.values())
    fleet = Fleet((s for answered in every for s in answered.series), queries.labels, service_label)
    guards = {
        name: guarded(answered, fleet, grid.length, queries.masks, spacing) for name, answered in answers.guards.items()
    }
    values = np.full((len(fleet.names), grid.length, N_METRICS), np.nan, dtype=np.float32)
    degraded, notes = list(fleet.remarks), list[Remark]()
    for column, metric in enumerate(METRICS):
        asked, answered = queries.metrics.get(metric), answers.metrics.get(metric)
        if asked is None or answered is None:
            continue
        if answered.failure:
            degraded.append(Remark(container="", metric=metric, text=answered.failure))
            continue
        rows, odd = fleet.rows(answered.series, grid.length, metric)
        degraded += odd
        if metric is Metric.CPU:
            rows, told = _fraction(rows, answers, fleet, grid.length)
            notes += told
        impossible = ~np.isnan(rows) & ~((rows >= 0) & (rows <= _MOST[metric]))
        degraded += [
            Remark(container=fleet.names[n], metric=metric, text=f"{rows[n, -1]:.3g} cannot be: is it another unit?")
            for n in np.flatnonzero(impossible[:, -1])
        ]
        rows[impossible] = np.nan
        if asked.guard:
            guard = guards[asked.guard]
            rows[~(guard.steady if asked.rate else guard.fresh)] = np.nan
        values[:, :, column] = rows
    for metric in queries.metrics:
        if np.isnan(values[:, :, METRICS.index(metric)]).all() and not answers.metrics[metric].failure:
            notes.append(Remark(container="", metric=metric, text="not measured anywhere in this window"))
    for name, guard in guards.items():
        degraded += [
            Remark(container=fleet.names[n], metric="", text=f"{name}: {guard.why[n]}")
            for n in range(len(fleet.names))
            if guard.why[n] and guard.seen[n]
        ]
    warnings = dict.fromkeys(w for answered in (*every, answers.limit, answers.node_cores) for w in answered.warnings)
    degraded += [Remark(container="", metric="", text=f"the server warns: {each}") for each in warnings]
    if len(degraded) > MAX_REMARKS:
        more = Remark(container="", metric="", text=f"and {len(degraded) - MAX_REMARKS} more remarks")
        degraded = [*degraded[:MAX_REMARKS], more]
    window = TelemetryWindow(
        containers=fleet.names,
        services=fleet.services,
        end_s=grid.end_ms / 1000.0,
        step_s=grid.step_ms / 1000.0,
        values=values,
    )
    return Observation(window, tuple(degraded), tuple(notes[:MAX_REMARKS]))


def _fraction(cores: Rows, answers: Answers, fleet: Fleet, length: int) -> tuple[Rows, list[Remark]]:
    """CPU as a fraction of the container's limit, else of its node's cores, which is said."""
    limit, _ = fleet.rows(answers.limit.series, length, Metric.CPU)
    node, _ = fleet.rows(answers.node_cores.series, length, Metric.CPU)
    limited = (limit > 0) & np.isfinite(limit)
    whole = np.where(limited, limit, np.where((node > 0) & np.isfinite(node), node, np.nan))
    fraction = cores / whole
    told = []
    for n in np.flatnonzero(~np.isnan(cores[:, -1]) & ~limited[:, -1]):
        text = "neither its limit nor its node's cores are known"
        if not np.isnan(whole[n, -1]):
            text = f"no limit is known: a fraction of its node's {whole[n, -1]:g} cores"
        told.append(Remark(container=fleet.names[n], metric=Metric.CPU, text=text))
    failures = [each.failure for each in (answers.limit, answers.node_cores) if each.failure]
    told += [Remark(container="", metric=Metric.CPU, text=failure) for failure in failures]
    return fraction, told
