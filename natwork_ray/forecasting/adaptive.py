"""A forecaster whose bands learn from their misses: adaptive conformal inference per container, metric and horizon.

Call it once per scrape, in order of time. Each call first looks whether the newest samples lie in the bands that were
forecast for this moment, moves each band's miss rate accordingly (`conformal.AdaptiveLevels`), and then forecasts. What
was forecast for a moment that never came (a scrape too late, or lost) is dropped unjudged.

A container that is gone for a call is forgotten; one that comes (back) starts at the nominal rate. Memory is bounded by
containers x metrics x sum of horizons.

    >>> forecaster = AdaptiveForecaster(loads(model))
    >>> while True:
    ...     forecasts = forecaster.forecast(source.window())
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from natwork_ray.domain.forecasts import LoadForecast
from natwork_ray.domain.telemetry import TelemetryWindow
from natwork_ray.errors import InputError
from natwork_ray.forecasting.conformal import AdaptiveLevels
from natwork_ray.forecasting.forecaster import ForecastArrays, Forecaster
from natwork_ray.forecasting.references import Doubles


@dataclass(frozen=True, eq=False)
class _Pending:
    """Bands (N, K) of one horizon that come due at `due_s`."""

    due_s: float
    lower: Doubles
    upper: Doubles


class AdaptiveForecaster:
    """A `Forecaster` with memory; not safe to share between threads."""

    def __init__(self, forecaster: Forecaster, *, rate: float = 0.02) -> None:
        """`rate` is how fast miss rates move, above 0 and at most 0.5: larger follows changes faster and wobbles more.

        Raises:
            InputError: `rate` out of range.
        """
        if not 0.0 < rate <= 0.5:
            raise InputError(f"adaptive rate {rate}", hint="use a number above 0 and at most 0.5")
        self.forecaster = forecaster
        self._rate = rate
        self._containers: tuple[str, ...] = ()
        self._at_s = -np.inf
        self._levels = AdaptiveLevels.fresh(self._shape(0), rate)
        self._pending: list[deque[_Pending]] = [deque() for _ in forecaster.horizons]

    def forecast(self, window: TelemetryWindow) -> tuple[LoadForecast, ...]:
        """As `Forecaster.forecast`.

        Raises:
            InputError: as there; or the window is older than the one before.
        """
        return self.forecaster.described(window, self.forecast_arrays(window))

    def forecast_arrays(self, window: TelemetryWindow) -> ForecastArrays:
        """As `Forecaster.forecast_arrays`, with adapted bands.

        Raises:
            InputError: as `forecast`.
        """
        if window.end_s < self._at_s:
            raise InputError(
                f"window ends at {window.end_s:g} s, before the last one at {self._at_s:g} s",
                hint="adaptive forecasts are made in order of time",
            )
        again = window.end_s == self._at_s
        self._follow(window.containers)
        if not again:
            self._judge(window)
        arrays = self.forecaster.forecast_arrays(window, miss=self._levels.level)
        if not again:
            self._at_s = window.end_s
            for j, h in enumerate(self.forecaster.horizons):
                due_s = window.end_s + h * window.step_s
                self._pending[j].append(_Pending(due_s, arrays.lower[..., j], arrays.upper[..., j]))
        return arrays

    def restarted(self) -> None:
        """Forget what is pending, but not what was learnt: the clock jumped, or another recording begins."""
        self._at_s = -np.inf
        for queue in self._pending:
            queue.clear()

    def _shape(self, containers: int) -> tuple[int, int, int]:
        return containers, len(self.forecaster.metrics), len(self.forecaster.horizons)

    def _follow(self, containers: tuple[str, ...]) -> None:
        if containers == self._containers:
            return
        index = {name: i for i, name in enumerate(self._containers)}
        old = np.array([index.get(name, -1) for name in containers], dtype=np.intp)
        known = old >= 0
        level = AdaptiveLevels.fresh(self._shape(len(containers)), self._rate).level
        level[known] = self._levels.level[old[known]]
        self._levels = AdaptiveLevels(level, self._rate)
        for queue in self._pending:
            for place, item in enumerate(queue):
                lower = np.full((len(containers), level.shape[1]), np.nan)
                upper = lower.copy()
                lower[known], upper[known] = item.lower[old[known]], item.upper[old[known]]
                queue[place] = _Pending(item.due_s, lower, upper)
        self._containers = containers

    def _judge(self, window: TelemetryWindow) -> None:
        newest = window.values[:, -1, list(self.forecaster.card.settings.targets)].astype(np.float64)
        missed = np.zeros(self._levels.level.shape, dtype=bool)
        known = np.zeros_like(missed)
        for j, queue in enumerate(self._pending):
            while queue and queue[0].due_s < window.end_s - window.step_s / 2:
                queue.popleft()
            if queue and queue[0].due_s <= window.end_s + window.step_s / 2:
                item = queue.popleft()
                known[..., j] = ~np.isnan(newest) & ~np.isnan(item.lower)
                missed[..., j] = (newest < item.lower) | (newest > item.upper)  # NaN compares false
        self._levels.observe(missed, known)
