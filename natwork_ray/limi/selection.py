"""Choosing the migration method, and forecasting what it will take (D3.3 section 2.1).

D3.3 has "a ML-based classifier" that "selects the best LiMi method per container to minimize the migration time and
service downtime" and "a ML-based regressor" of the migration time. Here one set of regressors does both:

    cost(method) = w * total_p50_s + (1 - w) * downtime_p50_s            w in [0, 1]; both in seconds
    choice       = the method with the least cost among those allowed    ties: order of MigrationMethod

A classifier trained on the winners was compared (docs/migration-models.md): it is no better, needs one model for each
weight, and says nothing of seconds. So w is stated at the question, not at the training: 0 asks for the shortest
downtime, 1 for the shortest migration, the default 0.2 lets four seconds of migration weigh as much as one of downtime.

Percentiles: for each method and duration, linear trees (LightGBM) give the logarithm of the median; a second, small
model gives how far the 95th percentile lies above it. The margin is never negative, and downtime is cut at the total of
the same percentile, so p50 <= p95 and downtime <= total always hold.

Only what is known before a migration goes in (`ContainerLoad`); `extrapolated` says which quantities lie outside what
the training had seen.

    >>> selector.choose(load, weight=0.2).method
    <MigrationMethod.PRE_COPY: 'pre-copy'>

Left out: the degraded time after post-copy, which total time contains but users feel less than downtime; learning from
single new migrations (train anew instead).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.migrations import ContainerLoad, MigrationForecast
from natwork_ray.errors import RefusedError, UsageError
from natwork_ray.limi.features import EXTENT, Floats, extent, features
from natwork_ray.limi.selector_card import DEFAULT_WEIGHT, Calibration, SelectorCard

# ln of a microsecond and of eleven days: linear leaves go on beyond what they have seen, and exp() must stay finite.
_LEAST, _MOST = -13.8, 13.8
Trees = Callable[[Floats], Floats]


class Duration(StrEnum):
    """What is forecast."""

    TOTAL = "total"
    DOWNTIME = "downtime"


@dataclass(frozen=True, eq=False)
class PercentileModel:
    """Median and 95th percentile of one duration under one method; each of the trees maps (N, 18) to (N,)."""

    median: Trees
    margin: Trees
    calibration: Calibration

    def percentiles(self, inputs: Floats) -> tuple[Floats, Floats]:
        """(N,) p50 and (N,) p95, seconds."""
        logarithm = self.median(inputs) + self.calibration.centre
        above = np.maximum(0.0, self.margin(inputs) + self.calibration.shift)
        return np.exp(np.clip(logarithm, _LEAST, _MOST)), np.exp(np.clip(logarithm + above, _LEAST, _MOST))


@dataclass(frozen=True, eq=False)
class Forecasts:
    """Percentiles in seconds for N loads under M methods, each (N, M)."""

    methods: tuple[MigrationMethod, ...]
    total_p50_s: Floats
    total_p95_s: Floats
    downtime_p50_s: Floats
    downtime_p95_s: Floats

    def costs(self, weight: float) -> Floats:
        """(N, M) `weight` * total + (1 - weight) * downtime, of the medians."""
        return cost(self.total_p50_s, self.downtime_p50_s, weight)

    def of(self, load: int) -> tuple[MigrationForecast, ...]:
        """Every method's forecast for one load, in the order of `methods`."""
        return tuple(
            MigrationForecast(
                method=method,
                total_p50_s=float(self.total_p50_s[load, m]),
                total_p95_s=float(self.total_p95_s[load, m]),
                downtime_p50_s=float(self.downtime_p50_s[load, m]),
                downtime_p95_s=float(self.downtime_p95_s[load, m]),
            )
            for m, method in enumerate(self.methods)
        )


class MethodSelector:
    """Forecasts for every method, and the choice among them. Immutable, and safe to share between threads."""

    def __init__(self, card: SelectorCard, models: Mapping[tuple[MigrationMethod, Duration], PercentileModel]) -> None:
        """`models` has an entry for each method of the card and each duration."""
        self.card = card
        self.methods = tuple(quality.method for quality in card.methods)
        self._models = dict(models)

    def forecasts(self, loads: Sequence[ContainerLoad]) -> Forecasts:
        """Percentiles for many loads at once.

        Raises:
            InputError: a quantity of a load is negative, not finite or beyond all reason.
        """
        inputs = features(loads)
        by_method = [
            (*self._models[method, Duration.TOTAL].percentiles(inputs),
             *self._models[method, Duration.DOWNTIME].percentiles(inputs))
            for method in self.methods
        ]  # fmt: skip
        total_p50, total_p95, down_p50, down_p95 = (
            np.stack(columns, axis=1) for columns in zip(*by_method, strict=True)
        )
        return Forecasts(
            methods=self.methods,
            total_p50_s=total_p50,
            total_p95_s=total_p95,
            downtime_p50_s=np.minimum(down_p50, total_p50),
            downtime_p95_s=np.minimum(down_p95, total_p95),
        )

    def predict(self, load: ContainerLoad) -> tuple[MigrationForecast, ...]:
        """Every method's forecast for one load; errors as `forecasts`."""
        return self.forecasts([load]).of(0)

    def choose(
        self,
        load: ContainerLoad,
        *,
        weight: float = DEFAULT_WEIGHT,
        allowed: Sequence[MigrationMethod] = tuple(MigrationMethod),
    ) -> MigrationForecast:
        """The forecast of the method with the least cost among those allowed; errors as `pick` and `forecasts`."""
        forecasts = self.forecasts([load])
        place = int(pick(forecasts, weight=weight, allowed=allowed)[0])
        return forecasts.of(0)[place]

    def extrapolated(self, load: ContainerLoad) -> tuple[str, ...]:
        """Names of the quantities, quotients and shares that lie outside what the training had seen."""
        (where,) = extent([load]).tolist()
        return tuple(
            name
            for name, given, seen in zip(EXTENT, where, self.card.seen, strict=True)
            if not seen.low <= given <= seen.high
        )


def pick(forecasts: Forecasts, *, weight: float, allowed: Sequence[MigrationMethod]) -> NDArray[np.intp]:
    """(N,) for each load the place, in `forecasts.methods`, of the allowed method with the least cost.

    Raises:
        UsageError: `weight` lies outside 0 to 1.
        RefusedError: there is a forecast for none of the allowed methods.
    """
    if not 0.0 <= weight <= 1.0:
        raise UsageError(f"weight {weight} of total time", hint="use 0 (downtime only) to 1 (total time only)")
    possible = np.array([method in allowed for method in forecasts.methods])
    if not possible.any():
        raise RefusedError(
            f"the selector knows {', '.join(forecasts.methods)}, but allowed is {', '.join(allowed) or 'nothing'}",
            hint="allow one of them, or train a selector with `natwork train selector`",
        )
    return np.asarray(np.where(possible, forecasts.costs(weight), np.inf).argmin(axis=1), dtype=np.intp)


def cost(total_s: Floats, downtime_s: Floats, weight: float) -> Floats:
    """What is minimised, in seconds: `weight` * total + (1 - weight) * downtime."""
    return weight * total_s + (1.0 - weight) * downtime_s
