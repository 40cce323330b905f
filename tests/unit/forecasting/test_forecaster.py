"""From a window to bands: ordered, honest about what is missing, and independent of units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natwork_ray.domain.forecasts import LoadForecast
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric, TelemetryWindow
from natwork_ray.errors import InputError
from natwork_ray.forecasting.card import ForecastSettings
from natwork_ray.forecasting.choice import BOOSTED, MODELS, NAIVE, SEASONAL
from natwork_ray.forecasting.forecaster import Forecaster
from natwork_ray.forecasting.training import train_forecaster

CPU, RSS = METRICS.index(Metric.CPU), METRICS.index(Metric.MEMORY_RSS)
MakeWindow = Callable[..., TelemetryWindow]
MakeRecording = Callable[..., LabelledRun]


def test_what_can_be_learnt_is_learnt(
    small: Forecaster, make_recording: MakeRecording, make_window: MakeWindow
) -> None:
    assert (small.calibration.model == BOOSTED).all()
    run = make_recording("amf", "9", seed=99, length=400, megabytes=100.0)
    newest, later, said = [], [], []
    for end in range(20, 390):
        (cpu, _) = small.forecast(make_window((run,), end=end, length=18))
        newest.append(run.values[end - 1, CPU])
        later.append(run.values[end + 2, CPU])
        said.append(cpu.at(3))
        assert cpu.degraded == ""
    naive = np.mean(np.square(np.subtract(newest, later)))
    ours = np.mean(np.square(np.subtract([mid for _, mid, _ in said], later)))
    assert 1 - ours / naive > 0.2
    inside = np.mean([low <= y <= high for (low, _, high), y in zip(said, later, strict=True)])
    assert 0.83 <= inside <= 0.97


@pytest.fixture(scope="module")
def forecast(small: Forecaster) -> Callable[[TelemetryWindow], tuple[LoadForecast, ...]]:
    """A plain function: Hypothesis would print every tree of a forecaster."""

    def of(window: TelemetryWindow) -> tuple[LoadForecast, ...]:
        return small.forecast(window)

    return of


@given(seed=st.integers(0, 10_000), size=st.floats(-6.0, 12.0), missing=st.floats(0.0, 1.0), still=st.booleans())
@settings(max_examples=25, deadline=None)
def test_whatever_was_measured_the_band_is_ordered(
    forecast: Callable[[TelemetryWindow], tuple[LoadForecast, ...]],
    seed: int,
    size: float,
    missing: float,
    still: bool,
) -> None:
    rng = np.random.default_rng(seed)
    values = (10**size * rng.lognormal(sigma=3.0, size=(3, 20, N_METRICS))).astype(np.float32)
    if still:
        values[:] = values[:, :1]
    values[rng.random(values.shape) < missing] = np.nan
    window = TelemetryWindow(("a", "b", "c"), ("amf", "smf", "new"), 600.0, 10.0, values)
    found = forecast(window)  # an unordered band cannot be built
    measured = {(i, k) for i, k in zip(*np.nonzero(~np.isnan(values).all(axis=1)), strict=True) if k in (CPU, RSS)}
    assert len(found) == len(measured)


@pytest.mark.parametrize("factor", [0.125, 4.0, 1024.0])
def test_memory_may_be_counted_in_other_units(
    training_runs: tuple[LabelledRun, ...],
    small: Forecaster,
    small_settings: ForecastSettings,
    make_window: MakeWindow,
    factor: float,
) -> None:
    def scaled(run: LabelledRun) -> LabelledRun:
        values = run.values.copy()
        values[:, RSS] *= np.float32(factor)
        return replace(run, values=values)

    other = Forecaster(
        small.card,
        replace(
            small.references,
            table=_scaled(small.references.table, factor),
            reach=small.references.reach * np.array([1.0, factor])[None, :, None],
        ),
        small.boosters,
        small.calibration,
        small.lstm,
        small.maps,
    )
    before = small.forecast_arrays(make_window(training_runs[:2]))
    after = other.forecast_arrays(make_window(tuple(scaled(run) for run in training_runs[:2])))
    for name in ("lower", "expected", "upper"):
        np.testing.assert_allclose(getattr(after, name)[:, 1], factor * getattr(before, name)[:, 1], rtol=1e-4)
        np.testing.assert_allclose(getattr(after, name)[:, 0], getattr(before, name)[:, 0], rtol=1e-4)


def _scaled(table: np.ndarray, factor: float) -> np.ndarray:
    out = table.copy()
    out[:, RSS, :3] *= factor
    return out


def test_the_same_memory_at_another_level_changes_alike(
    training_runs: tuple[LabelledRun, ...], small: Forecaster, make_window: MakeWindow
) -> None:
    shift = 5e7
    table = small.references.table.copy()
    table[:, RSS, 0] += shift
    other = replace(small, references=replace(small.references, table=table))
    window = make_window(training_runs[:1])
    values = window.values.copy()
    values[..., RSS] += np.float32(shift)
    before, after = small.forecast_arrays(window), other.forecast_arrays(replace(window, values=values))
    np.testing.assert_allclose(after.expected[:, 1], before.expected[:, 1] + shift, rtol=1e-4)


def test_a_missing_newest_sample_is_said(
    training_runs: tuple[LabelledRun, ...], small: Forecaster, make_window: MakeWindow
) -> None:
    window = make_window(training_runs[:1])
    window.values[0, -2:, CPU] = np.nan
    cpu, memory = small.forecast(window)
    assert "newest sample is missing" in cpu.degraded
    assert cpu.likelihood == 0.0
    assert memory.degraded == ""


def test_a_short_past_is_said(
    training_runs: tuple[LabelledRun, ...], small: Forecaster, make_window: MakeWindow
) -> None:
    (cpu, _) = small.forecast(make_window(training_runs[:1], end=5, length=5))
    assert "few samples" in cpu.degraded


def test_an_unknown_service_is_said_until_it_is_commissioned(
    small: Forecaster, make_recording: MakeRecording, make_window: MakeWindow
) -> None:
    run = make_recording("upf", "1", seed=5, megabytes=900.0)
    window = make_window((run,), end=140)
    (cpu, _) = small.forecast(window)
    assert "not trained on" in cpu.degraded
    hour = make_window((run,), end=120, length=120)
    known = small.commissioned(hour)
    (cpu, memory) = known.forecast(window)
    assert cpu.degraded == memory.degraded == ""
    assert known.card.services == ("amf", "smf", "upf")
    assert small.card.services == ("amf", "smf")
    again = known.commissioned(hour)
    assert again.card.services == ("amf", "smf", "upf")
    np.testing.assert_array_equal(again.forecast_arrays(window).expected, known.forecast_arrays(window).expected)


def test_without_services_every_service_is_new_until_it_is_commissioned(
    small: Forecaster, training_runs: tuple[LabelledRun, ...], make_window: MakeWindow
) -> None:
    from natwork_ray.forecasting.model_file import dumps, loads

    nobody = loads(dumps(small.without_services()))
    window = make_window(training_runs[:2], end=140)
    assert all("not trained on" in f.degraded for f in nobody.forecast(window))
    known = nobody.commissioned(make_window(training_runs[:2], end=120, length=120))
    assert not any(f.degraded for f in known.forecast(window))


def test_a_commissioning_window_has_to_be_long_enough(
    small: Forecaster, training_runs: tuple[LabelledRun, ...], make_window: MakeWindow
) -> None:
    with pytest.raises(InputError, match="at least 60"):
        small.commissioned(make_window(training_runs[:1]))


def test_a_sample_out_of_all_proportion_is_likely_an_anomaly(
    training_runs: tuple[LabelledRun, ...], small: Forecaster, make_window: MakeWindow
) -> None:
    window = make_window(training_runs[:1])
    usual = small.forecast(window)[0].likelihood
    window.values[0, -1, CPU] = 9.0
    assert small.forecast(window)[0].likelihood > max(0.99, usual)


def test_other_steps_and_odd_samples_are_refused(
    training_runs: tuple[LabelledRun, ...], small: Forecaster, make_window: MakeWindow
) -> None:
    window = make_window(training_runs[:1])
    with pytest.raises(InputError, match="every 1 s"):
        small.forecast(replace(window, step_s=1.0))
    for odd in (-1.0, np.inf):
        values = window.values.copy()
        values[0, 3, CPU] = odd
        with pytest.raises(InputError, match="amf-0"):
            small.forecast(replace(window, values=values))


def test_nothing_gives_nothing(small: Forecaster) -> None:
    nothing = np.zeros((0, 16, N_METRICS), dtype=np.float32)
    assert small.forecast(TelemetryWindow((), (), 0.0, 10.0, nothing)) == ()


def test_wider_bands_for_fewer_misses(
    training_runs: tuple[LabelledRun, ...], small: Forecaster, make_window: MakeWindow
) -> None:
    window = make_window(training_runs[:1])
    usual, wide = small.forecast_arrays(window), small.forecast_arrays(window, miss=0.01)
    assert (wide.upper >= usual.upper).all()
    assert (wide.lower <= usual.lower).all()
    assert (wide.upper > usual.upper).any()


def test_naive_and_seasonal_are_served_where_they_were_chosen(
    training_runs: tuple[LabelledRun, ...], small: Forecaster, make_window: MakeWindow
) -> None:
    window = make_window(training_runs[:1])
    flat = replace(small.calibration, model=np.full_like(small.calibration.model, NAIVE))
    (cpu, _) = replace(small, calibration=flat).forecast(window)
    assert cpu.model == "naive"
    assert cpu.expected == pytest.approx((window.values[0, -1, CPU],) * 2)
    seasonal = replace(
        small.calibration,
        model=np.full_like(small.calibration.model, SEASONAL),
        factor=np.ones_like(small.calibration.factor),
        periods=np.full_like(small.calibration.periods, 5),
    )
    (cpu, _) = replace(small, calibration=seasonal).forecast(window)
    assert cpu.model == MODELS[SEASONAL]
    assert cpu.at(3)[1] == pytest.approx(window.values[0, -1 - 2, CPU], rel=1e-5)


def test_a_random_walk_stays_naive(make_recording: MakeRecording, small_settings: ForecastSettings) -> None:
    runs = [make_recording("walk", str(r), seed=70 + r, pull=0.0, length=200) for r in range(3)]
    trained = train_forecaster(runs, replace(small_settings, metrics=(str(Metric.CPU),), horizons=(1,)))
    assert (trained.calibration.model[0] == NAIVE).all()


def test_training_with_the_lstm(make_recording: MakeRecording, small_settings: ForecastSettings) -> None:
    from natwork_ray.forecasting.model_file import dumps, loads

    runs = [make_recording("amf", str(r), seed=r, length=120) for r in range(2)]
    settings = replace(small_settings, horizons=(1,), metrics=(str(Metric.CPU),), window=8, lstm_epochs=1)
    trained = train_forecaster(runs, settings)
    assert trained.lstm is not None
    forced = replace(
        trained,
        calibration=replace(
            trained.calibration,
            model=np.full_like(trained.calibration.model, MODELS.index("lstm")),
            factor=np.ones_like(trained.calibration.factor),
        ),
    )
    window = TelemetryWindow(("amf-0",), ("amf",), 0.0, 10.0, runs[0].values[None, 20:40])
    (cpu,) = forced.forecast(window)
    assert cpu.model == "lstm"
    assert loads(dumps(forced)).forecast(window) == (cpu,)


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        (lambda make: [], "without a sample"),
        (lambda make: [make("amf", "1", seed=1)], "one recording only"),
        (lambda make: [make("amf", "1", seed=1), replace(make("amf", "2", seed=2), step_s=1.0)], "every 1 s"),
        (lambda make: [make("amf", "1", seed=1, length=30), make("amf", "2", seed=2, length=30)], "at least 100"),
    ],
)
def test_too_little_to_train_on(
    make_recording: MakeRecording, runs: Callable[..., list[LabelledRun]], why: str, small_settings: ForecastSettings
) -> None:
    with pytest.raises(InputError, match=why):
        train_forecaster(runs(make_recording), small_settings)


@pytest.mark.parametrize(
    "change",
    [
        {"horizons": ()}, {"horizons": (3, 1)}, {"horizons": (0,)}, {"horizons": (5000,)}, {"window": 2},
        {"metrics": ()}, {"metrics": ("cpu",)}, {"metrics": ("cpu_utilization",) * 2}, {"trees": 0}, {"margin": -1.0},
    ],
)  # fmt: skip
def test_settings_have_ranges(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        replace(ForecastSettings(), **change)  # type: ignore[arg-type]
