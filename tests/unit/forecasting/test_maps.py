"""Typical fluctuation and anomaly signatures (section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, Metric, TelemetryWindow
from natwork_ray.forecasting.maps import WorkloadMaps

CPU, RSS, THROUGHPUT = (METRICS.index(m) for m in (Metric.CPU, Metric.MEMORY_RSS, Metric.THROUGHPUT))
MakeRecording = Callable[..., LabelledRun]


@pytest.fixture(scope="module")
def run(make_recording: MakeRecording) -> LabelledRun:
    run = make_recording("amf", "1", seed=1, length=400)
    run.values[200:220, CPU] = 0.98
    run.kinds[200:220] = STAGE_2_CLASSES.index(AnomalyKind.HIGH_CPU)
    run.values[300:320, THROUGHPUT] = 200.0
    run.values[300:320, CPU] = 0.8
    run.kinds[300:320] = STAGE_2_CLASSES.index(AnomalyKind.STEP_LOAD)
    return run


@pytest.fixture(scope="module")
def maps(run: LabelledRun) -> WorkloadMaps:
    return WorkloadMaps.learn([run])


def window(run: LabelledRun, end: int) -> TelemetryWindow:
    return TelemetryWindow(("amf-0",), (run.service,), 10.0 * end, 10.0, run.values[None, end - 40 : end])


def test_signatures_are_directions_of_metrics(maps: WorkloadMaps) -> None:
    assert maps.directions(AnomalyKind.HIGH_CPU)["cpu_utilization"] == 1
    assert maps.directions(AnomalyKind.STEP_LOAD)["request_throughput_per_s"] == 1
    assert maps.directions(AnomalyKind.NETWORK_LATENCY) == {}


def test_anomalies_are_outside_the_typical_range_and_resemble_themselves(maps: WorkloadMaps, run: LabelledRun) -> None:
    (high_cpu,) = maps.read(window(run, 210))
    assert not high_cpu.typical
    assert high_cpu.outside[0] == "cpu_utilization"
    assert high_cpu.resembles is AnomalyKind.HIGH_CPU
    (surge,) = maps.read(window(run, 310))
    assert surge.resembles is AnomalyKind.STEP_LOAD
    assert surge.similarity > 0.9


def test_ordinary_load_is_typical(maps: WorkloadMaps, run: LabelledRun) -> None:
    readings = [maps.read(window(run, end))[0] for end in range(60, 190)]
    assert np.mean([r.typical for r in readings]) > 0.85
    assert all(r.resembles is None for r in readings if r.typical)


def test_a_jump_inside_the_level_is_still_a_jump(maps: WorkloadMaps, run: LabelledRun) -> None:
    quiet = replace(run, values=run.values.copy())
    quiet.values[60:100, CPU] = np.quantile(run.values[:200, CPU], 0.02)
    quiet.values[99, CPU] = np.quantile(run.values[:200, CPU], 0.98)
    (reading,) = maps.read(window(quiet, 100))
    assert "cpu_utilization" in reading.outside


def test_without_a_map_nothing_is_said(maps: WorkloadMaps, run: LabelledRun) -> None:
    (reading,) = maps.read(window(replace(run, service="new"), 210))
    assert reading.typical
    assert reading.resembles is None


def test_without_labels_nothing_is_resembled(make_recording: MakeRecording) -> None:
    run = make_recording("amf", "1", seed=1)
    maps = WorkloadMaps.learn([run])
    run.values[100, CPU] = 9.0
    (reading,) = maps.read(TelemetryWindow(("amf-0",), ("amf",), 0.0, 10.0, run.values[None, 60:101]))
    assert not reading.typical
    assert reading.resembles is None
