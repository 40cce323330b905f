"""The forecaster that comes with the package: whole, and of use to services it has never seen."""

from __future__ import annotations

import numpy as np
import pytest

from natwork_ray.cli.forecasting import SHIPPED, SHIPPED_DATA_SEED, SHIPPED_HOURS, SHIPPED_RUNS
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import TelemetryWindow
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.training_set import labelled_runs
from natwork_ray.forecasting.bounds import COVERAGE
from natwork_ray.forecasting.forecaster import Forecaster
from natwork_ray.forecasting.frames import sliding
from natwork_ray.forecasting.model_file import read_forecaster
from natwork_ray.forecasting.rows import data_digest
from natwork_ray.forecasting.training import train_forecaster


@pytest.fixture(scope="module")
def shipped() -> Forecaster:
    return read_forecaster()[0]


@pytest.fixture(scope="module")
def fresh_world() -> tuple[LabelledRun, ...]:
    return labelled_runs(seed=404, runs=1, hours=2.0)


def over(forecaster: Forecaster, run: LabelledRun) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower, expected and upper (T, K, H) at every sample of a recording."""
    values = sliding(run.values, forecaster.window + forecaster.horizons[0])
    names = (run.service,) * len(values)
    found = forecaster.forecast_arrays(TelemetryWindow(names, names, 0.0, run.step_s, values))
    return found.lower, found.expected, found.upper


def test_its_card_says_where_it_comes_from(shipped: Forecaster) -> None:
    card = shipped.card
    assert card.trained_on is Backend.EMULATED
    assert card.settings == SHIPPED
    assert card.services == ()
    assert card.runs == SHIPPED_RUNS


def test_on_new_services_it_beats_naive_and_keeps_its_bands(
    shipped: Forecaster, fresh_world: tuple[LabelledRun, ...]
) -> None:
    hour = fresh_world[0].commissioning
    window = TelemetryWindow(
        tuple(run.service for run in fresh_world),
        tuple(run.service for run in fresh_world),
        0.0,
        fresh_world[0].step_s,
        np.stack([run.values[:hour] for run in fresh_world]),
    )
    known = shipped.commissioned(window)
    last, targets = len(shipped.horizons) - 1, list(shipped.card.settings.targets)
    h = shipped.horizons[last]
    skills, inside = [], []
    for run in fresh_world:
        lower, expected, upper = over(known, run)
        truth = run.values[hour + h :, targets].astype(np.float64)
        newest = run.values[hour:-h, targets].astype(np.float64)
        at = slice(hour, -h)
        ours = np.nanmean((expected[at, :, last] - truth) ** 2, axis=0)
        skills.append(1 - ours / np.nanmean((newest - truth) ** 2, axis=0))
        hit = (truth >= lower[at, :, last]) & (truth <= upper[at, :, last])
        inside.append(hit[~np.isnan(truth)].mean())
    assert np.mean(skills) > 0.2
    assert np.median(skills) > 0.2
    assert abs(np.mean(inside) - COVERAGE) < 0.06


@pytest.mark.slow
def test_it_can_be_made_again_from_its_seeds(shipped: Forecaster, fresh_world: tuple[LabelledRun, ...]) -> None:
    runs = labelled_runs(seed=SHIPPED_DATA_SEED, runs=SHIPPED_RUNS, hours=SHIPPED_HOURS)
    assert data_digest(runs) == shipped.card.data_sha256
    again = train_forecaster(runs, SHIPPED).without_services()
    assert again.card.skill == pytest.approx(shipped.card.skill, abs=0.05)
    for run in fresh_world[:2]:
        expected, made = over(shipped, run)[1], over(again, run)[1]
        assert np.median(np.abs(expected - made) / np.maximum(np.abs(expected), 1e-9)) < 0.02
