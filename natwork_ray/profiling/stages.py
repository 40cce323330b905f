"""The two stages of a detector, whatever they are made of, and those of the detector `best`.

Stage 1 of `best` is an ensemble of boosted trees on `profiling.features`, with extremely randomised splits, many small
steps and half of the rows per tree: between a forest and boosting. On recorded services this beat networks, forests and
ordinary boosting whenever runs, not samples, were split (docs/profiling.md). Its raw sums are turned into probabilities
by two numbers learnt from runs that the trees had not seen.

    >>> stage = TreeStage(text, calibration=(1.4, 0.2))
    >>> stage.probability(observe(values, references)).shape
    (N,)
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.telemetry import N_METRICS
from natwork_ray.profiling.features import FEATURES, METRIC_OF, Observed
from natwork_ray.profiling.profile import Floats
from natwork_ray.trees.attribution import Paths
from natwork_ray.trees.engines import path_sums, raw_sums

_UNKNOWN = STAGE_2_CLASSES.index(AnomalyKind.UNKNOWN)


class StageOne(Protocol):
    """Is it anomalous?"""

    def probability(self, observed: Observed) -> Floats:
        """(N,) probability of "anomalous", 0 to 1."""
        ...

    def contributions(self, observed: Observed) -> Floats:
        """(N, 12) how much each metric pushed towards "anomalous", in log odds."""
        ...


class StageTwo(Protocol):
    """Which anomaly is it, and did anything unknown happen?"""

    @property
    def history(self) -> int:
        """Samples that it makes use of; it takes fewer."""
        ...

    def novel(self, recent: Floats) -> NDArray[np.bool_]:
        """(N,) true where deviations (N, T, 12) left normal operation without any label's help."""
        ...

    def name(self, deviating: Floats) -> tuple[NDArray[np.int8], Floats]:
        """Kinds and confidence (M,) of deviations (M, T, 12), newest last, NaN where missing."""
        ...


class TreeStage:
    """Stage 1 by trees.

    Args:
        text: LightGBM's text of trees on `FEATURES`, trimmed.
        calibration: slope and intercept that turn the trees' raw sum into log odds.

    Raises:
        InputError: the text is not one that our training makes.
    """

    def __init__(self, text: str, calibration: tuple[float, float]) -> None:
        self.text = text
        self._trees = raw_sums(text, feature_names=FEATURES)
        self._pushes = path_sums(Paths.of(text), groups=METRIC_OF, count=N_METRICS)
        self._slope, self._intercept = calibration

    def probability(self, observed: Observed) -> Floats:
        """(N,) calibrated probability of "anomalous"."""
        return self.calibrated(self._trees(observed.inputs))

    def calibrated(self, raw: NDArray[np.float64]) -> Floats:
        """Probabilities (N,) of raw log odds (N,)."""
        return (1.0 / (1.0 + np.exp(-(self._slope * raw + self._intercept)))).astype(np.float32)

    def contributions(self, observed: Observed) -> Floats:
        """(N, 12): contributions along the trees' paths, features summed per metric, in calibrated log odds."""
        return np.asarray(self._slope * self._pushes(observed.inputs), dtype=np.float32)


class Unnamed:
    """No stage 2: whatever stage 1 flags is Unknown. For measuring stage 1 alone."""

    history = 1

    def novel(self, recent: Floats) -> NDArray[np.bool_]:
        """(N,) nothing."""
        return np.zeros(len(recent), dtype=bool)

    def name(self, deviating: Floats) -> tuple[NDArray[np.int8], Floats]:
        """Unknown, with full confidence in knowing nothing."""
        return np.full(len(deviating), _UNKNOWN, dtype=np.int8), np.ones(len(deviating), dtype=np.float32)
