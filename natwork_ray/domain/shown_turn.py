"""What the newest turn of the loop said of every container, to be shown and not kept: the journal has what counts."""

from __future__ import annotations

from natwork_ray.domain.anomaly import AnomalyVerdict
from natwork_ray.domain.forecasts import LoadForecast
from natwork_ray.domain.values import value


@value
class ShownTurn:
    """One turn, for dashboards and autoscalers.

    Attributes:
        at_s: time of the newest sample, on the backend's clock.
        verdicts: of the containers that were flagged.
        degraded: containers whose window could not be judged, or only against a profile that is not theirs.
        forecasts: of every container and metric that was forecast; empty where nothing is.
    """

    at_s: float
    verdicts: tuple[AnomalyVerdict, ...]
    degraded: tuple[str, ...]
    forecasts: tuple[LoadForecast, ...] = ()
