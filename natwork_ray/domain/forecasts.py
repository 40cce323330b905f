"""What is expected of a container's load, and what follows for its placement (D3.3 sections 4.2 and 6.3).

A forecast is structured metadata, as section 4.2 asks: the expected load range (`lower` to `upper`), the expected
value, and an anomaly likelihood. A band that is not ordered or not finite cannot be built.

    >>> LoadForecast(container="amf-0", service="amf", metric="cpu_utilization", at_s=600.0, step_s=10.0,
    ...              horizons=(1, 3), expected=(0.4, 0.5), lower=(0.3, 0.3), upper=(0.5, 0.7),
    ...              model="naive", likelihood=0.1).at(3)
    (0.3, 0.5, 0.7)
"""

from __future__ import annotations

import math
from typing import Literal

from natwork_ray.domain.values import value
from natwork_ray.errors import InputError, NotFoundError

# The models that a forecast may come from, simplest first.
ForecastModel = Literal["naive", "seasonal-naive", "lightgbm", "lstm"]
# Section 4.2: "whether to scale, migrate, or throttle workloads in advance".
PlacementAction = Literal["scale", "migrate", "throttle", "none"]
# Section 4.2: resilience while an anomaly is likely, energy while the trend is stable.
Stance = Literal["resilience", "energy"]
Trend = Literal["rising", "falling", "stable", "unknown"]


@value
class LoadForecast:
    """What one metric of one container is expected to do.

    Attributes:
        container, service: whose load it is.
        metric: a `natwork_ray.domain.telemetry.Metric`, in its SI unit.
        at_s: time of the newest sample that the forecast rests on, on the backend's clock.
        step_s: seconds between samples.
        horizons: steps ahead, ascending, each at least 1.
        expected, lower, upper: one value per horizon, lower <= expected <= upper, none below 0; the band is meant to
            hold 90 % of what comes.
        model: what the expected values come from; chosen per container and horizon, the one of the longest horizon.
        likelihood: anomaly likelihood of the newest sample, 0 to 1: one minus its conformal p-value under the band that
            was forecast for it one step before; 0 where that sample is missing.
        degraded: why the forecast rests on less than it should; empty when it does not.
    """

    container: str
    service: str
    metric: str
    at_s: float
    step_s: float
    horizons: tuple[int, ...]
    expected: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    model: ForecastModel
    likelihood: float
    degraded: str = ""

    def __post_init__(self) -> None:
        lengths = {len(self.horizons), len(self.expected), len(self.lower), len(self.upper)}
        if lengths != {len(self.horizons)} or not self.horizons:
            raise InputError(
                f"forecast of {self.metric} of {self.container}: {len(self.horizons)} horizons, "
                f"{len(self.lower)}/{len(self.expected)}/{len(self.upper)} values",
                hint="give lower, expected and upper once per horizon, for at least one horizon",
            )
        before = 0
        for h, low, mid, high in zip(self.horizons, self.lower, self.expected, self.upper, strict=True):
            # Comparisons with NaN are false, so NaN ends here too.
            if not (before < h and 0.0 <= low <= mid <= high < math.inf):
                raise InputError(
                    f"forecast of {self.metric} of {self.container} at horizon {h}: {low!r} to {high!r}, "
                    f"expected {mid!r}",
                    hint="horizons ascend from 1, and 0 <= lower <= expected <= upper, all finite",
                )
            before = h
        if not 0.0 <= self.likelihood <= 1.0:
            raise InputError(
                f"anomaly likelihood of {self.metric} of {self.container} is {self.likelihood!r}",
                hint="it lies between 0 and 1",
            )

    def at(self, horizon: int) -> tuple[float, float, float]:
        """Lower, expected and upper value at a horizon.

        Raises:
            NotFoundError: that horizon was not forecast.
        """
        try:
            place = self.horizons.index(horizon)
        except ValueError:
            raise NotFoundError(
                f"no forecast of {self.metric} of {self.container} {horizon} steps ahead",
                hint=f"horizons are {', '.join(map(str, self.horizons))}",
            ) from None
        return self.lower[place], self.expected[place], self.upper[place]


@value
class PlacementAdvice:
    """What the orchestrator should do with a container before the load comes (D3.3 section 4.2).

    Attributes:
        at_s: time of the newest sample behind it.
        action: `none` when nothing should be done.
        stance: what was preferred: resilience when an anomaly is likely, energy when the trend is stable.
        likelihood: the anomaly likelihood that the advice rests on, 0 to 1.
        trend: of the load that decided.
        reason: one sentence for a person.
    """

    container: str
    at_s: float
    action: PlacementAction
    stance: Stance
    likelihood: float
    trend: Trend
    reason: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.likelihood <= 1.0:
            raise InputError(
                f"advice for {self.container} has likelihood {self.likelihood!r}", hint="it lies between 0 and 1"
            )
