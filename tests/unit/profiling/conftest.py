"""Small synthetic services: lively enough to learn from in a second."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.domain.values import Backend
from natwork_ray.profiling.detector import TwoStageDetector
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.training import train

_LEVELS = np.array([2e5, 1e5, 3e8, 9e8, 0.3, 4e5, 6e5, 0.02, 0.05, 0.2, 40.0, 0.1])
_COMMISSIONING = 60
_CASES = (
    (AnomalyKind.HIGH_CPU, {Metric.CPU: 3.0}),
    (AnomalyKind.HIGH_MEMORY, {Metric.MEMORY_RSS: 3.0, Metric.MEMORY_VSIZE: 2.0}),
    (AnomalyKind.STEP_LOAD, {Metric.THROUGHPUT: 3.0, Metric.NETWORK_RX: 3.0, Metric.NETWORK_TX: 3.0}),
    (AnomalyKind.NETWORK_LATENCY, {Metric.LATENCY_P50: 8.0, Metric.LATENCY_P90: 8.0}),
)


def _run(service: str, name: str, seed: int, *, size: float = 1.0) -> LabelledRun:
    rng = np.random.default_rng(seed)
    length = _COMMISSIONING + 40 * len(_CASES)
    values = _LEVELS * size * np.exp(0.08 * rng.standard_normal((length, len(METRICS))))
    kinds = np.zeros(length, dtype=np.int8)
    for i, (kind, factors) in enumerate(_CASES):
        rows = slice(_COMMISSIONING + 40 * i + 10, _COMMISSIONING + 40 * i + 25)
        kinds[rows] = STAGE_2_CLASSES.index(kind)
        for metric, factor in factors.items():
            values[rows, METRICS.index(metric)] *= factor
    return LabelledRun(
        service=service,
        run=name,
        backend=Backend.EMULATED,
        step_s=10.0,
        values=values.astype(np.float32),
        kinds=kinds,
        commissioning=_COMMISSIONING,
    )


@pytest.fixture(scope="session")
def make_run() -> Callable[..., LabelledRun]:
    """(service, run name, seed, size=1.0) -> one synthetic run with four anomalies."""
    return _run


@pytest.fixture(scope="session")
def runs() -> tuple[LabelledRun, ...]:
    """Two services in three runs."""
    return tuple(
        _run(service, f"r{k}", 10 * k + i, size=size)
        for k in range(3)
        for i, (service, size) in enumerate((("a", 1.0), ("b", 4.0)))
    )


@pytest.fixture(scope="session")
def settings() -> TrainingSettings:
    """A training run of about a second."""
    return TrainingSettings(detector="annex-a", epochs=8, batch=64, folds=2, window=6)


@pytest.fixture(scope="session")
def best(runs: tuple[LabelledRun, ...]) -> TwoStageDetector:
    """The default detector, trained on `runs`."""
    return train(runs, TrainingSettings(folds=2, window=6, trees=20))


@pytest.fixture(scope="session")
def detector(runs: tuple[LabelledRun, ...], settings: TrainingSettings) -> TwoStageDetector:
    """Annex A's networks, trained on `runs`."""
    return train(runs, settings)
