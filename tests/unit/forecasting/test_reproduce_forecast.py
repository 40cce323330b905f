"""The honest protocol on a made-up data set: what is held out stays unseen, and every row is complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import plain
from natwork_ray.errors import InputError
from natwork_ray.forecasting.card import ForecastSettings
from natwork_ray.forecasting.forecast_table import ErrorSums, ForecastRow, ForecastTable
from natwork_ray.forecasting.reproduce import DataSet, reproduce_forecast

MakeRecording = Callable[..., LabelledRun]


@pytest.fixture(scope="module")
def table(make_recording: MakeRecording) -> ForecastTable:
    runs = tuple(
        make_recording(service, run, seed=10 * int(run) + i, length=130 - 5 * i, megabytes=100.0 * (i + 1))
        for run in ("1", "2", "3")
        for i, service in enumerate(("amf", "smf"))
    )
    sessions = tuple(int(run.run) for run in runs)
    settings = ForecastSettings(
        window=12, horizons=(1, 10), trees=8, leaves=4, band_trees=5, min_rows=20, folds=2, margin=0.02
    )
    seen: list[str] = []
    data = DataSet("made up", runs, sessions, ("2",), settings)
    found = reproduce_forecast(
        [data], epochs=1, lstm_windows=100, progress=lambda _done, _total, what: seen.append(what)
    )
    assert all(what.startswith("made up, run 2 held out: ") for what in seen)
    assert any("LSTM of changes" in what for what in seen)
    return found


def row(table: ForecastTable, model: str, metric: str = "cpu_utilization", horizon: int = 10) -> ForecastRow:
    (found,) = [r for r in table.rows if (r.model, r.metric, r.horizon) == (model, metric, horizon)]
    return found


def test_there_is_a_row_for_every_model_metric_and_horizon(table: ForecastTable) -> None:
    assert len(table.rows) == 7 * 2 * 2
    assert {r.cells for r in table.rows} == {2}
    assert {c.run for c in table.cells} == {"2"}
    plain(table)  # nothing that JSON cannot carry


def test_naive_is_the_measure_of_all(table: ForecastTable) -> None:
    naive = row(table, "naive")
    assert (naive.skill, naive.skill_min, naive.r2) == (0.0, 0.0, naive.naive_r2)
    for other in ("lightgbm", "automatic", "ridge-ar"):
        assert row(table, other).naive_r2 == naive.naive_r2
        assert row(table, other).skill > 0.2
        assert row(table, other).rmse < naive.rmse
        assert row(table, other).rmse >= row(table, other).mae


def test_only_the_automatic_choice_has_bands(table: ForecastTable) -> None:
    for each in table.rows:
        assert (each.coverage is not None) == (each.model == "automatic")
    (summary,) = table.summary
    assert summary.coverage == pytest.approx(0.9, abs=0.06)
    assert summary.coverage_split == pytest.approx(0.9, abs=0.08)
    assert summary.skill_min >= 0
    assert summary.skill_at_10 == pytest.approx(np.mean([c.skill for c in table.cells if c.horizon == 10]))


def test_the_published_rows_are_quoted_as_printed(table: ForecastTable) -> None:
    cpu, memory = table.published
    assert (cpu.r2, cpu.mae, cpu.rmse) == (0.9769, 0.0028, 0.0117)
    assert memory.rmse < memory.mae
    assert "impossible" in memory.note


def test_sums_say_what_numpy_says() -> None:
    rng = np.random.default_rng(1)
    truth, newest, said = rng.normal(size=(3, 200)) + 1e9
    sums = ErrorSums(unit=3.0)
    sums.add(truth[:120], newest[:120], said[:120])
    sums.add(truth[120:], newest[120:], said[120:])
    squared = ((said - truth) ** 2).sum()
    assert sums.skill == pytest.approx(1 - squared / ((newest - truth) ** 2).sum())
    small = ErrorSums(unit=2.0)
    small.add(truth - 1e9, newest - 1e9, said - 1e9)
    assert small.r2(small.squared) == pytest.approx(1 - squared / ((truth - truth.mean()) ** 2).sum())


def test_where_naive_never_errs_only_naive_is_good_enough() -> None:
    still = np.ones(5)
    good, bad = ErrorSums(), ErrorSums()
    good.add(still, still, still)
    bad.add(still, still, still + 1e-9)
    assert (good.skill, bad.skill) == (0.0, -1.0)
    assert good.r2(0.0) == 0.0


def test_one_run_cannot_be_split(make_recording: MakeRecording) -> None:
    run = make_recording("amf", "1", seed=1)
    data = DataSet("one", (run, replace(run)), (0, 1), ("1",), ForecastSettings())
    with pytest.raises(InputError, match="one run only"):
        reproduce_forecast([data])
