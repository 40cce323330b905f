"""Bands that learn from their misses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, Metric, TelemetryWindow
from natwork_ray.errors import InputError
from natwork_ray.forecasting.adaptive import AdaptiveForecaster
from natwork_ray.forecasting.forecaster import Forecaster

CPU = METRICS.index(Metric.CPU)
MakeWindow = Callable[..., TelemetryWindow]
MakeRecording = Callable[..., LabelledRun]


def width(arrays: object) -> float:
    return float((arrays.upper - arrays.lower)[0, 0, 0])  # type: ignore[attr-defined]


def test_bands_widen_when_the_load_gets_wilder(
    small: Forecaster, make_recording: MakeRecording, make_window: MakeWindow
) -> None:
    run = make_recording("amf", "9", seed=3, length=300)
    wild = np.random.default_rng(0).normal(scale=0.4, size=300)
    run.values[:, CPU] = np.abs(0.4 + wild).astype(np.float32)
    adaptive = AdaptiveForecaster(small, rate=0.05)
    missed: dict[str, list[bool]] = {"adapted": [], "split": []}
    for end in range(20, 260):
        window = make_window((run,), end=end, length=18)
        for name, arrays in (("adapted", adaptive.forecast_arrays(window)), ("split", small.forecast_arrays(window))):
            low, high = arrays.lower[0, 0, 0], arrays.upper[0, 0, 0]
            missed[name].append(not low <= run.values[end, CPU] <= high)
    assert np.mean(missed["split"]) > 0.2
    assert np.mean(missed["adapted"][100:]) == pytest.approx(0.1, abs=0.05)
    assert width(adaptive.forecast_arrays(window)) > width(small.forecast_arrays(window))


def test_the_first_forecast_is_that_of_the_forecaster(
    small: Forecaster, training_runs: tuple[LabelledRun, ...], make_window: MakeWindow
) -> None:
    window = make_window(training_runs[:2])
    adaptive = AdaptiveForecaster(small)
    first = adaptive.forecast(window)
    expected = small.forecast(window)
    assert [f.expected for f in first] == [f.expected for f in expected]
    np.testing.assert_allclose([f.upper for f in first], [f.upper for f in expected])
    assert adaptive.forecast(window) == first  # asked again for the same moment, nothing is judged twice


def test_a_container_that_comes_back_starts_anew(
    small: Forecaster, training_runs: tuple[LabelledRun, ...], make_window: MakeWindow
) -> None:
    adaptive = AdaptiveForecaster(small, rate=0.5)
    both = training_runs[:2]
    adaptive.forecast(make_window(both, end=40))
    surprised = make_window(both, end=41)
    surprised.values[0, -1, CPU] = 50.0
    changed = adaptive.forecast_arrays(surprised)
    usual = small.forecast_arrays(surprised)
    assert (changed.upper - changed.lower)[0, 0, 0] > (usual.upper - usual.lower)[0, 0, 0]
    adaptive.forecast(make_window(both[1:], end=42))
    window = make_window(both, end=43)
    np.testing.assert_allclose(adaptive.forecast_arrays(window).upper[0], small.forecast_arrays(window).upper[0])


def test_what_comes_too_late_is_not_judged(
    small: Forecaster, training_runs: tuple[LabelledRun, ...], make_window: MakeWindow
) -> None:
    adaptive = AdaptiveForecaster(small, rate=0.5)
    adaptive.forecast(make_window(training_runs[:1], end=40))
    late = make_window(training_runs[:1], end=60)
    late.values[0, -1, CPU] = 50.0
    np.testing.assert_allclose(adaptive.forecast_arrays(late).upper, small.forecast_arrays(late).upper)


def test_time_does_not_run_backwards_unless_it_is_told_so(
    small: Forecaster, training_runs: tuple[LabelledRun, ...], make_window: MakeWindow
) -> None:
    adaptive = AdaptiveForecaster(small)
    adaptive.forecast(make_window(training_runs[:1], end=40))
    earlier = replace(make_window(training_runs[:1], end=40), end_s=1.0)
    with pytest.raises(InputError, match="order of time"):
        adaptive.forecast(earlier)
    adaptive.restarted()
    assert adaptive.forecast(earlier)


@pytest.mark.parametrize("rate", [0.0, -1.0, 0.6, float("nan")])
def test_the_rate_has_a_range(small: Forecaster, rate: float) -> None:
    with pytest.raises(InputError, match="rate"):
        AdaptiveForecaster(small, rate=rate)
