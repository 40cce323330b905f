"""Seasonal naive: what happened one period ago will happen again.

The period belongs to a service and a metric and is learnt: the lag, within a window, at which the metric's deviations
from its straight line correlate best with themselves, if they do so at all. Days are longer than any window kept here:
a daily profile needs days of data, which neither public set has (docs/forecasting.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from natwork_ray.forecasting.frames import Floats
from natwork_ray.forecasting.references import Doubles

# A correlation below this is no season.
_MIN_CORRELATION = 0.2
_SHORTEST = 4
_AS_GOOD = 0.9


def period(columns: Sequence[Doubles], window: int) -> int:
    """The period of one metric over recordings (T,) each, in steps; 0 where there is none below `window`."""
    longest = window - 1
    products, powers = np.zeros(longest + 1), 0.0
    for column in columns:
        known = np.flatnonzero(~np.isnan(column))
        if len(column) < 3 * _SHORTEST or len(known) < 2 or not np.ptp(column[known]) > 0:
            continue
        level = np.interp(np.arange(len(column)), known, column[known])
        place = np.arange(len(level)) - (len(level) - 1) / 2
        rest = level - level.mean()
        rest -= place * (place @ rest) / (place @ place)
        spread = float(rest.std())
        if spread <= 1e-9 * float(np.abs(level).max()):
            continue
        rest /= spread
        powers += float(rest @ rest)
        for lag in range(1, min(longest, len(rest) - 1) + 1):
            products[lag] += float(rest[lag:] @ rest[:-lag]) * len(rest) / (len(rest) - lag)
    if not powers > 0:
        return 0
    found = products / powers
    # A peak: short lags correlate by mere inertia.
    peaks = [
        lag for lag in range(_SHORTEST, longest) if found[lag] >= max(found[lag - 1], found[lag + 1], _MIN_CORRELATION)
    ]
    if not peaks:
        return 0
    # Twice the period correlates as well as the period, up to noise.
    best = max(found[lag] for lag in peaks)
    return min(lag for lag in peaks if found[lag] >= _AS_GOOD * best)


def seasonal_change(filled: Floats, periods: NDArray[np.intp], horizon: int) -> Doubles:
    """Change (N,) until the horizon that windows (N, W) of one metric repeat, for periods (N,); 0 without a period."""
    width = filled.shape[1]
    usable = (periods > 0) & (periods < width)
    length = np.where(usable, periods, 1)
    # The newest sample of the same phase: back by whole periods until it lies in the past.
    back = length * -(-horizon // length) - horizon
    place = np.clip(width - 1 - back, 0, width - 1)
    picked = filled[np.arange(len(filled)), place].astype(np.float64)
    return np.asarray(np.where(usable, picked - filled[:, -1], 0.0))
