"""From scores to rows: figures averaged over seeds, and an interval over recordings.

A row over several seeds is their mean, with the F1 of each beside it; none is picked. The interval draws recordings,
not rows (rows of one recording are alike), 2,000 times with a fixed seed, and averages over the seeds inside each draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.values import value
from natwork_ray.profiling.evaluation import binary_metrics

Bools = NDArray[np.bool_]
UNDISCLOSED = "undisclosed"
_RESAMPLES = 2000
_BOOTSTRAP_SEED = 7


@value
class FigureRow:
    """One model under one split.

    Attributes:
        accuracy, precision, recall, f1: of the class "anomalous" where two classes are told apart, else weighted by
            how often a class occurs.
        auc: area under the ROC curve of the scores, pooled over folds; None where there are no scores.
        f1_ci: 95 % interval of F1 over recordings; None where it cannot be known.
        f1_of_seeds: F1 of each seed, in the order in which they were asked for.
    """

    model: str
    split: str
    accuracy: float
    precision: float
    recall: float
    f1: float
    auc: float | None
    f1_ci: tuple[float, float] | None
    f1_of_seeds: tuple[float, ...] = ()


def printed(model: str, accuracy: float, precision: float, recall: float, f1: float) -> FigureRow:
    """A row of the deliverable, as printed: neither split nor interval is stated there."""
    return FigureRow(
        model=model,
        split=UNDISCLOSED,
        accuracy=accuracy,
        precision=precision,
        recall=recall,
        f1=f1,
        auc=None,
        f1_ci=None,
    )


def binary_row(
    model: str,
    split: str,
    truth: Bools,
    scores: Sequence[NDArray[np.floating]],
    flagged: Sequence[Bools],
    unit: NDArray[np.intp],
) -> FigureRow:
    """Figures of one or more seeds against truth (M,); `unit` (M,) says which recording a row belongs to."""
    reached = [binary_metrics(truth, flags.astype(np.float64), 0.5) for flags in flagged]
    ranked = [binary_metrics(truth, score, 0.0).auc for score in scores]
    return FigureRow(
        model=model,
        split=split,
        accuracy=_mean([r.accuracy for r in reached]),
        precision=_mean([r.precision for r in reached]),
        recall=_mean([r.recall for r in reached]),
        f1=_mean([r.f1 for r in reached]),
        auc=_mean(ranked),
        f1_ci=binary_interval(truth, flagged, unit),
        f1_of_seeds=tuple(r.f1 for r in reached),
    )


def binary_interval(truth: Bools, flagged: Sequence[Bools], unit: NDArray[np.intp]) -> tuple[float, float]:
    """95 % bootstrap interval over recordings of F1, averaged over seeds."""
    _, place = np.unique(unit, return_inverse=True)
    draws = drawn_recordings(int(place.max()) + 1)
    every = np.zeros(_RESAMPLES)
    for flags in flagged:
        hit, wrong = (
            draws @ np.bincount(place, weights=w, minlength=draws.shape[1]) for w in (truth & flags, truth != flags)
        )
        every += 2 * hit / np.maximum(2 * hit + wrong, 1)
    return interval(every / len(flagged))


def drawn_recordings(count: int) -> NDArray[np.int64]:
    """(2000, count): how often each of `count` recordings is in each resample."""
    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    return rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)


def interval(resampled: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of resampled figures."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def _mean(figures: Sequence[float]) -> float:
    return float(np.mean(figures))
