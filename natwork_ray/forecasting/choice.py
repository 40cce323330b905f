"""Which model forecasts which container: by skill on data it was not trained on, with naive as the floor.

Naive ("no change") cannot be beaten on every container: memory that stands still, or moves once an hour, leaves nothing
to learn. So for each service, metric and horizon a model has to earn its place on out-of-fold forecasts, and what it
says is shrunk towards "no change" as far as the same forecasts suggest:

- evidence is relative to what naive errs in the same run: every run counts alike, and one in which memory jumped by a
  gigabyte does not outvote the others;
- a candidate's factor f is what minimises the squared error of f * change on the service's recordings, pulled towards
  the median factor of all services (a prior worth `PRIOR` recordings: a global model that is too bold is so everywhere)
  and lowered by a margin of caution that shrinks with the number of recordings. Any factor between 0 and twice the best
  one leaves the skill positive, so a low factor is the safe side;
- a candidate whose skill with that factor is below `margin` is not taken. Where there are `MANY_RECORDINGS` or more, it
  must stay positive whichever is left out; where there are `MANY_RUNS` or more, none of them may lose more than half a
  per cent.
  Then naive is taken;
- of those left the one with the highest skill is taken.

For services that nobody has seen, services take the place of runs and recordings, the lowest quarter of their factors
counts, and half of that is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.forecasts import ForecastModel
from natwork_ray.forecasting.references import Doubles

MODELS: tuple[ForecastModel, ...] = get_args(ForecastModel)
NAIVE, SEASONAL, BOOSTED, LSTM = range(4)
PRIOR = 3.0
MANY_RECORDINGS = 8
MANY_RUNS = 3
# Share taken off a factor that rests on one recording; divided by the root of their number.
_CAUTION = 0.3
# Of naive's squared error in a run, what a candidate may lose there.
_LOSS = 0.005
_UNSEEN = 0.5


@dataclass(frozen=True)
class Chosen:
    """Index into `MODELS`, the factor of its change, and its skill out of fold (0 for naive)."""

    model: int = NAIVE
    factor: float = 0.0
    skill: float = 0.0


@dataclass(frozen=True, eq=False)
class _Evidence:
    """Sums per recording: of c^2, c y and y^2, for a forecast change c and the change y that came.

    Each is relative to the run's sum of y^2; `run` is the place of each recording's run.
    """

    power: Doubles
    agreement: Doubles
    still: Doubles
    run: NDArray[np.intp]

    @classmethod
    def of(cls, change: Doubles, forecast: Doubles, recording: NDArray[np.intp], run_of: NDArray[np.intp]) -> _Evidence:
        known = ~np.isnan(change) & ~np.isnan(forecast)
        names, place = np.unique(recording[known], return_inverse=True)
        _, run = np.unique(run_of[names], return_inverse=True)
        y, c = change[known], forecast[known]
        power, agreement, still = (np.bincount(place, weights=w, minlength=len(names)) for w in (c * c, c * y, y * y))
        unit = np.bincount(run, weights=still)[run] if len(names) else np.zeros(0)
        moved = unit > 0  # a run in which nothing moved says nothing
        unit = unit[moved]
        return cls(power[moved] / unit, agreement[moved] / unit, still[moved] / unit, run[moved].astype(np.intp))

    @property
    def factor(self) -> float:
        """What minimises the squared error."""
        power = float(self.power.sum())
        return float(self.agreement.sum()) / power if power > 0 else 0.0

    def shrunk(self, usual: float) -> float:
        """The factor to use, given that of all services."""
        if not self.power.sum() > 0:
            return 0.0
        weight = PRIOR * float(self.power.mean())
        pulled = (float(self.agreement.sum()) + weight * usual) / (float(self.power.sum()) + weight)
        return float(np.clip(pulled, 0.0, 1.0) * (1.0 - _CAUTION / np.sqrt(len(self.power))))

    def skill(self, factor: float, *, margin: float) -> float:
        """Skill of factor * c; 0 where it does not earn its place."""
        if not self.still.sum() > 0:
            return 0.0
        # Naive's squared error less the candidate's: y^2 - (y - f c)^2.
        gain = 2 * factor * self.agreement - factor**2 * self.power
        skill = float(gain.sum() / self.still.sum())
        if skill < margin:
            return 0.0
        if len(gain) >= MANY_RECORDINGS and gain.sum() <= gain.max():
            return 0.0
        by_run = np.bincount(self.run, weights=gain)
        if np.count_nonzero(np.bincount(self.run)) >= MANY_RUNS and (by_run < -_LOSS).any():
            return 0.0
        return skill


def choose(
    change: Doubles,
    candidates: Sequence[tuple[int, Doubles]],
    service: NDArray[np.intp],
    recording: NDArray[np.intp],
    run_of: NDArray[np.intp],
    services: int,
    *,
    margin: float,
) -> tuple[Chosen, ...]:
    """The choice for each of `services` services, and last the one for services not seen.

    Args:
        change: what came, (M,), in units of reach; NaN where unknown.
        candidates: index into `MODELS` and forecast changes (M,), out of fold, in units of reach.
        service: (M,) whose row it is, below `services`.
        recording: (M,) place of the recording.
        run_of: the run of each recording, by place.
        services: how many there are.
        margin: skill that is worth leaving naive for.
    """
    best = [Chosen() for _ in range(services + 1)]
    for model, forecast in candidates:
        rows = [service == s for s in range(services)]
        own = [_Evidence.of(change[own], forecast[own], recording[own], run_of) for own in rows]
        known = [each for each in own if each.power.sum() > 0 and each.still.sum() > 0]
        if not known:
            continue
        factors = [each.factor for each in known]
        usual = float(np.clip(np.median(factors), 0.0, 1.0))
        for s, evidence in enumerate(own):
            factor = evidence.shrunk(usual)
            skill = evidence.skill(factor, margin=margin)
            if skill > best[s].skill:
                best[s] = Chosen(model, factor, skill)
        # A service that nobody has seen is like one of these, each of which counts alike. That every one of them gains
        # is more than can be asked: they are recordings of one run here.
        sums = [np.array([getattr(e, part).sum() for e in known]) for part in ("power", "agreement", "still")]
        power, agreement, still = (part / sums[2] for part in sums)
        fleet = _Evidence(power, agreement, still, np.zeros(len(known), dtype=np.intp))
        factor = _UNSEEN * min(fleet.shrunk(usual), float(np.clip(np.quantile(factors, 0.25), 0.0, 1.0)))
        skill = fleet.skill(factor, margin=margin)
        if skill > best[-1].skill:
            best[-1] = Chosen(model, factor, skill)
    return tuple(best)
