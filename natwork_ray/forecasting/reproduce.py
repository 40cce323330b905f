"""Section 6.3 measured again, honestly: every model beside naive, split by run.

For each run that is held out, everything is learnt on the other runs by the code of `natwork train forecaster`:
references, models, the choice of model per container and the calibration of the bands. Nothing is chosen on the
held-out run. Each of its samples is forecast from the window that ends there, as in operation.

Models, per series (data set and metric) and horizon:

- naive (no change) and seasonal naive;
- ridge AR: a linear model of the change on the lags alone, one for all containers;
- LSTM (level) and LSTM (change): Annex A's network, trained for `epochs` (section 6.3: 30);
- LightGBM: the boosters as they are, for every container;
- automatic: what is served. The choice is between naive, seasonal naive and LightGBM, shrunk; bands as in `conformal`.

A *cell* is one container in one held-out run. Skill is 1 - MSE / MSE of naive in a cell; its mean and its minimum over
cells are printed, and a pooled one, in which every cell counts by what naive errs there relative to the container's
spread. R² is the median over cells, and naive's stands beside it, because on levels that drift R² is high whatever a
forecast is worth. Coverage is the share of outcomes inside the 90 % band: as split calibration made it, and as adaptive
calibration, which learns from each miss once it is known, keeps it in operation.

    >>> table = reproduce_forecast(data_sets, epochs=30)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, TelemetryWindow
from natwork_ray.errors import InputError
from natwork_ray.forecasting import rows as training_rows
from natwork_ray.forecasting.adaptive import AdaptiveForecaster
from natwork_ray.forecasting.card import ForecastSettings
from natwork_ray.forecasting.features import inputs, lags
from natwork_ray.forecasting.forecast_table import (
    AUTOMATIC,
    LIGHTGBM,
    LSTM_CHANGE,
    LSTM_LEVEL,
    NAIVE,
    PUBLISHED,
    RIDGE,
    SEASONAL,
    ErrorSums,
    ForecastCell,
    ForecastRow,
    ForecastSummary,
    ForecastTable,
    Key,
    Measured,
    cells_of,
    rows_of,
    summary_of,
)
from natwork_ray.forecasting.forecaster import Forecaster
from natwork_ray.forecasting.frames import framed, sliding
from natwork_ray.forecasting.lstm_model import LstmChange
from natwork_ray.forecasting.lstm_training import changes_over, fit_lstm
from natwork_ray.forecasting.references import SCALE, Doubles
from natwork_ray.forecasting.seasonal import seasonal_change
from natwork_ray.forecasting.training import train_forecaster

Progress = Callable[[int, int, str], None]

EPOCHS = 15
_RIDGE = 10.0
# Windows forecast at once.
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class DataSet:
    """Recordings to evaluate on.

    Attributes:
        name: for the rows.
        runs: recordings; those of one `run` name are held out together.
        sessions: for each recording, what was recorded at the same time has the same number (for adaptive bands).
        held_out: names of the runs to hold out, one after another.
        settings: of the forecaster that is trained on the others.
    """

    name: str
    runs: tuple[LabelledRun, ...]
    sessions: tuple[int, ...]
    held_out: tuple[str, ...]
    settings: ForecastSettings


def reproduce_forecast(
    data_sets: Sequence[DataSet], *, epochs: int = EPOCHS, lstm_windows: int = 3000, progress: Progress | None = None
) -> ForecastTable:
    """Measure every model on every data set.

    Args:
        data_sets: what to measure on.
        epochs: of the LSTMs; 0 leaves them out.
        lstm_windows: windows an LSTM is trained on, at most.
        progress: called between steps of work.

    Raises:
        InputError: a data set without two runs.
    """
    rows: list[ForecastRow] = []
    cells: list[ForecastCell] = []
    summary: list[ForecastSummary] = []
    for data in data_sets:
        if len({run.run for run in data.runs}) < 2:
            raise InputError(f"{data.name} holds one run only", hint="a split by run needs two")
        measured = Measured(data.name, data.runs[0].step_s, data.settings, {}, {}, {}, {})
        for held in data.held_out:
            _one_split(data, held, epochs, lstm_windows, measured, progress)
        rows += rows_of(measured)
        own = cells_of(measured)
        cells += own
        summary.append(summary_of(measured, own))
    return ForecastTable(rows=tuple(rows), published=PUBLISHED, summary=tuple(summary), cells=tuple(cells))


def _one_split(
    data: DataSet,
    held: str,
    epochs: int,
    lstm_windows: int,
    measured: Measured,
    progress: Progress | None,
) -> None:
    settings = data.settings
    training = [run for run in data.runs if run.run != held]
    test = [(run, s) for run, s in zip(data.runs, data.sessions, strict=True) if run.run == held and len(run.kinds)]
    what = f"{data.name}, run {held} held out"

    def step(done: int, total: int, part: str) -> None:
        if progress is not None:
            progress(done, total, f"{what}: {part}")

    forecaster = train_forecaster(training, settings, step)
    changes: dict[str, Callable[[LabelledRun], Doubles]] = {
        NAIVE: lambda run: np.zeros((len(run.kinds), len(settings.targets), len(settings.horizons))),
        SEASONAL: lambda run: _seasonal(forecaster, run),
        RIDGE: _ridge(forecaster, training),
        LIGHTGBM: lambda run: _boosted(forecaster, run),
    }
    if epochs:
        for name, residual in ((LSTM_LEVEL, False), (LSTM_CHANGE, True)):
            network = fit_lstm(
                training,
                forecaster.references,
                settings,
                epochs=epochs,
                residual=residual,
                most=lstm_windows,
                progress=step,
            )
            changes[name] = partial(_by_network, network, forecaster)
    for turn, (run, _) in enumerate(test, start=1):
        step(turn, len(test), "forecasting")
        _, reach = _framed_references(forecaster, run)
        newest = run.values[:, list(settings.targets)].astype(np.float64)
        for name, of in changes.items():
            expected = newest[..., None] + of(run) * reach
            _collect(forecaster, run, held, name, newest, expected, measured.sums)
        lower, expected, upper = _served(forecaster, run)
        _collect(forecaster, run, held, AUTOMATIC, newest, expected, measured.sums)
        _count(run, held, newest, lower, upper, settings.horizons, measured.split)
        row = forecaster.references.rows([run.service])[0]
        for k in range(len(settings.targets)):
            for j in range(len(settings.horizons)):
                model = int(forecaster.calibration.model[row, k, j])
                measured.chosen[AUTOMATIC, k, j, run.service, held] = (NAIVE, SEASONAL, LIGHTGBM, LSTM_CHANGE)[model]
    _replay(forecaster, test, held, measured.adaptive, step)


def _by_network(network: LstmChange, forecaster: Forecaster, run: LabelledRun) -> Doubles:
    return changes_over(network, run, forecaster.references, forecaster.card.settings)


def _framed_references(forecaster: Forecaster, run: LabelledRun) -> tuple[Doubles, Doubles]:
    frame = framed(sliding(run.values, forecaster.window))
    rows = np.full(len(run.kinds), forecaster.references.rows([run.service])[0])
    return forecaster.references.of(rows, frame, forecaster.card.settings.targets)


def _seasonal(forecaster: Forecaster, run: LabelledRun) -> Doubles:
    settings = forecaster.card.settings
    frame = framed(sliding(run.values, settings.window))
    _, reach = _framed_references(forecaster, run)
    row = forecaster.references.rows([run.service])[0]
    out = np.empty_like(reach)
    for k, metric in enumerate(settings.targets):
        periods = np.full(len(run.kinds), forecaster.calibration.periods[row, k])
        for j, h in enumerate(settings.horizons):
            out[:, k, j] = seasonal_change(frame.filled[:, :, metric], periods, h)
    return np.asarray(out / reach)


def _boosted(forecaster: Forecaster, run: LabelledRun) -> Doubles:
    settings = forecaster.card.settings
    frame = framed(sliding(run.values, settings.window))
    table, reach = _framed_references(forecaster, run)
    out = np.empty_like(reach)
    for k, metric in enumerate(settings.targets):
        columns = inputs(frame, metric, table)
        for j in range(len(settings.horizons)):
            out[:, k, j] = forecaster.boosters[k, j].change(columns)
    return out


def _ridge(forecaster: Forecaster, training: Sequence[LabelledRun]) -> Callable[[LabelledRun], Doubles]:
    """Linear in the lags, and nothing else; the same columns the boosters see."""
    settings = forecaster.card.settings
    count = len(lags(settings.window)) + 1  # and the level
    stride = max(1, -(-sum(len(run.kinds) for run in training) // settings.rows))
    rows = training_rows.rows_of(training[::stride], forecaster.references, settings)
    weights = {}
    for k in range(len(settings.targets)):
        for j in range(len(settings.horizons)):
            change = rows.relative(k, j)
            known = ~np.isnan(change)
            x = rows.columns[k][known, :count].astype(np.float64)
            weights[k, j] = np.linalg.solve(x.T @ x + _RIDGE * np.eye(count), x.T @ change[known])

    def changes(run: LabelledRun) -> Doubles:
        frame = framed(sliding(run.values, settings.window))
        table, reach = _framed_references(forecaster, run)
        out = np.empty_like(reach)
        for k, metric in enumerate(settings.targets):
            columns = inputs(frame, metric, table)[:, :count].astype(np.float64)
            for j in range(len(settings.horizons)):
                out[:, k, j] = columns @ weights[k, j]
        return out

    return changes


def _served(forecaster: Forecaster, run: LabelledRun) -> tuple[Doubles, Doubles, Doubles]:
    """Lower, expected and upper (T, K, H): each sample's window is a container of its own."""
    values = sliding(run.values, forecaster.window + forecaster.horizons[0])
    parts = []
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        names = (run.service,) * len(part)
        parts.append(forecaster.forecast_arrays(TelemetryWindow(names, names, 0.0, run.step_s, part)))
    return (
        np.concatenate([p.lower for p in parts]),
        np.concatenate([p.expected for p in parts]),
        np.concatenate([p.upper for p in parts]),
    )


def _collect(
    forecaster: Forecaster,
    run: LabelledRun,
    held: str,
    name: str,
    newest: Doubles,
    expected: Doubles,
    sums: dict[Key, ErrorSums],
) -> None:
    settings = forecaster.card.settings
    row = forecaster.references.rows([run.service])[0]
    for k, metric in enumerate(settings.targets):
        unit = float(forecaster.references.table[row, metric, SCALE]) if row >= 0 else 1.0
        for j, h in enumerate(settings.horizons):
            if len(newest) <= h:
                continue
            truth, now, said = newest[h:, k], newest[:-h, k], expected[:-h, k, j]
            known = ~np.isnan(truth) & ~np.isnan(now)
            cell = sums.setdefault((name, k, j, run.service, held), ErrorSums(unit=unit))
            cell.add(truth[known], now[known], np.maximum(said[known], 0.0))


def _count(
    run: LabelledRun,
    held: str,
    newest: Doubles,
    lower: Doubles,
    upper: Doubles,
    horizons: Sequence[int],
    inside: dict[Key, list[int]],
) -> None:
    for k in range(newest.shape[1]):
        for j, h in enumerate(horizons):
            if len(newest) <= h:
                continue
            truth, low, high = newest[h:, k], lower[:-h, k, j], upper[:-h, k, j]
            known = ~np.isnan(truth) & ~np.isnan(low)
            count = inside.setdefault((AUTOMATIC, k, j, run.service, held), [0, 0])
            count[0] += int(((truth >= low) & (truth <= high))[known].sum())
            count[1] += int(known.sum())


def _replay(
    forecaster: Forecaster,
    test: Sequence[tuple[LabelledRun, int]],
    held: str,
    inside: dict[Key, list[int]],
    step: Progress,
) -> None:
    """Play the held-out run as in operation: one scrape after another, all containers of a session at once."""
    adaptive = AdaptiveForecaster(forecaster)
    settings = forecaster.card.settings
    length = forecaster.window + forecaster.horizons[0]
    everybody = tuple(dict.fromkeys(run.service for run, _ in test))
    numbers = sorted({number for _, number in test})
    for turn, number in enumerate(numbers, start=1):
        step(turn, len(numbers), "adaptive bands")
        runs = {run.service: run for run, own in test if own == number}
        longest = max(len(run.kinds) for run in runs.values())
        # Who is not in this session, or whose recording ends early, is silent; what was learnt of it is kept.
        values = np.full((len(everybody), longest, len(METRICS)), np.nan, dtype=np.float32)
        for i, service in enumerate(everybody):
            if service in runs:
                values[i, : len(runs[service].kinds)] = runs[service].values
        shape = (len(everybody), longest, len(settings.targets), len(settings.horizons))
        lower, upper = np.full(shape, np.nan), np.full(shape, np.nan)
        adaptive.restarted()
        step_s = next(iter(runs.values())).step_s
        for t in range(longest):
            window = TelemetryWindow(
                everybody, everybody, (t + 1) * step_s, step_s, values[:, max(0, t + 1 - length) : t + 1]
            )
            arrays = adaptive.forecast_arrays(window)
            lower[:, t], upper[:, t] = arrays.lower, arrays.upper
        for i, service in enumerate(everybody):
            if service in runs:
                run = runs[service]
                newest = run.values[:, list(settings.targets)].astype(np.float64)
                own = slice(0, len(run.kinds))
                _count(run, held, newest, lower[i, own], upper[i, own], settings.horizons, inside)
