"""Section 6.3 measured again, honestly: every model beside naive, split by run.

For each run that is held out, everything is learnt on the other runs by the code of `natwork train forecaster`:
references, models, the choice of model per container and the calibration of the bands. Nothing is chosen on the held-out
run. Each of its samples is forecast from the window that ends there, as in operation.

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

import numpy as np

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, Metric, TelemetryWindow
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError
from natwork_ray.forecasting.adaptive import AdaptiveForecaster
from natwork_ray.forecasting.card import ForecastSettings
from natwork_ray.forecasting.features import inputs, lags
from natwork_ray.forecasting.forecaster import Forecaster
from natwork_ray.forecasting.frames import framed, sliding
from natwork_ray.forecasting.lstm_training import changes_over, fit_lstm
from natwork_ray.forecasting.references import SCALE, Doubles
from natwork_ray.forecasting.rows import rows_of
from natwork_ray.forecasting.seasonal import seasonal_change
from natwork_ray.forecasting.training import train_forecaster

Progress = Callable[[int, int, str], None]

NAIVE, SEASONAL, RIDGE = "naive", "seasonal-naive", "ridge-ar"
LSTM_LEVEL, LSTM_CHANGE, LIGHTGBM, AUTOMATIC = "lstm-level", "lstm-change", "lightgbm", "automatic"
MODEL_NAMES = (NAIVE, SEASONAL, RIDGE, LSTM_LEVEL, LSTM_CHANGE, LIGHTGBM, AUTOMATIC)
EPOCHS = 15
_RIDGE = 10.0
# Windows forecast at once.
_CHUNK = 4096


@value
class PublishedForecast:
    """A figure of D3.3 section 6.3, as printed. The data are not public, nor is the split."""

    model: str = "D3.3 LSTM"
    metric: str
    horizon: int
    horizon_s: float
    mae: float
    rmse: float
    r2: float
    note: str = ""


PUBLISHED = (
    PublishedForecast(metric=str(Metric.CPU), horizon=10, horizon_s=10.0, mae=0.0028, rmse=0.0117, r2=0.9769),
    PublishedForecast(
        metric=str(Metric.MEMORY_RSS),
        horizon=3,
        horizon_s=3.0,
        mae=23815.3061,
        rmse=16443.2474,
        r2=0.9056,
        note="impossible as printed: an RMSE is never below its MAE (ADR 0008)",
    ),
)


@value
class ForecastRow:
    """One model on one series at one horizon, over all held-out runs.

    Attributes:
        data: name of the data set.
        model: one of `MODEL_NAMES`.
        split: always `by run`.
        metric, horizon, horizon_s: what was forecast, and how far ahead in steps and seconds.
        mae, rmse: in the metric's SI unit, over all samples.
        r2, naive_r2: median over cells.
        skill: pooled; skill_mean, skill_min: over cells.
        worst: container of the lowest skill.
        cells: how many.
        coverage: of the adaptive 90 % band, coverage_split: of the split one; None for models without bands.
    """

    data: str
    model: str
    split: str
    metric: str
    horizon: int
    horizon_s: float
    mae: float
    rmse: float
    r2: float
    naive_r2: float
    skill: float
    skill_mean: float
    skill_min: float
    worst: str
    cells: int
    coverage: float | None = None
    coverage_split: float | None = None


@value
class ForecastCell:
    """The automatic choice on one container in one held-out run at one horizon."""

    data: str
    run: str
    container: str
    metric: str
    horizon: int
    model: str
    skill: float
    coverage: float
    coverage_split: float


@value
class ForecastSummary:
    """What issue and docs quote of one data set: the automatic choice over all cells of both metrics.

    `skill_at_10` is the mean over containers, metrics and held-out runs at 10 steps; None without that horizon.
    """

    data: str
    skill_min: float
    skill_mean: float
    skill_at_10: float | None
    coverage: float
    coverage_split: float


@value
class ForecastTable:
    """Everything that `natwork reproduce forecast` prints."""

    rows: tuple[ForecastRow, ...]
    published: tuple[PublishedForecast, ...]
    summary: tuple[ForecastSummary, ...]
    cells: tuple[ForecastCell, ...]


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


@dataclass(eq=False)
class _Sums:
    """Of one model, metric and horizon in one cell. `unit` is the container's spread in training."""

    n: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    naive: float = 0.0
    total: float = 0.0
    total_squared: float = 0.0
    unit: float = 1.0

    def add(self, truth: Doubles, newest: Doubles, forecast: Doubles) -> None:
        self.n += len(truth)
        self.absolute += float(np.abs(forecast - truth).sum())
        self.squared += float(((forecast - truth) ** 2).sum())
        self.naive += float(((newest - truth) ** 2).sum())
        # Around a fixed point near the data: sums of squares of bytes would drown the spread in rounding.
        self.total += float((truth / self.unit).sum())
        self.total_squared += float(((truth / self.unit) ** 2).sum())

    @property
    def skill(self) -> float:
        return 1.0 - self.squared / self.naive if self.naive > 0 else 0.0

    def r2(self, squared: float) -> float:
        spread = (self.total_squared - self.total**2 / self.n) * self.unit**2
        return 1.0 - squared / spread if spread > 0 else 0.0


_Key = tuple[str, int, int, str, str]  # model, metric place, horizon place, container, held-out run


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
        sums: dict[_Key, _Sums] = {}
        inside: dict[_Key, list[int]] = {}
        chosen: dict[_Key, str] = {}
        for held in data.held_out:
            _one_split(data, held, epochs, lstm_windows, sums, inside, chosen, progress)
        rows += _rows(data, sums, inside)
        own = _cells(data, sums, inside, chosen)
        cells += own
        summary.append(_summary(data, own, inside))
    return ForecastTable(rows=tuple(rows), published=PUBLISHED, summary=tuple(summary), cells=tuple(cells))


def _one_split(
    data: DataSet,
    held: str,
    epochs: int,
    lstm_windows: int,
    sums: dict[_Key, _Sums],
    inside: dict[_Key, list[int]],
    chosen: dict[_Key, str],
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
            changes[name] = lambda run, network=network: changes_over(network, run, forecaster.references, settings)
    for turn, (run, _) in enumerate(test, start=1):
        step(turn, len(test), "forecasting")
        _, reach = _framed_references(forecaster, run)
        newest = run.values[:, list(settings.targets)].astype(np.float64)
        for name, of in changes.items():
            expected = newest[..., None] + of(run) * reach
            _collect(forecaster, run, held, name, newest, expected, sums)
        lower, expected, upper = _served(forecaster, run)
        _collect(forecaster, run, held, AUTOMATIC, newest, expected, sums)
        _count(run, held, AUTOMATIC, newest, lower, upper, settings.horizons, inside)
        row = forecaster.references.rows([run.service])[0]
        for k in range(len(settings.targets)):
            for j in range(len(settings.horizons)):
                model = int(forecaster.calibration.model[row, k, j])
                chosen[AUTOMATIC, k, j, run.service, held] = (NAIVE, SEASONAL, LIGHTGBM, LSTM_CHANGE)[model]
    _replay(forecaster, test, held, inside, step)


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
    rows = rows_of(training[::stride], forecaster.references, settings)
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
    sums: dict[_Key, _Sums],
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
            cell = sums.setdefault((name, k, j, run.service, held), _Sums(unit=unit))
            cell.add(truth[known], now[known], np.maximum(said[known], 0.0))


def _count(
    run: LabelledRun,
    held: str,
    name: str,
    newest: Doubles,
    lower: Doubles,
    upper: Doubles,
    horizons: Sequence[int],
    inside: dict[_Key, list[int]],
) -> None:
    for k in range(newest.shape[1]):
        for j, h in enumerate(horizons):
            if len(newest) <= h:
                continue
            truth, low, high = newest[h:, k], lower[:-h, k, j], upper[:-h, k, j]
            known = ~np.isnan(truth) & ~np.isnan(low)
            count = inside.setdefault((name, k, j, run.service, held), [0, 0])
            count[0] += int(((truth >= low) & (truth <= high))[known].sum())
            count[1] += int(known.sum())


_ADAPTIVE = "adaptive"


def _replay(
    forecaster: Forecaster,
    test: Sequence[tuple[LabelledRun, int]],
    held: str,
    inside: dict[_Key, list[int]],
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
                _count(run, held, _ADAPTIVE, newest, lower[i, own], upper[i, own], settings.horizons, inside)


def _share(counts: Sequence[list[int]]) -> float:
    total = sum(n for _, n in counts)
    return sum(hits for hits, _ in counts) / total if total else 0.0


def _rows(data: DataSet, sums: dict[_Key, _Sums], inside: dict[_Key, list[int]]) -> list[ForecastRow]:
    settings = data.settings
    step_s = data.runs[0].step_s
    out = []
    for k, metric in enumerate(settings.metrics):
        for j, h in enumerate(settings.horizons):
            for model in MODEL_NAMES:
                own = {key: s for key, s in sums.items() if key[:3] == (model, k, j) and s.n}
                if not own:
                    continue
                skills = {key: s.skill for key, s in own.items()}
                worst = min(skills, key=lambda key: skills[key])
                n = sum(s.n for s in own.values())
                counted = [inside[key] for key in own if key in inside]
                adaptive = [inside[(_ADAPTIVE, *key[1:])] for key in own if (_ADAPTIVE, *key[1:]) in inside]
                relative = sum(s.squared / s.unit**2 for s in own.values())
                out.append(
                    ForecastRow(
                        data=data.name,
                        model=model,
                        split="by run",
                        metric=metric,
                        horizon=h,
                        horizon_s=h * step_s,
                        mae=sum(s.absolute for s in own.values()) / n,
                        rmse=float(np.sqrt(sum(s.squared for s in own.values()) / n)),
                        r2=float(np.median([s.r2(s.squared) for s in own.values()])),
                        naive_r2=float(np.median([s.r2(s.naive) for s in own.values()])),
                        skill=1.0 - relative / max(sum(s.naive / s.unit**2 for s in own.values()), 1e-300),
                        skill_mean=float(np.mean(list(skills.values()))),
                        skill_min=skills[worst],
                        worst=worst[3],
                        cells=len(own),
                        coverage=_share(adaptive) if counted else None,
                        coverage_split=_share(counted) if counted else None,
                    )
                )
    return out


def _cells(
    data: DataSet, sums: dict[_Key, _Sums], inside: dict[_Key, list[int]], chosen: dict[_Key, str]
) -> list[ForecastCell]:
    settings = data.settings
    return [
        ForecastCell(
            data=data.name,
            run=key[4],
            container=key[3],
            metric=settings.metrics[key[1]],
            horizon=settings.horizons[key[2]],
            model=chosen[key],
            skill=cell.skill,
            coverage=_share([inside[(_ADAPTIVE, *key[1:])]]),
            coverage_split=_share([inside[key]]),
        )
        for key, cell in sorted(sums.items())
        if key[0] == AUTOMATIC and cell.n
    ]


def _summary(data: DataSet, cells: Sequence[ForecastCell], inside: dict[_Key, list[int]]) -> ForecastSummary:
    at_10 = [c.skill for c in cells if c.horizon == 10]
    return ForecastSummary(
        data=data.name,
        skill_min=min(c.skill for c in cells),
        skill_mean=float(np.mean([c.skill for c in cells])),
        skill_at_10=float(np.mean(at_10)) if at_10 else None,
        coverage=_share([count for key, count in inside.items() if key[0] == _ADAPTIVE]),
        coverage_split=_share([count for key, count in inside.items() if key[0] == AUTOMATIC]),
    )
