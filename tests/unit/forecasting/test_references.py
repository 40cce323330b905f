"""References and columns do not depend on the unit that a metric is counted in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.errors import InputError
from natwork_ray.forecasting.features import feature_names, inputs, lags
from natwork_ray.forecasting.frames import framed, sliding
from natwork_ray.forecasting.references import CENTRE, SCALE, STEP, learn

CPU, RSS = METRICS.index(Metric.CPU), METRICS.index(Metric.MEMORY_RSS)


def columns(run: LabelledRun, metric: int) -> np.ndarray:
    references = learn([run], (CPU, RSS), (1, 3))
    frame = framed(sliding(run.values, 16))
    table, _ = references.of(np.zeros(len(run.kinds), dtype=np.intp), frame, (CPU, RSS))
    return inputs(frame, metric, table)


@given(factor=st.sampled_from([2.0**-20, 0.25, 8.0, 2.0**10]))
@settings(max_examples=4, deadline=None)
def test_the_unit_of_a_metric_does_not_matter(make_recording: Callable[..., LabelledRun], factor: float) -> None:
    run = make_recording("amf", "1", seed=1, length=60)
    other = replace(run, values=run.values.copy())
    other.values[:, RSS] *= np.float32(factor)
    for metric in (CPU, RSS):
        np.testing.assert_allclose(columns(run, metric), columns(other, metric), rtol=1e-4, atol=1e-4)


def test_a_shift_of_the_level_does_not_matter(make_recording: Callable[..., LabelledRun]) -> None:
    run = make_recording("amf", "1", seed=1, length=60)
    other = replace(run, values=run.values.copy())
    other.values[:, CPU] += np.float32(0.5)
    np.testing.assert_allclose(columns(run, CPU), columns(other, CPU), atol=2e-3)


@pytest.mark.parametrize("window", [4, 16, 48, 64])
def test_every_column_has_a_name(make_recording: Callable[..., LabelledRun], window: int) -> None:
    run = make_recording("amf", "1", seed=1, length=20)
    references = learn([run], (CPU,), (1,))
    frame = framed(sliding(run.values, window))
    table, _ = references.of(np.zeros(20, dtype=np.intp), frame, (CPU,))
    names = feature_names(CPU, window)
    assert inputs(frame, CPU, table).shape == (20, len(names))
    assert len(set(names)) == len(names)
    assert max(lags(window)) < window


def test_a_service_not_seen_gets_its_level_from_the_window(make_recording: Callable[..., LabelledRun]) -> None:
    references = learn([make_recording("amf", "1", seed=1)], (CPU, RSS), (1, 3))
    run = make_recording("new", "1", seed=2, megabytes=7.0)
    frame = framed(run.values[None, :16])
    table, reach = references.of(references.rows(["new"]), frame, (CPU, RSS))
    assert table[0, RSS, CENTRE] == pytest.approx(np.median(run.values[:16, RSS]))
    assert table[0, RSS, SCALE] == pytest.approx(run.values[:16, RSS].astype(float).std(), rel=1e-5)
    assert (reach > 0).all()
    assert reach[0, 1, 0] == pytest.approx(references.fleet_reach[1, 0] * table[0, RSS, STEP])


def test_a_metric_that_was_hardly_measured_has_a_neutral_reference(make_recording: Callable[..., LabelledRun]) -> None:
    run = make_recording("amf", "1", seed=1)
    table = learn([run], (CPU,), (1,)).table
    errors = METRICS.index(Metric.ERRORS)
    assert table[0, errors, :3].tolist() == [0.0, 1.0, 1.0]
    assert np.isfinite(table).all()


def test_a_metric_that_stands_still_has_a_spread_above_zero(make_recording: Callable[..., LabelledRun]) -> None:
    run = make_recording("amf", "1", seed=1)
    run = replace(run, values=run.values.copy())
    run.values[:, RSS] = 5e8
    references = learn([run], (RSS,), (1, 3))
    assert (references.table[0, RSS, 1:3] > 0).all()
    assert (references.reach > 0).all()


def test_odd_samples_are_refused(make_recording: Callable[..., LabelledRun]) -> None:
    run = make_recording("amf", "1", seed=1)
    for odd in (-1.0, np.inf):
        bad = replace(run, values=run.values.copy())
        bad.values[3, CPU] = odd
        with pytest.raises(InputError, match="infinite or negative"):
            learn([bad], (CPU,), (1,))
    with pytest.raises(InputError, match="no runs"):
        learn([], (CPU,), (1,))
