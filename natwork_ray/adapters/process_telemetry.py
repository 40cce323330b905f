"""Telemetry of containers on this machine, read from /proc: the twelve metrics of D3.3 Table 1, as far as it has them.

A sample looks at every process of a container (its first process and what descends from it) and at the counters of its
network namespace; rates are differences between two samples. What a container's clients see (latency, throughput,
errors) is in no file of /proc, so these five are NaN: not measured, which is not the same as good. A container that
was not there at the sample before (new, just migrated) has no rates yet.

    telemetry = ProcessTelemetry(running, step_s=10.0)
    await telemetry.observe(end_s)
    window = await telemetry.window(end_s=end_s, length=10)

Left out: flows by source, which take a packet filter's counters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil

from natwork_ray.domain.telemetry import METRICS, N_METRICS, FlowShare, Metric, NodeUsage, TelemetryWindow
from natwork_ray.domain.topology import Container
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError

KEPT_SAMPLES = 1000


@value
class RunningContainer:
    """A container that runs now, with the id of its first process."""

    container: Container
    pid: int


@value
class Counters:
    """What one look at a container's processes gives; all but memory count up from some moment on."""

    at_s: float
    pid: int
    cpu_s: float
    rss_bytes: float
    vsize_bytes: float
    read_bytes: float
    written_bytes: float
    rx_bytes: float
    tx_bytes: float


class ProcessTelemetry:
    """`TelemetrySource` over the containers that `running` names at each sample.

    Args:
        running: what runs now.
        step_s: seconds between samples.
        now_s: the clock; its first reading is when the source begins.
    """

    def __init__(
        self,
        running: Callable[[], Awaitable[Sequence[RunningContainer]]],
        *,
        step_s: float,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._running = running
        self.step_s = step_s
        self.started_s = now_s()
        self._before: dict[str, Counters] = {}
        self._samples: list[tuple[float, dict[str, list[float]]]] = []
        self._usage: list[tuple[NodeUsage, ...]] = []
        self._known: dict[str, Container] = {}

    async def observe(self, at_s: float) -> None:
        """Take the sample of `at_s`, unless it was taken."""
        if self._samples and at_s <= self._samples[-1][0]:
            return
        running = await self._running()
        rows: dict[str, list[float]] = {}
        seen: dict[str, Counters] = {}
        for each in running:
            name = each.container.name
            self._known[name] = each.container
            counters = look(each.pid, at_s=time.monotonic())
            if counters is not None:
                seen[name] = counters
                rows[name] = metrics(self._before.get(name), counters, each.container.cpu_limit_cores)
        self._before = seen
        self._samples.append((at_s, rows))
        self._usage.append(_usage(running, rows, at_s))
        del self._samples[:-KEPT_SAMPLES], self._usage[:-KEPT_SAMPLES]

    async def window(self, *, end_s: float, length: int) -> TelemetryWindow:
        """See `TelemetrySource`; samples from before the source began are missing."""
        last = self._number(end_s)
        if length < 1:
            raise InputError(f"a window of {length} samples", hint="ask for at least one")
        names = tuple(self._known)
        values = np.full((len(names), length, N_METRICS), np.nan, dtype=np.float32)
        for back in range(min(length, last + 1)):
            rows = self._samples[last - back][1]
            for row, name in enumerate(names):
                if name in rows:
                    values[row, length - 1 - back] = rows[name]
        services = tuple(self._known[name].service for name in names)
        return TelemetryWindow(containers=names, services=services, end_s=end_s, step_s=self.step_s, values=values)

    async def node_usage(self, *, at_s: float) -> tuple[NodeUsage, ...]:
        """See `TelemetrySource`."""
        return self._usage[self._number(at_s)]

    async def flows(self, containers: Sequence[str], *, at_s: float) -> Mapping[str, tuple[FlowShare, ...]]:
        """Not measured."""
        return dict.fromkeys(containers, ())

    def _number(self, at_s: float) -> int:
        for number in range(len(self._samples) - 1, -1, -1):
            if math.isclose(self._samples[number][0], at_s, abs_tol=1e-3):
                return number
        raise InputError(f"no sample was taken at {at_s}", hint="ask for a moment at which one was taken")


def look(pid: int, *, at_s: float) -> Counters | None:
    """One look at a process and its descendants; None when it has ended."""
    try:
        first = psutil.Process(pid)
        family = [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return None
    cpu = rss = vsize = read = written = 0.0
    for process in family:
        try:
            with process.oneshot():
                times, memory, disk = process.cpu_times(), process.memory_info(), process.io_counters()
        except psutil.NoSuchProcess:
            continue
        cpu += times.user + times.system
        rss += memory.rss
        vsize += memory.vms
        read += disk.read_bytes
        written += disk.write_bytes
    rx, tx = network_counters(Path(f"/proc/{pid}/net/dev"))
    return Counters(
        at_s=at_s,
        pid=pid,
        cpu_s=cpu,
        rss_bytes=rss,
        vsize_bytes=vsize,
        read_bytes=read,
        written_bytes=written,
        rx_bytes=rx,
        tx_bytes=tx,
    )


def network_counters(path: Path) -> tuple[float, float]:
    """Bytes received and sent by every interface but loopback, NaN when the file cannot be read."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()[2:]
    except (OSError, UnicodeDecodeError):
        return math.nan, math.nan
    rx = tx = 0.0
    for line in lines:
        name, _, fields = line.partition(":")
        numbers = fields.split()
        if name.strip() != "lo" and len(numbers) > 8:
            rx += float(numbers[0])
            tx += float(numbers[8])
    return rx, tx


def metrics(before: Counters | None, now: Counters, cpu_limit_cores: float) -> list[float]:
    """The twelve metrics in the order of `METRICS`. Rates need a sample before, of the same process."""
    found = dict.fromkeys(METRICS, math.nan)
    found[Metric.MEMORY_RSS] = now.rss_bytes
    found[Metric.MEMORY_VSIZE] = now.vsize_bytes
    if before is not None and before.pid == now.pid and now.at_s > before.at_s:
        span_s = now.at_s - before.at_s

        def rate(a: float, b: float) -> float:
            return (b - a) / span_s if b >= a else math.nan  # a process of the family ended, or NaN

        found[Metric.CPU] = rate(before.cpu_s, now.cpu_s) / (cpu_limit_cores or float(psutil.cpu_count() or 1))
        found[Metric.DISK_READ] = rate(before.read_bytes, now.read_bytes)
        found[Metric.DISK_WRITE] = rate(before.written_bytes, now.written_bytes)
        found[Metric.NETWORK_RX] = rate(before.rx_bytes, now.rx_bytes)
        found[Metric.NETWORK_TX] = rate(before.tx_bytes, now.tx_bytes)
    return [found[m] for m in METRICS]


def _usage(running: Sequence[RunningContainer], rows: Mapping[str, list[float]], at_s: float) -> tuple[NodeUsage, ...]:
    cores, memory = float(psutil.cpu_count() or 1), float(psutil.virtual_memory().total)
    column = {m: i for i, m in enumerate(METRICS)}
    usage = []
    for node in sorted({r.container.node for r in running}):
        here = [r.container for r in running if r.container.node == node and r.container.name in rows]

        def total(metric: Metric, of: Sequence[Container] = here) -> float:
            return float(np.nansum([rows[c.name][column[metric]] for c in of]))

        cpu = float(np.nansum([rows[c.name][column[Metric.CPU]] * (c.cpu_limit_cores or cores) for c in here]))
        used = total(Metric.MEMORY_RSS)
        usage.append(
            NodeUsage(
                node=node,
                at_s=at_s,
                containers=len(here),
                cpu_cores_used=cpu,
                cpu_fraction=cpu / cores,
                memory_bytes_used=used,
                memory_fraction=used / memory,
                network_rx_bytes_per_s=total(Metric.NETWORK_RX),
                network_tx_bytes_per_s=total(Metric.NETWORK_TX),
            )
        )
    return tuple(usage)
