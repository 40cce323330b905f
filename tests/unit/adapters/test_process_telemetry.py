"""Telemetry from /proc: rates are differences, what is not measured is missing, one that moved starts anew."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from natwork_ray.adapters.process_telemetry import (
    Counters,
    ProcessTelemetry,
    RunningContainer,
    look,
    metrics,
    network_counters,
)
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.domain.topology import Container
from natwork_ray.errors import InputError

COLUMN = {m: i for i, m in enumerate(METRICS)}


def container(name: str = "echo", node: str = "node-0", cores: float = 0.5) -> Container:
    return Container(
        name=name, service=name, network_service=name, slice="testbed", node=node, replicas=1, cpu_limit_cores=cores,
        memory_limit_bytes=0.0,
    )  # fmt: skip


def counters(**fields: float) -> Counters:
    base = Counters(
        at_s=10.0, pid=1, cpu_s=1.0, rss_bytes=100.0, vsize_bytes=200.0, read_bytes=0.0, written_bytes=50.0,
        rx_bytes=1000.0, tx_bytes=0.0,
    )  # fmt: skip
    return replace(base, **fields)


def test_rates_are_differences_in_units_of_the_table() -> None:
    now = counters(at_s=20.0, cpu_s=3.0, written_bytes=150.0, rx_bytes=3000.0, rss_bytes=120.0)
    found = dict(zip(METRICS, metrics(counters(), now, 0.5), strict=True))
    assert found[Metric.CPU] == pytest.approx(0.4)  # 0.2 cores of half a core
    assert (found[Metric.DISK_WRITE], found[Metric.NETWORK_RX], found[Metric.DISK_READ]) == (10.0, 200.0, 0.0)
    assert (found[Metric.MEMORY_RSS], found[Metric.MEMORY_VSIZE]) == (120.0, 200.0)
    assert all(math.isnan(found[m]) for m in (Metric.LATENCY_P50, Metric.THROUGHPUT, Metric.ERRORS))


@pytest.mark.parametrize(
    "now", [counters(at_s=20.0, pid=2), counters(at_s=10.0), counters(at_s=20.0, cpu_s=0.5, rx_bytes=math.nan)]
)
def test_what_cannot_be_compared_is_not_measured(now: Counters) -> None:
    found = dict(zip(METRICS, metrics(counters(), now, 0.0), strict=True))
    assert math.isnan(found[Metric.CPU])
    assert math.isnan(found[Metric.NETWORK_RX])
    assert found[Metric.MEMORY_RSS] == 100.0


def test_a_look_at_this_process_and_at_none() -> None:
    own = look(os.getpid(), at_s=1.0)
    assert own is not None
    assert own.rss_bytes > 1e6
    assert own.cpu_s > 0
    assert look(2**22 + 1, at_s=1.0) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("h\nh\n  lo: 9 1 0 0 0 0 0 0 9 1\neth0: 70 1 0 0 0 0 0 0 30 2 0\n eth1:5 1 0 0 0 0 0 0 6 1\n", (75.0, 36.0)),
        ("h\nh\neth0: 1 2 3\n", (0.0, 0.0)),
        ("", (0.0, 0.0)),
    ],
)
def test_network_counters_leave_loopback_out(tmp_path: Path, text: str, found: tuple[float, float]) -> None:
    (tmp_path / "dev").write_text(text, encoding="ascii")
    assert network_counters(tmp_path / "dev") == found
    assert all(math.isnan(x) for x in network_counters(tmp_path / "none"))


def test_windows_are_filled_from_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {7: counters(), 8: counters(pid=8)}
    monkeypatch.setattr("natwork_ray.adapters.process_telemetry.look", lambda pid, at_s: seen.get(pid))
    there = [RunningContainer(container=container("a"), pid=7)]

    async def running() -> Sequence[RunningContainer]:
        return tuple(there)

    async def scene() -> None:
        source = ProcessTelemetry(running, step_s=10.0, now_s=lambda: 100.0)
        assert source.started_s == 100.0
        await source.observe(110.0)
        await source.observe(110.0)  # taken already
        seen[7] = counters(at_s=20.0, cpu_s=2.0)
        there.append(RunningContainer(container=container("b", "node-1"), pid=8))
        await source.observe(120.0)
        window = await source.window(end_s=120.0, length=4)
        assert (window.containers, window.length) == (("a", "b"), 4)
        assert np.isnan(window.values[:, :2]).all()
        assert window.values[0, 2:, COLUMN[Metric.MEMORY_RSS]].tolist() == [100.0, 100.0]
        assert window.values[0, 3, COLUMN[Metric.CPU]] == pytest.approx(0.2)
        assert np.isnan(window.values[1, 2]).all(), "b was not there yet"
        assert window.missing().tolist() == [False, False]
        usage = await source.node_usage(at_s=120.0)
        assert [(u.node, u.containers, u.memory_bytes_used) for u in usage] == [
            ("node-0", 1, 100.0),
            ("node-1", 1, 100.0),
        ]
        assert usage[0].cpu_cores_used == pytest.approx(0.1)
        assert await source.flows(["a"], at_s=120.0) == {"a": ()}
        for bad in (source.window(end_s=125.0, length=1), source.window(end_s=120.0, length=0)):
            with pytest.raises(InputError):
                await bad

    asyncio.run(scene())
