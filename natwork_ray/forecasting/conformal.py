"""Bands that hold what they promise: conformal calibration of the boosters' edges (conformalised quantile regression).

An observation's score is how far it lies outside the band, in widths of the band; inside, the score is negative. Scores
of out-of-fold forecasts are kept as quantiles, per service, metric and horizon (and pooled, for services not seen). A
band with coverage 1 - a is then the boosters' band, moved outwards by the (1 - a) quantile of these scores; the p-value
of an observation is the share of scores at least as high as its own.

Split calibration promises coverage where new data are like the old. They are not always: `AdaptiveLevels` (adaptive
conformal inference, Gibbs and Candès 2021) moves `a` after each observation, per container, metric and horizon, so that
coverage holds in the long run whatever the load does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.forecasting.bounds import COVERAGE
from natwork_ray.forecasting.references import Doubles

# Levels at which quantiles of the scores are kept: every percent, and finer in the upper tail.
LEVELS: Doubles = np.concatenate([np.linspace(0.0, 0.99, 100), [0.995, 0.998, 0.999, 1.0]])
# Bands are at least this wide, in units of reach: a booster may well say "no change at all" where memory stands still.
MIN_WIDTH = 0.02
# A service with fewer scores borrows the pooled ones.
MIN_SCORES = 200
_BEYOND = 10.0
_LOWEST, _HIGHEST = -2.0, 0.6


def widths(low: Doubles, high: Doubles) -> Doubles:
    """Widths of bands, the unit of scores."""
    return np.maximum(high - low, MIN_WIDTH)


def scores(change: Doubles, low: Doubles, high: Doubles) -> Doubles:
    """How far changes lie outside of bands, in widths; negative inside. NaN where a change is NaN."""
    return np.asarray(np.maximum(low - change, change - high) / widths(low, high))


def table_of(found: Doubles) -> Doubles:
    """Quantiles (L,) of scores (M,) at `LEVELS`, corrected for the finite number of them: ceil((M + 1) level) of M."""
    ordered = np.sort(found)
    rank = np.clip(np.ceil(LEVELS * (len(ordered) + 1)).astype(int), 1, len(ordered))
    return np.asarray(ordered[rank - 1])


def score_tables(found: Doubles, service: NDArray[np.intp], services: int) -> Doubles:
    """(services + 1, L) tables; the last one is pooled, every service weighing alike."""
    known = ~np.isnan(found)
    own = [found[known & (service == s)] for s in range(services)]
    # An equal number of evenly spread quantiles from each service, so that long recordings do not drown short ones.
    grid = (np.arange(1000) + 0.5) / 1000
    enough = [each for each in own if len(each) >= MIN_SCORES] or [found[known]]
    pooled = table_of(np.concatenate([np.quantile(each, grid) for each in enough]))
    return np.stack([*(table_of(each) if len(each) >= MIN_SCORES else pooled for each in own), pooled])


def quantile_at(tables: Doubles, level: Doubles | float) -> Doubles:
    """Score quantiles (...) of tables (..., L) at levels (...), linear between `LEVELS`.

    A level above 1 asks for more than was ever seen: bands go on widening, by `_BEYOND` widths (more where the highest
    score is more) for each unit.
    """
    wanted = np.broadcast_to(np.asarray(level, dtype=np.float64), tables.shape[:-1])
    level = np.clip(wanted, 0.0, 1.0)
    right = np.clip(np.searchsorted(LEVELS, level, side="left"), 1, len(LEVELS) - 1)
    share = (level - LEVELS[right - 1]) / (LEVELS[right] - LEVELS[right - 1])
    below = np.take_along_axis(tables, (right - 1)[..., None], axis=-1)[..., 0]
    above = np.take_along_axis(tables, right[..., None], axis=-1)[..., 0]
    further = np.maximum(wanted - 1.0, 0.0) * _BEYOND * (1.0 + np.abs(tables[..., -1]))
    return np.asarray(below + share * (above - below) + further)


def likelihoods(tables: Doubles, found: Doubles) -> Doubles:
    """1 - p-value (N,) of scores (N,) under tables (N, L): the share of scores strictly below; 0 for a NaN."""
    below = (tables < found[:, None]).sum(axis=1)  # NaN compares false
    return np.asarray(np.where(below > 0, LEVELS[np.maximum(below - 1, 0)], 0.0))


@dataclass(eq=False)
class AdaptiveLevels:
    """Miscoverage `a` that follows what was observed: after each observation a <- a + rate * (target - missed).

    Attributes:
        level: float64 array of any shape, the current `a`, one per band; changed in place by `observe`.
        rate: how fast it moves.
    """

    level: Doubles
    rate: float = 0.02
    target: float = 1.0 - COVERAGE

    @classmethod
    def fresh(cls, shape: tuple[int, ...], rate: float = 0.02) -> AdaptiveLevels:
        """All levels at the target."""
        return cls(np.full(shape, 1.0 - COVERAGE), rate)

    def observe(self, missed: NDArray[np.bool_], known: NDArray[np.bool_]) -> None:
        """Move the levels of the bands whose outcome is known. Below 0, bands become wider than any score asked for."""
        step = self.rate * (self.target - missed.astype(np.float64))
        self.level = np.clip(np.where(known, self.level + step, self.level), _LOWEST, _HIGHEST)
