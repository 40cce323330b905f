"""From a window of telemetry to forecasts with calibrated bands, for any number of containers at once (section 4.2).

In order: mask what is missing or older than a restart; look up the service's reference, or take the window's own; let
the model that was chosen for the service (`choice`) say by how much the load will change; put the calibrated band
(`conformal`) around it; ask how likely the newest sample was under the band forecast for it before.

A forecast is degraded, and says so, when

- the newest sample of the metric is missing: the last one taken stands in, and the likelihood is 0, for want of one;
- the window holds fewer samples than a forecast wants;
- the service was not among those trained on or commissioned: level and spread come from the window, choice and
  calibration from the fleet.

A container for which a metric was never measured in the window gets no forecast of it. A `Forecaster` is a pure
function of the window; `AdaptiveForecaster` adds the memory that adaptive bands need.

    >>> forecaster = loads(model)
    >>> for forecast in forecaster.forecast(window):
    ...     forecast.container, forecast.metric, forecast.at(10)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.forecasts import ForecastModel, LoadForecast
from natwork_ray.domain.telemetry import METRICS, Metric, TelemetryWindow
from natwork_ray.errors import InputError
from natwork_ray.forecasting.boosted import Boosters
from natwork_ray.forecasting.bounds import COVERAGE
from natwork_ray.forecasting.calibration import Calibration
from natwork_ray.forecasting.card import ForecasterCard
from natwork_ray.forecasting.choice import BOOSTED, LSTM, MODELS, SEASONAL
from natwork_ray.forecasting.commissioning import commission
from natwork_ray.forecasting.conformal import likelihoods, quantile_at, scores, widths
from natwork_ray.forecasting.features import inputs
from natwork_ray.forecasting.frames import Frame, framed, last_samples
from natwork_ray.forecasting.lstm_model import LstmChange
from natwork_ray.forecasting.maps import WorkloadMaps
from natwork_ray.forecasting.references import Doubles, References
from natwork_ray.forecasting.seasonal import seasonal_change

# With fewer samples than this in its window, a forecast is degraded.
ENOUGH_SAMPLES = 12
_STEP_TOLERANCE = 0.01
# Step that a window's clock may differ by, and samples that a commissioning window must have.
MIN_COMMISSIONING = 60
_UNSEEN = "this service was not trained on: the fleet's choice and calibration"
_STALE = "the newest sample is missing"
_SHORT = "few samples so far"


@dataclass(frozen=True, eq=False)
class ForecastArrays:
    """Forecasts of N containers, K metrics and H horizons as arrays, in SI units.

    Attributes:
        lower, expected, upper: float64 (N, K, H); NaN where a metric was never measured in the window.
        likelihood: float64 (N, K).
        model: int (N, K, H), index into `choice.MODELS`.
        stale, short: (N, K) true where the newest sample is missing, or few samples were taken.
        unseen: (N,) true where the service is not known.
    """

    lower: Doubles
    expected: Doubles
    upper: Doubles
    likelihood: Doubles
    model: NDArray[np.intp]
    stale: NDArray[np.bool_]
    short: NDArray[np.bool_]
    unseen: NDArray[np.bool_]


@dataclass(frozen=True, eq=False, repr=False)
class Forecaster:
    """A trained forecaster. Frozen, and safe to share between threads.

    Attributes:
        card: what it is.
        references: what is usual for each service.
        boosters: by (target, horizon) index.
        calibration: per-service choice, factors and score tables.
        lstm: Annex A's network, where it was among the candidates.
        maps: typical fluctuation and anomaly signatures.
    """

    card: ForecasterCard
    references: References
    boosters: Mapping[tuple[int, int], Boosters]
    calibration: Calibration
    lstm: LstmChange | None
    maps: WorkloadMaps

    def __repr__(self) -> str:
        # The generated one would print every tree.
        settings = self.card.settings
        return f"Forecaster({len(self.card.services)} services, {settings.metrics}, horizons {settings.horizons})"

    @property
    def window(self) -> int:
        """Samples per container that a forecast looks at; fewer work, with less to go by."""
        return self.card.settings.window

    @property
    def horizons(self) -> tuple[int, ...]:
        """Steps ahead."""
        return self.card.settings.horizons

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is forecast."""
        return tuple(METRICS[k] for k in self.card.settings.targets)

    def forecast(self, window: TelemetryWindow) -> tuple[LoadForecast, ...]:
        """Forecasts for every container and metric of which at least one sample was taken, container by container.

        Raises:
            InputError: infinite or negative samples, or another step than the forecaster was trained on.
        """
        return self.described(window, self.forecast_arrays(window))

    def forecast_arrays(self, window: TelemetryWindow, miss: Doubles | float = 1.0 - COVERAGE) -> ForecastArrays:
        """As `forecast`, as arrays. `miss` is the share that bands may miss, one number or (N, K, H).

        Raises:
            InputError: as `forecast`.
        """
        self._check(window)
        h0 = self.horizons[0]
        values = last_samples(window.values, self.window + h0)
        frame = framed(values[:, h0:])
        rows = self.references.rows(window.services)
        targets = self.card.settings.targets
        table, reach = self.references.of(rows, frame, targets)
        now = self._changes(frame, rows, table, reach, tuple(range(len(self.horizons))))
        newest = frame.filled[:, -1, list(targets)].astype(np.float64)
        shift = quantile_at(self.calibration.tables[rows], 1.0 - np.asarray(miss))
        width = widths(now.low, now.high)
        expected = np.maximum(newest[..., None] + now.factor * now.expected * reach, 0.0)
        lower = np.minimum(newest[..., None] + (now.low - shift * width) * reach, expected)
        upper = np.maximum(newest[..., None] + (now.high + shift * width) * reach, expected)
        taken = frame.taken[:, list(targets)]
        absent = (taken == 0)[..., None]
        stale = frame.age[:, list(targets)] > 0
        return ForecastArrays(
            lower=np.where(absent, np.nan, np.maximum(lower, 0.0)),
            expected=np.where(absent, np.nan, expected),
            upper=np.where(absent, np.nan, upper),
            likelihood=np.where(stale, 0.0, self._likelihood(values, rows, newest)),
            model=now.model,
            stale=stale,
            short=taken < ENOUGH_SAMPLES,
            unseen=rows < 0,
        )

    def described(self, window: TelemetryWindow, arrays: ForecastArrays) -> tuple[LoadForecast, ...]:
        """Arrays as values, those that could be forecast."""
        reasons = [
            "; ".join(text for text, said in ((_STALE, a), (_SHORT, b), (_UNSEEN, c)) if said)
            for a in (False, True)
            for b in (False, True)
            for c in (False, True)
        ]
        reason = 4 * arrays.stale + 2 * arrays.short + arrays.unseen[:, None]
        # Plain lists: reading numpy scalars one by one takes longer than forecasting.
        lower, expected, upper = arrays.lower.tolist(), arrays.expected.tolist(), arrays.upper.tolist()
        likelihood, model, why = arrays.likelihood.tolist(), arrays.model[..., -1].tolist(), reason.tolist()
        out = []
        names: tuple[ForecastModel, ...] = MODELS
        for i, (container, service) in enumerate(zip(window.containers, window.services, strict=True)):
            for k, metric in enumerate(self.card.settings.metrics):
                if expected[i][k][0] != expected[i][k][0]:
                    continue
                out.append(
                    LoadForecast(
                        container=container,
                        service=service,
                        metric=metric,
                        at_s=window.end_s,
                        step_s=window.step_s,
                        horizons=self.horizons,
                        expected=tuple(expected[i][k]),
                        lower=tuple(lower[i][k]),
                        upper=tuple(upper[i][k]),
                        model=names[model[i][k]],
                        likelihood=likelihood[i][k],
                        degraded=reasons[why[i][k]],
                    )
                )
        return tuple(out)

    def commissioned(self, window: TelemetryWindow) -> Forecaster:
        """This forecaster with services of its own of which this is a normal hour; nothing is retrained.

        What is usual, the choice between naive and the boosters, and the calibration are learnt for each service of the
        window (see `commissioning`); for a service already known they are learnt anew.

        Raises:
            InputError: too few samples, another step, or infinite or negative samples.
        """
        self._check(window)
        if window.length < MIN_COMMISSIONING:
            raise InputError(
                f"commissioning window of {window.length} samples", hint=f"give at least {MIN_COMMISSIONING}"
            )
        if not window.containers:
            return self
        references, calibration = commission(
            window, self.references, self.boosters, self.calibration, self.card.settings
        )
        return replace(
            self,
            card=replace(self.card, services=references.services),
            references=references,
            calibration=calibration,
        )

    def without_services(self) -> Forecaster:
        """This forecaster as it meets services it has never seen: references and maps of single services left out.

        For training data whose service names mean nothing elsewhere, such as emulated ones.
        """
        nobody, last = slice(0, 0), slice(-1, None)
        return replace(
            self,
            card=replace(self.card, services=()),
            references=replace(
                self.references,
                services=(),
                table=self.references.table[nobody],
                reach=self.references.reach[nobody],
            ),
            calibration=Calibration(
                model=self.calibration.model[last],
                factor=self.calibration.factor[last],
                periods=self.calibration.periods[last],
                tables=self.calibration.tables[last],
                surprise=self.calibration.surprise[last],
            ),
            maps=replace(self.maps, services=(), level=self.maps.level[nobody], change=self.maps.change[nobody]),
        )

    def _check(self, window: TelemetryWindow) -> None:
        if abs(window.step_s - self.card.step_s) > _STEP_TOLERANCE * self.card.step_s:
            raise InputError(
                f"a sample every {window.step_s:g} s, and this forecaster was trained on one every "
                f"{self.card.step_s:g} s",
                hint="train one on recordings of this step with `natwork train forecaster`",
            )
        bad = (window.values < 0) | (window.values == np.inf)
        if bad.any():
            i, t, k = (int(x) for x in np.argwhere(bad)[0])
            raise InputError(
                f"sample {t} of {METRICS[k]} of {window.containers[i]} is {float(window.values[i, t, k])!r}",
                hint="metrics are finite and not negative; what was not measured is NaN",
            )

    def _changes(
        self, frame: Frame, rows: NDArray[np.intp], table: Doubles, reach: Doubles, horizons: Sequence[int]
    ) -> _Changes:
        """Changes that the chosen models expect and the boosters' bands, in units of reach, at some of the horizons."""
        targets = self.card.settings.targets
        shape = (len(rows), len(targets), len(horizons))
        expected, low, high = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        model = self.calibration.model[rows][..., list(horizons)]
        factor = self.calibration.factor[rows][..., list(horizons)]
        network = None
        if self.lstm is not None and (model == LSTM).any():
            network = self.lstm.change(frame, table, reach)
        for k, metric in enumerate(targets):
            columns = inputs(frame, metric, table)
            for place, j in enumerate(horizons):
                boosters = self.boosters[k, j]
                low[:, k, place], high[:, k, place] = boosters.edges(columns)
                chosen = np.flatnonzero(model[:, k, place] == BOOSTED)
                if chosen.size:
                    expected[chosen, k, place] = boosters.change(columns[chosen])
                chosen = np.flatnonzero(model[:, k, place] == SEASONAL)
                if chosen.size:
                    periods = self.calibration.periods[rows[chosen], k]
                    repeated = seasonal_change(frame.filled[chosen, :, metric], periods, self.horizons[j])
                    expected[chosen, k, place] = repeated / reach[chosen, k, j]
                if network is not None:
                    chosen = np.flatnonzero(model[:, k, place] == LSTM)
                    expected[chosen, k, place] = network[chosen, k, j]
        return _Changes(expected, factor, low, high, model)

    def _likelihood(self, values: NDArray[np.float32], rows: NDArray[np.intp], newest: Doubles) -> Doubles:
        """(N, K) one minus the p-value of the newest samples under the shortest-horizon band forecast for them."""
        h0 = self.horizons[0]
        frame = framed(values[:, :-h0])
        targets = list(self.card.settings.targets)
        table, reach = self.references.of(rows, frame, targets)
        out = np.zeros(newest.shape)
        for k, metric in enumerate(targets):
            low, high = self.boosters[k, 0].edges(inputs(frame, metric, table))
            change = (newest[:, k] - frame.filled[:, -1, metric]) / reach[:, k, 0]
            change[frame.taken[:, metric] == 0] = np.nan
            out[:, k] = likelihoods(self.calibration.surprise[rows, k], scores(change, low, high))
        return out


@dataclass(frozen=True, eq=False)
class _Changes:
    expected: Doubles
    factor: Doubles
    low: Doubles
    high: Doubles
    model: NDArray[np.intp]
