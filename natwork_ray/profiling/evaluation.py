"""How well a detector does: per sample, per event, and with an interval that knows runs from samples.

Samples of one run are alike, so a bootstrap over samples would promise too much: recordings (one `LabelledRun` each)
are drawn instead. Folds are made of run names for the same reason. Point-adjusted scores are left out on purpose: they
make a random score look excellent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.labelled import LabelledEvent
from natwork_ray.domain.runs import DetectionScore
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError

Bools = NDArray[np.bool_]
_RESAMPLES = 2000


@value
class BinaryMetrics:
    """Per-sample figures of the class "anomalous", 0 to 1; 0 where there is nothing to divide by."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    auc: float


@value
class EventMetrics:
    """What an operator sees; `event_metrics` says what counts as found and as false.

    Attributes:
        events: number of labelled blocks.
        found: of these, how many were flagged.
        mean_delay_samples: samples from the start of a found event to its first flag; None when none was found.
        false_alarms_per_hour: stray alarms per hour of all recordings together.
    """

    events: int
    found: int
    mean_delay_samples: float | None
    false_alarms_per_hour: float


class Alarm(Protocol):
    """What was said of whom, and when: a verdict or a decision."""

    @property
    def container(self) -> str:
        """Whom it is about."""
        ...

    @property
    def at_s(self) -> float:
        """When, on the backend's clock."""
        ...


def folds_by_run(run_names: Sequence[str], folds: int) -> tuple[tuple[str, ...], ...]:
    """Run names dealt into at most `folds` groups.

    Raises:
        InputError: fewer than two different names: then there is nothing to hold out.
    """
    names = sorted(set(run_names))
    if len(names) < 2:
        raise InputError(
            f"{len(names)} run to split by run", hint="give at least two runs: one to learn from and one to test on"
        )
    count = min(folds, len(names))
    return tuple(tuple(names[i::count]) for i in range(count))


def binary_metrics(truth: Bools, scores: NDArray[np.floating], threshold: float) -> BinaryMetrics:
    """Figures of scores (M,) at a threshold against truth (M,)."""
    flagged = scores >= threshold
    hit = int(np.count_nonzero(truth & flagged))
    precision = hit / max(1, int(np.count_nonzero(flagged)))
    recall = hit / max(1, int(np.count_nonzero(truth)))
    return BinaryMetrics(
        accuracy=float(np.mean(truth == flagged)),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if hit else 0.0,
        auc=auc(truth, scores),
    )


def auc(truth: Bools, scores: NDArray[np.floating]) -> float:
    """Area under the ROC curve, ties counted half; 0.5 when only one class is there."""
    positives = int(np.count_nonzero(truth))
    negatives = len(truth) - positives
    if not positives or not negatives:
        return 0.5
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def best_threshold(truth: Bools, scores: NDArray[np.floating], *, beta: float = 1.0) -> float:
    """The score that, as threshold, maximises F-beta of "anomalous"; the higher one of equals."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    hits = np.cumsum(truth[order])
    flags = np.arange(1, len(scores) + 1)
    weighted = beta**2
    f_beta = (1 + weighted) * hits / (flags + weighted * max(1, int(hits[-1])))
    # A threshold takes all samples of one score, so only the last of equals counts.
    last = np.append(ranked[1:] != ranked[:-1], True)
    best = int(np.argmax(np.where(last, f_beta, -1.0)))
    if best + 1 == len(ranked):
        return float(ranked[best])
    # Half way to the next score: a threshold on a sample's own score would hang on the last bit of that sample.
    return float((float(ranked[best]) + float(ranked[best + 1])) / 2)


def f1_interval(truth: Bools, flagged: Bools, unit: NDArray[np.intp], *, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of F1 over recordings: `unit` (M,) says which recording a sample belongs to."""
    _, place = np.unique(unit, return_inverse=True)
    count = int(place.max()) + 1
    hit, missed, stray = (
        np.bincount(place, weights=w, minlength=count) for w in (truth & flagged, truth & ~flagged, ~truth & flagged)
    )
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    tp, fn, fp = draws @ hit, draws @ missed, draws @ stray
    f1 = 2 * tp / np.maximum(2 * tp + fn + fp, 1)
    low, high = np.quantile(f1, [0.025, 0.975])
    return float(low), float(high)


def vote(flagged: Bools, unit: NDArray[np.intp], *, needed: int, of: int) -> Bools:
    """(M,) true where a sample is flagged, and so are `needed` of the last `of` of its recording, itself included."""
    out = np.zeros_like(flagged)
    for i in np.unique(unit):
        rows = np.flatnonzero(unit == i)
        sums = np.concatenate([np.zeros(of), np.cumsum(flagged[rows])])
        out[rows] = flagged[rows] & (sums[of:] - sums[:-of] >= needed)
    return out


def event_metrics(
    truth: Bools,
    flagged: Bools,
    unit: NDArray[np.intp],
    *,
    step_s: float,
    grace: int = 0,
    opened: Bools | None = None,
) -> EventMetrics:
    """Per-event figures.

    A block of anomalous samples is found when a flag falls inside it, or within `grace` samples after it. A false alarm
    is a stretch of consecutive alarmed samples that touches no block and no such grace.

    Args:
        truth: bool (M,), labels.
        flagged: bool (M,), what finds a block.
        unit: (M,) which recording a sample belongs to.
        step_s: seconds between samples.
        grace: samples.
        opened: bool (M,), alarmed samples; wherever it is flagged, and perhaps longer. By default the flags themselves.
    """
    events = found = false_alarms = 0
    delays: list[int] = []
    alarmed = flagged if opened is None else opened
    order = np.argsort(unit, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(unit[order])) + 1):
        flags = flagged[rows]
        due = np.zeros(len(rows), dtype=bool)
        for start, end in blocks(truth[rows]):
            events += 1
            due[start : end + grace] = True
            inside = np.flatnonzero(flags[start : end + grace])
            if len(inside):
                found += 1
                delays.append(int(inside[0]))
        false_alarms += sum(not due[start:end].any() for start, end in blocks(alarmed[rows]))
    hours = len(truth) * step_s / 3600
    return EventMetrics(
        events=events,
        found=found,
        mean_delay_samples=float(np.mean(delays)) if delays else None,
        false_alarms_per_hour=false_alarms / hours,
    )


def score_events(
    alarms: Sequence[Alarm], truth: Sequence[LabelledEvent], hours: float, grace_s: float
) -> DetectionScore:
    """How alarms fared against what really happened; used for the summary of a run.

    An event is detected when an alarm on its container falls between its start and its end plus `grace_s`. Every alarm
    that falls into no event of its container is a false one.

    Args:
        alarms: decisions or verdicts, in any order.
        truth: what was injected or labelled.
        hours: time watched, the same for all containers; false alarms are per hour of the whole fleet.
        grace_s: how long after its end an event still explains an alarm.

    Raises:
        InputError: `hours` is not positive or `grace_s` is negative.
    """
    if not hours > 0 or not grace_s >= 0:
        raise InputError(f"{hours} hours watched, grace {grace_s} s", hint="hours > 0 and grace >= 0")
    explained: set[int] = set()
    delays: list[float] = []
    for event in truth:
        inside = [
            i
            for i, alarm in enumerate(alarms)
            if alarm.container == event.container and event.start_s <= alarm.at_s <= event.end_s + grace_s
        ]
        explained.update(inside)
        if inside:
            delays.append(min(alarms[i].at_s for i in inside) - event.start_s)
    false_alarms = len(alarms) - len(explained)
    return DetectionScore(
        injected=len(truth),
        detected=len(delays),
        false_alarms=false_alarms,
        false_alarms_per_hour=false_alarms / hours,
        mean_delay_s=float(np.mean(delays)) if delays else None,
    )


@dataclass(frozen=True)
class ConstantThreshold:
    """The simplest detector: one metric beyond one constant. `direction` is +1 for "above", -1 for "below"."""

    metric: int
    direction: int
    threshold: float

    @classmethod
    def fit(cls, samples: NDArray[np.floating], truth: Bools) -> ConstantThreshold:
        """The metric, direction and constant with the best F1 on samples (M, C)."""
        best, best_f1 = cls(0, 1, float("inf")), -1.0
        for metric in range(samples.shape[1]):
            for direction in (1, -1):
                scores = direction * samples[:, metric]
                threshold = best_threshold(truth, scores)
                f1 = binary_metrics(truth, scores, threshold).f1
                if f1 > best_f1:
                    best, best_f1 = cls(metric, direction, threshold), f1
        return best

    def margin(self, samples: NDArray[np.floating]) -> NDArray[np.float64]:
        """(M,) how far samples (M, C) lie beyond the constant; 0 or more is anomalous."""
        return np.asarray(self.direction * samples[:, self.metric] - self.threshold, dtype=np.float64)


def blocks(mask: Bools) -> list[tuple[int, int]]:
    """Half-open index ranges of consecutive true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
