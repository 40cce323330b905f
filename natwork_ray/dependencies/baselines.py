"""What a ranking of causes has to beat: the largest deviation alone, a robust scorer after BARO, a random walk, and
chance.

Each gives one score per container; only the walk uses the dependency graph.
"""

from __future__ import annotations

import numpy as np

from natwork_ray.dependencies.deviation import Evidence, Floats, over_time
from natwork_ray.dependencies.graph import DependencyGraph
from natwork_ray.domain.telemetry import TelemetryWindow

_STEPS = 60  # of the walk; with a restart of 0.15 nothing of the start is left after that
_RESTART = 0.15
_BACK = 0.1  # weight of a step from a callee back to a caller


def largest_deviation(evidence: Evidence) -> Floats:
    """(N,) the largest lasting deviation of any metric, with our tail-aware scale: the ranking without its graph."""
    return evidence.farthest


def robust_scorer(normal: TelemetryWindow, incident: TelemetryWindow) -> Floats:
    """(N,) the largest |x - median| / interquartile range of any metric and sample, in raw units.

    After the robust scorer of BARO (Pham, Ha, Zhang; FSE 2024), which takes this per metric; the best metric speaks for
    its container here. As scikit-learn's robust scaler does, a range of zero counts as one.
    """
    raw = normal.values.astype(np.float64)
    low, centre, high = (over_time(raw, q) for q in (0.25, 0.5, 0.75))
    centre = np.where(np.isnan(raw).all(axis=1), np.nan, centre)  # what was never measured deviates from nothing
    spread = np.where(high > low, high - low, 1.0)
    away = np.abs(incident.values.astype(np.float64) - centre[:, None]) / spread[:, None]
    return np.asarray(np.nan_to_num(away, nan=0.0).max(axis=(1, 2)))


def random_walk(evidence: Evidence, graph: DependencyGraph) -> Floats:
    """(N,) how often a random walker with restarts is found at each container.

    From a container it goes on to those that it calls, by their deviation, seldom back to a caller, or stays as far as
    it deviates more than all that it calls; it restarts anywhere, by deviation (as MonitorRank and its successors do).
    """
    size = evidence.farthest
    calls = graph.matrix(evidence.containers)
    total = float(size.sum())
    if total <= 0:
        return np.zeros(len(size))
    forward = calls * size[None, :]
    steps = forward + _BACK * calls.T * size[None, :]
    stay = np.maximum(size - forward.max(axis=1, initial=0.0), 0.0)
    steps += np.diag(np.where(steps.sum(axis=1) + stay > 0, stay, 1.0))
    steps /= steps.sum(axis=1, keepdims=True)
    start = place = size / total
    for _ in range(_STEPS):
        place = (1 - _RESTART) * place @ steps + _RESTART * start
    return np.asarray(place)
