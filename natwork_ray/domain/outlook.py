"""What the forecasts of a whole fleet come to, in a size that can be kept with every turn (D3.3 section 4.2)."""

from __future__ import annotations

from natwork_ray.domain.forecasts import PlacementAdvice
from natwork_ray.domain.values import value

MOST_ADVISED = 20
MOST_NAMED = 50  # containers that one outlook names per list; `unnamed` counts the rest


@value
class LoadOutlook:
    """The forecasts of one turn, summed up. Forecasts that informed a decision are kept with the decision.

    Attributes:
        containers: how many containers were forecast.
        resilience: those whose anomaly likelihood is high, so that resilience goes first; the likeliest first.
        rising: those whose load is expected to rise.
        stable: how many have a stable trend and nothing unlikely: there energy goes first.
        likelihood: the highest anomaly likelihood of any container, 0 to 1.
        unnamed: containers that had no room in the lists.
        advised: what should be done in advance, the most pressing first, at most `MOST_ADVISED`.
        degraded: why the forecasts rest on less than they should, or why there are none; empty when all is well.
    """

    containers: int = 0
    resilience: tuple[str, ...] = ()
    rising: tuple[str, ...] = ()
    stable: int = 0
    likelihood: float = 0.0
    unnamed: int = 0
    advised: tuple[PlacementAdvice, ...] = ()
    degraded: str = ""
