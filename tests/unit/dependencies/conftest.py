"""Windows of telemetry from a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric, TelemetryWindow

MakeWindow = Callable[..., TelemetryWindow]


@pytest.fixture
def make_window() -> MakeWindow:
    """(names, samples, seed, changes {(name, metric): factor}, from sample) -> a steady window with these changes."""

    def made(
        names: Sequence[str] = ("gate", "orders", "db"),
        *,
        samples: int = 200,
        seed: int = 0,
        changes: dict[tuple[str, Metric], float] | None = None,
        begins: int = 0,
    ) -> TelemetryWindow:
        rng = np.random.default_rng(seed)
        values = 50 * np.exp(0.1 * rng.standard_normal((len(names), samples, N_METRICS)))
        for (name, metric), factor in (changes or {}).items():
            values[list(names).index(name), begins:, METRICS.index(metric)] *= factor
        return TelemetryWindow(
            containers=tuple(names), services=tuple(names), end_s=10.0 * samples, step_s=10.0,
            values=values.astype(np.float32),
        )  # fmt: skip

    return made
