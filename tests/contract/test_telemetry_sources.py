"""What every TelemetrySource keeps: the emulation, recordings, this machine's processes, and Prometheus.

Prometheus answers from a canned API here; a real one is asked the same in tests/real. A source joins by an entry in
`SOURCES`: a function that gives it with a moment that has samples before it.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pytest

from natwork_ray.adapters.ianomaly import Recording, RecordingKind
from natwork_ray.adapters.process_telemetry import ProcessTelemetry, RunningContainer
from natwork_ray.adapters.prometheus import PrometheusTelemetry
from natwork_ray.adapters.prometheus_session import Answer
from natwork_ray.adapters.replay import ReplayTelemetry
from natwork_ray.config import PrometheusConfig
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, N_METRICS
from natwork_ray.domain.topology import Container
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.ports import EmulatedTelemetry
from natwork_ray.emulation.scenarios import smart_city
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import InputError
from natwork_ray.ports import TelemetrySource

T = TypeVar("T")
NOW = 1_000_000.0


@dataclass(frozen=True)
class Case:
    source: TelemetrySource
    end_s: float
    step_s: float


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def emulated() -> Case:
    testbed = Testbed(smart_city(), seed=13)
    testbed.advance(200)
    return Case(EmulatedTelemetry(testbed), testbed.now_s, testbed.step_s)


def replayed() -> Case:
    values = np.random.default_rng(1).uniform(0, 1, (30, N_METRICS)).astype(np.float32)
    values[7] = np.nan
    labelled = LabelledRun(
        service="fd", run="1", backend=Backend.REPLAYED, step_s=10.0, values=values, kinds=np.zeros(30, dtype=np.int8),
        commissioning=30,
    )  # fmt: skip
    return Case(ReplayTelemetry([Recording(RecordingKind.NORMAL, labelled)]), 250.0, 10.0)


def processes() -> Case:
    container = Container(
        name="me", service="me", network_service="me", slice="s", node="n", replicas=1, cpu_limit_cores=1.0,
        memory_limit_bytes=0.0,
    )  # fmt: skip

    async def running() -> tuple[RunningContainer, ...]:
        return (RunningContainer(container=container, pid=os.getpid()),)

    source = ProcessTelemetry(running, step_s=10.0, now_s=lambda: NOW)
    for step in range(12):
        run(source.observe(NOW + 10.0 * step))
    return Case(source, NOW + 110.0, 10.0)


class Canned:
    """Two containers, one of them restarted a while ago, and one node."""

    def range(self, query: str, *, start_ms: int, end_ms: int, step_ms: int, deadline: float) -> Answer:
        result = []
        for name in ("db", "web"):
            labels = {"container": name}
            if "natwork_guard" in query:
                if "container_cpu" not in query:
                    continue
                parts = {"age_s": "1", "scrapes": "4", "resets": "0", "before": "1", "restarts": "0"}
                for part, text in parts.items():
                    points = [
                        [m / 1000, "1" if part == "resets" and name == "web" and m < end_ms - 3 * step_ms else text]
                        for m in range(start_ms, end_ms + 1, step_ms)
                    ]
                    result.append({"metric": {**labels, "natwork_guard": part}, "values": points})
            elif "http_" not in query:
                points = [[m / 1000, str(m % 70_000 / 1e5)] for m in range(start_ms, end_ms + 1, step_ms)]
                result.append({"metric": labels, "values": points})
        return Answer(kind="matrix", result=tuple(result))

    def instant(self, query: str, *, at_ms: int, deadline: float) -> Answer:
        return Answer(kind="vector", result=({"metric": {"instance": "n"}, "value": [at_ms / 1000, "2"]},))

    def close(self) -> None:
        pass


def prometheus() -> Case:
    source = PrometheusTelemetry(PrometheusConfig(), step_s=10.0, now_s=lambda: NOW, connect=Canned)
    return Case(source, NOW, 10.0)


SOURCES: dict[str, Callable[[], Case]] = {
    "emulated": emulated,
    "replay": replayed,
    "processes": processes,
    "prometheus": prometheus,
}


@pytest.fixture(params=SOURCES)
def case(request: pytest.FixtureRequest) -> Case:
    return SOURCES[request.param]()


def test_a_window_is_what_was_asked_for(case: Case) -> None:
    window = run(case.source.window(end_s=case.end_s, length=10))
    assert window.values.shape == (len(window.containers), 10, len(METRICS))
    assert len(window.containers) >= 1
    assert (window.values.dtype, window.end_s, window.step_s) == (np.float32, case.end_s, case.step_s)
    assert len(set(window.containers)) == len(window.containers)


def test_nothing_measured_is_missing_and_nothing_else_is_odd(case: Case) -> None:
    values = run(case.source.window(end_s=case.end_s, length=10)).values
    assert not np.isinf(values).any()
    assert not (values < 0).any()
    assert not np.isnan(values).all()


def test_a_shorter_window_is_the_end_of_a_longer_one(case: Case) -> None:
    longer = run(case.source.window(end_s=case.end_s, length=8))
    shorter = run(case.source.window(end_s=case.end_s, length=3))
    assert shorter.containers == longer.containers
    np.testing.assert_array_equal(shorter.values, longer.values[:, -3:])


def test_a_window_is_the_callers_own(case: Case) -> None:
    run(case.source.window(end_s=case.end_s, length=3)).values[:] = -1
    assert not (run(case.source.window(end_s=case.end_s, length=3)).values == -1).any()


@pytest.mark.parametrize("length", [0, -1])
def test_windows_of_no_length_are_refused(case: Case, length: int) -> None:
    with pytest.raises(InputError):
        run(case.source.window(end_s=case.end_s, length=length))


def test_the_future_is_refused(case: Case) -> None:
    with pytest.raises(InputError):
        run(case.source.window(end_s=case.end_s + 1e6, length=3))


def test_nodes_and_flows(case: Case) -> None:
    containers = run(case.source.window(end_s=case.end_s, length=1)).containers
    for usage in run(case.source.node_usage(at_s=case.end_s)):
        assert usage.node
        assert usage.containers >= 0
        assert math.isnan(usage.cpu_fraction) or usage.cpu_fraction >= 0
    flows = run(case.source.flows(containers, at_s=case.end_s))
    assert set(flows) <= set(containers)
    for shares in flows.values():
        assert [s.request_share for s in shares] == sorted((s.request_share for s in shares), reverse=True)
