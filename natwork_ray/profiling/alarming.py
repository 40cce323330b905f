"""From flags to alarms: a rule that keeps one-sample spikes, quietens single doubtful flags, and rings once.

Spikes in recorded services last one to six samples (median one), so that a vote over several samples loses them;
without a vote, false alarms double or worse. Hence both: one flag whose score is sure enough, or several flags lately.
And an alarm stays open until nothing has been flagged for a while, so that a flickering score is one alarm, not five.

    fires(t)  = flagged(t), and score(t) >= high or `needed` of the last `of` samples are flagged or an alarm is open
    opens     when it fires; closes after `hold` samples in a row that are not flagged

The numbers are chosen by `fit_rule` on scores of recordings that the detector was not trained on, and travel in the
model's card. The rule is the quickest among those that find as many labelled blocks as any does that rings falsely at
most `budget_per_hour` times. The choice flatters itself, being made on the scores that it is judged by; on the other
hand those come from detectors that saw fewer runs than the final one, and ring more often. On recorded services the
second outweighed the first: training allows them `FALSE_ALARMS_PER_HOUR` by the share of the runs that they saw.

Rules kept:

- A block is found when the alarm *fires* inside it; merely being still open from before does not count.
- A false alarm is an open stretch that touches no labelled block (`evaluation.event_metrics`).
- Only flags vote: an alarm never says more than the verdicts that whoever runs the loop can see.

    >>> rule = fit_rule(truth, flagged, scores, unit, step_s=10.0)
    >>> alarms = raise_alarms(rule, flagged, scores, unit)
    >>> event_metrics(truth, alarms.fires, unit, step_s=10.0, opened=alarms.opened)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.values import value
from natwork_ray.errors import InputError
from natwork_ray.profiling.evaluation import Bools, event_metrics

# What an operator is promised, of all recordings together.
FALSE_ALARMS_PER_HOUR = 1.0
# Of each container of a fleet.
FLEET_FALSE_ALARMS_PER_HOUR = 0.25
MAX_VOTES = 60
_HIGHS = tuple(round(0.3 + 0.05 * i, 2) for i in range(15))
_VOTES = ((2, 2), (2, 3), (3, 3))
# Half a minute at the default step: long enough for a flicker, too short to bridge two events.
_HOLD = 3


@value
class AlarmRule:
    """When flags become an alarm, and when it is over.

    Attributes:
        high: a score from which one flag suffices; above 1 none does.
        needed, of: flags needed among the newest samples, the newest one included.
        hold: samples in a row without a flag that close an open alarm.
    """

    high: float
    needed: int
    of: int
    hold: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.high <= 2.0:
            raise InputError(f"alarm rule with a sure score of {self.high}", hint="use 0 to 1, or 2 for never")
        if not 1 <= self.needed <= self.of <= MAX_VOTES or not 1 <= self.hold <= MAX_VOTES:
            raise InputError(
                f"alarm rule needs {self.needed} of {self.of} flags and holds for {self.hold}",
                hint=f"use 1 <= needed <= of <= {MAX_VOTES} and 1 <= hold <= {MAX_VOTES}",
            )


@dataclass(frozen=True, eq=False)
class Alarms:
    """What a rule makes of M scored samples.

    Attributes:
        fires: bool (M,), evidence for an alarm now: it opens here, or is confirmed by a flag.
        opened: bool (M,), an alarm is open; wherever it fires, and until it closes.
    """

    fires: Bools
    opened: Bools


def raise_alarms(rule: AlarmRule, flagged: Bools, scores: NDArray[np.floating], unit: NDArray[np.intp]) -> Alarms:
    """Apply a rule to flags and scores (M,), each recording (`unit`, (M,)) for itself and in its order."""
    fires, opened = np.zeros(len(flagged), dtype=bool), np.zeros(len(flagged), dtype=bool)
    order = np.argsort(unit, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(unit[order])) + 1):
        flags = flagged[rows]
        counted = np.concatenate([np.zeros(rule.of, dtype=np.intp), np.cumsum(flags)])
        voted = counted[rule.of :] - counted[: -rule.of] >= rule.needed
        opened[rows] = _held(flags & (voted | (scores[rows] >= rule.high)), flags, rule.hold)
        fires[rows] = opened[rows] & flags
    return Alarms(fires, opened)


def fit_rule(
    truth: Bools,
    flagged: Bools,
    scores: NDArray[np.floating],
    unit: NDArray[np.intp],
    *,
    step_s: float,
    budget_per_hour: float = FALSE_ALARMS_PER_HOUR,
) -> AlarmRule:
    """The rule that finds most labelled blocks at no more than `budget_per_hour` false alarms.

    Of equals the quicker one, then the one with fewer false alarms, then the more demanding one. Where no rule keeps
    the budget, the quietest.

    Args:
        truth: bool (M,), labels.
        flagged: bool (M,), scores at the detector's threshold.
        scores: (M,), of detectors that were not trained on the sample's run.
        unit: (M,) which recording a sample belongs to.
        step_s: seconds between samples.
        budget_per_hour: false alarms per hour of all recordings.
    """

    def rank(rule: AlarmRule) -> tuple[float, ...]:
        alarms = raise_alarms(rule, flagged, scores, unit)
        reached = event_metrics(truth, alarms.fires, unit, step_s=step_s, opened=alarms.opened)
        false = reached.false_alarms_per_hour
        delay = reached.mean_delay_samples or 0.0
        return (max(0.0, false - budget_per_hour), -reached.found, delay, false, -rule.high, -rule.needed)

    rules = [AlarmRule(high=h, needed=needed, of=of, hold=_HOLD) for h, (needed, of) in product(_HIGHS, _VOTES)]
    return min(rules, key=rank)


def _held(starts: Bools, flags: Bools, hold: int) -> Bools:
    """(T,) true from a start until `hold` samples in a row are not flagged."""
    place = np.arange(len(starts))
    started = np.maximum.accumulate(np.where(starts, place, -1))
    quiet = place - np.maximum.accumulate(np.where(flags, place, -1))
    # Closed for good by the first `hold` quiet samples: a flag after them does not reopen it, only a start does.
    closed = np.maximum.accumulate(np.where(quiet >= hold, place, -1))
    return np.asarray(started > closed)
