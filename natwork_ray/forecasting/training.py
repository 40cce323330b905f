"""Training a forecaster, from recordings to a `Forecaster`.

In order: what is usual for each service (`references`); windows of all recordings (`rows`); out-of-fold forecasts,
split by run where there are runs enough and by recording else; from them the choice of model per service, metric and
horizon (`choice`) and the score tables that calibrate the bands (`conformal`); then the boosters, and the LSTM where it
is asked for, on everything; and both maps of section 4.2.

    >>> forecaster = train_forecaster(runs, ForecastSettings(horizons=(1, 3, 10)))
    >>> store.save(DEFAULT_FORECASTER, dumps(forecaster))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.errors import InputError
from natwork_ray.forecasting.boosted import Boosters, fit_boosters
from natwork_ray.forecasting.bounds import MAX_SERVICES
from natwork_ray.forecasting.calibration import calibrated, periods_of, seasonal_changes
from natwork_ray.forecasting.card import ForecasterCard, ForecastSettings
from natwork_ray.forecasting.choice import BOOSTED, LSTM, SEASONAL, choose
from natwork_ray.forecasting.forecaster import Forecaster
from natwork_ray.forecasting.lstm_model import LstmChange
from natwork_ray.forecasting.lstm_training import changes_over, fit_lstm
from natwork_ray.forecasting.maps import WorkloadMaps
from natwork_ray.forecasting.references import learn
from natwork_ray.forecasting.rows import Rows, check_runs, data_digest, folds_of, rows_of
from natwork_ray.trees.boosters import lightgbm

# (done, total, what): called between fits.
Progress = Callable[[int, int, str], None]
# Fewer rows than this train no booster.
MIN_ROWS = 100


def no_progress(_done: int, _total: int, _what: str) -> None:
    """Report nothing."""


def train_forecaster(
    series: Sequence[LabelledRun], settings: ForecastSettings | None = None, progress: Progress = no_progress
) -> Forecaster:
    """Train on recordings of any number of containers. A service is the unit that gets a choice of its own.

    The same recordings and settings give the same forecaster on the same machine.

    Args:
        series: uninterrupted recordings; those of one `run` name belong to one fold.
        settings: see `ForecastSettings`.
        progress: called between fits.

    Raises:
        InputError: too little data, infinite or negative samples, or different steps.
        PreconditionError: LightGBM cannot be loaded.
    """
    settings = settings or ForecastSettings()
    series = tuple(series)
    check_runs(series)
    targets = settings.targets
    references = learn(series, targets, settings.horizons)
    if len(references.services) > MAX_SERVICES:
        raise InputError(f"{len(references.services)} services", hint=f"at most {MAX_SERVICES} per forecaster")
    rows = rows_of(series, references, settings)
    fold = folds_of(rows, settings.folds)
    cells = [(k, j) for k in range(len(targets)) for j in range(len(settings.horizons))]
    held_folds = [int(f) for f in np.unique(fold)]
    if len(held_folds) < 2:
        raise InputError("one recording only", hint="give at least two recordings: choices are made out of fold")
    networks = len(held_folds) + 1 if settings.lstm_epochs else 0
    total = len(cells) * (len(held_folds) + 1) + networks
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        progress(done, total, what)

    shape = (len(rows), len(targets), len(settings.horizons))
    boosted, low, high = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    recurrent = np.full(shape, np.nan)
    for number, f in enumerate(held_folds, start=1):
        held = fold == f
        for k, j in cells:
            boosters = _fit(rows, ~held, k, j, settings, settings.fold_rows)
            columns = rows.columns[k][held]
            boosted[held, k, j] = boosters.change(columns)
            low[held, k, j], high[held, k, j] = boosters.edges(columns)
            step(f"fold {number} of {len(held_folds)}")
        if settings.lstm_epochs:
            left_out = {int(r) for r in np.unique(rows.recording[held])}
            network = fit_lstm(series, references, settings, epochs=settings.lstm_epochs, leave_out=left_out)
            for r in left_out:
                recurrent[rows.recording == r] = changes_over(network, series[r], references, settings)
            step(f"LSTM, fold {number} of {len(held_folds)}")

    periods = np.zeros((len(references.services) + 1, len(targets)), dtype=np.intp)
    periods[:-1] = periods_of(series, references.services, settings)
    seasonal = seasonal_changes(series, references, rows, periods, settings)
    names = sorted(set(rows.runs))
    run_of = np.array([names.index(run) for run in rows.runs], dtype=np.intp)
    chosen = {
        (k, j): choose(
            rows.relative(k, j),
            [(SEASONAL, seasonal[:, k, j]), (BOOSTED, boosted[:, k, j])]
            + ([(LSTM, recurrent[:, k, j])] if settings.lstm_epochs else []),
            rows.service,
            rows.recording,
            run_of,
            len(rows.services),
            margin=settings.margin,
        )
        for k, j in cells
    }
    calibration = calibrated(rows, chosen, low, high, periods)

    final = {}
    everything = np.ones(len(rows), dtype=bool)
    for k, j in cells:
        final[k, j] = _fit(rows, everything, k, j, settings, settings.rows)
        step("all recordings")
    lstm: LstmChange | None = None
    if settings.lstm_epochs:
        lstm = fit_lstm(series, references, settings, epochs=settings.lstm_epochs)
        step("LSTM, all recordings")
    last = len(settings.horizons) - 1
    card = ForecasterCard(
        settings=settings,
        trained_on=series[0].backend,
        step_s=next(run.step_s for run in series if len(run.kinds)),
        services=references.services,
        runs=len({run.run for run in series}),
        samples=len(rows),
        data_sha256=data_digest(series),
        lightgbm_version=str(lightgbm().__version__),
        skill=tuple(float(np.mean([c.skill for c in chosen[k, last][:-1]])) for k in range(len(targets))),
    )
    return Forecaster(card, references, final, calibration, lstm, WorkloadMaps.learn(series))


def _fit(rows: Rows, used: NDArray[np.bool_], k: int, j: int, settings: ForecastSettings, most: int) -> Boosters:
    change = rows.relative(k, j)
    known = used & ~np.isnan(change)
    if int(known.sum()) < MIN_ROWS:
        raise InputError(
            f"{int(known.sum())} samples of {settings.metrics[k]} with another {settings.horizons[j]} steps later",
            hint=f"give at least {MIN_ROWS} in each fold: more or longer recordings, or shorter horizons",
        )
    return fit_boosters(rows.columns[k][known], change[known], settings.targets[k], settings, most=most)
