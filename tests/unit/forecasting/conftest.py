"""Recordings made up for forecasting: loads with something to learn, and one with nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric, TelemetryWindow
from natwork_ray.domain.values import Backend
from natwork_ray.forecasting.card import ForecastSettings
from natwork_ray.forecasting.forecaster import Forecaster
from natwork_ray.forecasting.training import train_forecaster

CPU, RSS = METRICS.index(Metric.CPU), METRICS.index(Metric.MEMORY_RSS)
SMALL = ForecastSettings(window=16, horizons=(1, 3), trees=10, leaves=5, band_trees=6, min_rows=20, folds=2)


def _recording(
    service: str, run: str, seed: int, *, length: int = 150, pull: float = 0.4, megabytes: float = 300.0
) -> LabelledRun:
    """CPU falls back to 0.4 by a share of `pull` per step, memory follows with delay; `pull` 0 is a random walk."""
    rng = np.random.default_rng(seed)
    cpu, memory = np.empty(length), np.empty(length)
    cpu[0], memory[0] = 0.4, 0.0
    for t in range(1, length):
        cpu[t] = cpu[t - 1] + pull * (0.4 - cpu[t - 1]) + 0.08 * rng.normal()
        memory[t] = memory[t - 1] + 0.3 * (cpu[t - 1] - 0.4 - memory[t - 1])
    values = np.full((length, N_METRICS), np.nan, dtype=np.float32)
    values[:, CPU] = np.clip(cpu, 0.0, None)
    values[:, RSS] = megabytes * 1e6 * (1 + 0.5 * memory)
    values[:, METRICS.index(Metric.THROUGHPUT)] = 50 * np.clip(cpu, 0.0, None)
    return LabelledRun(
        service=service,
        run=run,
        backend=Backend.EMULATED,
        step_s=10.0,
        values=values,
        kinds=np.zeros(length, dtype=np.int8),
        commissioning=0,
    )


def _window(runs: tuple[LabelledRun, ...], end: int = 60, length: int = 30) -> TelemetryWindow:
    return TelemetryWindow(
        containers=tuple(f"{run.service}-0" for run in runs),
        services=tuple(run.service for run in runs),
        end_s=10.0 * end,
        step_s=10.0,
        values=np.stack([run.values[end - length : end] for run in runs]),
    )


@pytest.fixture(scope="session")
def make_recording() -> Callable[..., LabelledRun]:
    """(service, run, seed, length=150, pull=0.4, megabytes=300) -> one recording."""
    return _recording


@pytest.fixture(scope="session")
def make_window() -> Callable[..., TelemetryWindow]:
    """(recordings, end=60, length=30) -> the window of all of them that ends there."""
    return _window


@pytest.fixture(scope="session")
def small_settings() -> ForecastSettings:
    return SMALL


@pytest.fixture(scope="session")
def training_runs() -> tuple[LabelledRun, ...]:
    return tuple(
        _recording(service, run, seed=10 * int(run) + i, megabytes=100.0 * (i + 1))
        for run in ("1", "2")
        for i, service in enumerate(("amf", "smf"))
    )


@pytest.fixture(scope="session")
def small(training_runs: tuple[LabelledRun, ...]) -> Forecaster:
    return train_forecaster(training_runs, SMALL)
