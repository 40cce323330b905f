"""From scores to verdicts, without the networks: whoever asks a remote replica needs this, and no torch.

>>> verdicts, degraded = reach_verdicts(window, scores)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyVerdict, Driver
from natwork_ray.domain.telemetry import METRICS, TelemetryWindow
from natwork_ray.profiling.profile import Floats

# Robust standard deviations that the newest sample must show for a flag to stand.
MIN_EVIDENCE = 1.0
N_DRIVERS = 3


@dataclass(frozen=True, eq=False)
class Scores:
    """What the two stages say of N windows.

    Attributes:
        p_anomalous: float32 (N,), stage 1; 0 where not scored.
        kinds: int8 (N,), index into `STAGE_2_CLASSES`; `FALSE_POSITIVE` (normal) where stage 1 did not flag.
        confidence: float32 (N,), probability of that class; where stage 1 did not flag, its probability of "normal".
        deviations: float32 (N, 12), newest sample against the profile, robust standard deviations; NaN where missing.
        flagged: bool (N,), stage 1 at its threshold, with evidence.
        scored: bool (N,), false where the newest sample holds nothing that the profile knows.
        contributions: float32 (N, 12), how much each metric pushed stage 1 towards "anomalous", in log odds; without
            NaN, and 0 where not flagged.
    """

    p_anomalous: Floats
    kinds: NDArray[np.int8]
    confidence: Floats
    deviations: Floats
    flagged: NDArray[np.bool_]
    scored: NDArray[np.bool_]
    contributions: Floats


class Assessment(NamedTuple):
    """Verdicts on the flagged containers of a window, and the containers whose silence proves nothing.

    `degraded` names containers that were not scored (nothing known in the newest sample) or were scored against the
    fleet-wide profile because their service has none of its own. The latter may have a verdict as well.
    """

    verdicts: tuple[AnomalyVerdict, ...]
    degraded: tuple[str, ...]


def reach_verdicts(window: TelemetryWindow, scores: Scores, *, known: NDArray[np.bool_] | None = None) -> Assessment:
    """Scores as verdicts, with the metrics that drove them.

    Args:
        window: what was scored.
        scores: what a detector's `score` said of it.
        known: (N,) `ProfileBook.known`: false where a profile was stood in. By default all have their own.
    """
    own_profile = np.ones(len(scores.scored), dtype=bool) if known is None else known
    found = tuple(
        AnomalyVerdict(
            container=window.containers[i],
            at_s=window.end_s,
            score=float(scores.p_anomalous[i]),
            kind=STAGE_2_CLASSES[scores.kinds[i]],
            confidence=float(scores.confidence[i]),
            drivers=drivers(scores.deviations[i], scores.contributions[i]),
        )
        for i in np.flatnonzero(scores.flagged)
    )
    degraded = tuple(window.containers[i] for i in np.flatnonzero(~scores.scored | ~own_profile))
    return Assessment(found, degraded)


def drivers(deviating: Floats, contributions: Floats) -> tuple[Driver, ...]:
    """The metrics that drove one verdict, at most three; from deviations (12,) and contributions (12,).

    Only metrics that stand out now are named: those at least `MIN_EVIDENCE` away, the largest push towards "anomalous"
    first, then the farthest.
    """
    size = np.abs(np.nan_to_num(deviating, nan=0.0))
    order = np.lexsort((-size, -np.maximum(contributions, 0.0)))
    named = [int(k) for k in order if size[k] >= MIN_EVIDENCE][:N_DRIVERS]
    return tuple(
        Driver(metric=str(METRICS[k]), deviation=float(deviating[k]), contribution=float(contributions[k]))
        for k in named
    )
