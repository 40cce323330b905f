"""Whole recordings judged row by row, as a detector would have judged them live.

Every row is one sample, judged by the causal window that ends there. The first rows have no past of a whole window:
theirs repeats the first row. Work goes in chunks, so that a recording of a million rows takes memory for its verdicts
only.

What is missing is told apart, never taken for normal:

- nothing was measured in a row, or nothing that the profile knows: it is not judged at all;
- a metric was not measured in a row: judged by the others, and said so. Latencies of a moment without requests do not
  count as missing: there was nothing to measure.

    >>> judged = judge_recording(detector, run.values, book.references((run.service,))[0])
    >>> judged.flagged[judged.scored]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind, Driver
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.profiling.alarming import Alarms, raise_alarms
from natwork_ray.profiling.detecting import Detector
from natwork_ray.profiling.profile import Floats
from natwork_ray.profiling.verdicts import N_DRIVERS, drivers
from natwork_ray.profiling.windows import cut

_CHUNK_ROWS = 8192
_THROUGHPUT = METRICS.index(Metric.THROUGHPUT)
_LATENCIES = [METRICS.index(m) for m in (Metric.LATENCY_P50, Metric.LATENCY_P90, Metric.LATENCY_P99)]


@dataclass(frozen=True, eq=False)
class JudgedRows:
    """What a detector says of each of M rows.

    Attributes:
        score: float32 (M,), stage 1; 0 where not scored.
        flagged: bool (M,).
        scored: bool (M,), false where nothing was measured that the profile knows.
        kinds: int8 (M,), index into `STAGE_2_CLASSES`; normal where not flagged.
        missing: bool (M, 12), metrics that should have been measured and were not.
        driven_by: int8 (M, 3), metrics that drove a flag, strongest first; -1 where there are fewer.
        deviations, contributions: float32 (M, 3), of these metrics.
    """

    score: Floats
    flagged: NDArray[np.bool_]
    scored: NDArray[np.bool_]
    kinds: NDArray[np.int8]
    missing: NDArray[np.bool_]
    driven_by: NDArray[np.int8]
    deviations: Floats
    contributions: Floats

    def __len__(self) -> int:
        return len(self.score)

    def kind(self, row: int) -> AnomalyKind | None:
        """Stage 2's answer for a flagged row; None where nothing was flagged."""
        return STAGE_2_CLASSES[self.kinds[row]] if self.flagged[row] else None

    def drivers(self, row: int) -> tuple[Driver, ...]:
        """The metrics that drove a flag, strongest first."""
        return tuple(
            Driver(metric=str(METRICS[k]), deviation=float(d), contribution=float(c))
            for k, d, c in zip(self.driven_by[row], self.deviations[row], self.contributions[row], strict=True)
            if k >= 0
        )

    def unmeasured(self, row: int) -> tuple[str, ...]:
        """Names of the metrics that are missing in a row."""
        return tuple(str(METRICS[k]) for k in np.flatnonzero(self.missing[row]))


def not_measured(values: Floats) -> NDArray[np.bool_]:
    """(M, 12) true where a sample of (M, 12) is missing, but for latencies of moments without requests."""
    missing = np.isnan(values)
    idle = values[:, _THROUGHPUT] == 0.0
    for k in _LATENCIES:
        missing[:, k] &= ~idle
    return missing


def judge_recording(detector: Detector, values: Floats, reference: Floats) -> JudgedRows:
    """Judge all rows of one recording.

    Args:
        detector: trained.
        values: float32 (M, 12), SI units, NaN where not measured.
        reference: (P,), the service's row of `ProfileBook.references`.

    Raises:
        InputError: as `Detector.score`.
    """
    count = len(values)
    found = JudgedRows(
        score=np.zeros(count, dtype=np.float32),
        flagged=np.zeros(count, dtype=bool),
        scored=np.zeros(count, dtype=bool),
        kinds=np.zeros(count, dtype=np.int8),
        missing=not_measured(values),
        driven_by=np.full((count, N_DRIVERS), -1, dtype=np.int8),
        deviations=np.zeros((count, N_DRIVERS), dtype=np.float32),
        contributions=np.zeros((count, N_DRIVERS), dtype=np.float32),
    )
    places = {str(metric): k for k, metric in enumerate(METRICS)}
    length = max(detector.window, detector.history)
    for start in range(0, count, _CHUNK_ROWS):
        end = min(count, start + _CHUNK_ROWS)
        begin = max(0, start - length + 1)
        # `cut` repeats a first row only; rows that merely give the chunk its past are dropped again.
        windows = cut(values[begin:end], length)[start - begin :]
        scores = detector.score(windows, np.broadcast_to(reference, (end - start, len(reference))))
        found.score[start:end] = scores.p_anomalous
        found.flagged[start:end] = scores.flagged
        found.scored[start:end] = scores.scored
        found.kinds[start:end] = scores.kinds
        for i in np.flatnonzero(scores.flagged):
            for place, driver in enumerate(drivers(scores.deviations[i], scores.contributions[i])):
                found.driven_by[start + i, place] = places[driver.metric]
                found.deviations[start + i, place] = driver.deviation
                found.contributions[start + i, place] = driver.contribution
    return found


def alarms_of(detector: Detector, judged: JudgedRows) -> Alarms:
    """Where the detector would call an operator: its alarm rule over its flags; every flag, where it has no rule.

    As in the loop, what stage 2 calls a false positive does not count.
    """
    rule = detector.card.alarm
    counted = judged.flagged & (judged.kinds != STAGE_2_CLASSES.index(AnomalyKind.FALSE_POSITIVE))
    if rule is None:
        return Alarms(counted, counted)
    return raise_alarms(rule, counted, judged.score, np.zeros(len(judged), dtype=np.intp))
