"""The normal hour as a whole: how the metrics of a service move together, and which states it was in.

Centre and scale look at one metric at a time. Much of what is wrong looks harmless metric by metric: CPU without
requests, a trickle of traffic where a service either rests or works. Two summaries of the commissioning hour's
deviations tell such states apart, without a single anomaly label:

- the precision matrix of the metrics (with a ridge, so that metrics which never moved do not become infinitely
  precise), for the Mahalanobis distance;
- a few prototypes, the k-means centres of the hour, for the distance to the nearest normal state.

Both are small, so that they travel with the profile as one row of numbers (`JOINT_WIDTH`).

    >>> row = learn_joint(deviating)                            # (M, 12) deviations of the hour -> (JOINT_WIDTH,)
    >>> distances(states, rows)                                 # (N, S, 12) states, (N, JOINT_WIDTH) -> (N, S, 2)

Left out: densities, histograms and isolation forests of the hour. They were tried and added nothing to these two
(docs/profiling.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.telemetry import N_METRICS

Floats = NDArray[np.float32]

PROTOTYPES = 32
# Beyond this a deviation says only "far": one wild metric must not drown the others.
SATURATION = 8.0
_RIDGE = 0.05
_TRIANGLE = np.triu_indices(N_METRICS)
_MEAN = slice(0, N_METRICS)
_PRECISION = slice(N_METRICS, N_METRICS + len(_TRIANGLE[0]))
_PROTOTYPES = slice(_PRECISION.stop, _PRECISION.stop + PROTOTYPES * N_METRICS)
# Half of each prototype's squared length, so that the nearest one is found by a product and a sum.
_LENGTHS = slice(_PROTOTYPES.stop, _PROTOTYPES.stop + PROTOTYPES)
JOINT_WIDTH = _LENGTHS.stop
# Largest entry that `learn_joint` can give: a prototype at saturation in every metric.
JOINT_LIMIT = N_METRICS * SATURATION**2 / 2 + 1.0
# Place in the triangle of each entry of the full, symmetric matrix, row by row.
_PLACES = np.zeros((N_METRICS, N_METRICS), dtype=np.intp)
_PLACES[_TRIANGLE] = _PLACES.T[_TRIANGLE] = np.arange(len(_TRIANGLE[0]))
_FULL = _PLACES.reshape(-1)
_MAX_SAMPLES = 2048
_ROUNDS = 15
_SEED = 0


def learn_joint(deviating: Floats) -> Floats:
    """The summaries of deviations (M, 12), NaN where missing (taken as usual), as one row (JOINT_WIDTH,).

    Deterministic. Without samples: metrics that move on their own, and the usual state as the only prototype.
    """
    states = saturated(deviating).astype(np.float64)
    row = np.zeros(JOINT_WIDTH)
    if not len(states):
        row[_PRECISION] = np.eye(N_METRICS)[_TRIANGLE]
        return row.astype(np.float32)
    mean = states.mean(axis=0)
    covariance = (states - mean).T @ (states - mean) / len(states) + _RIDGE * np.eye(N_METRICS)
    row[_MEAN] = mean
    row[_PRECISION] = np.linalg.inv(covariance)[_TRIANGLE]
    prototypes = _prototypes(states)
    row[_PROTOTYPES] = prototypes.reshape(-1)
    row[_LENGTHS] = (prototypes**2).sum(axis=1) / 2
    return row.astype(np.float32)


def saturated(deviating: Floats) -> Floats:
    """Deviations as states: missing metrics as usual (0), clipped at `SATURATION`."""
    return np.asarray(np.clip(np.nan_to_num(deviating, nan=0.0), -SATURATION, SATURATION), dtype=np.float32)


def distances(states: Floats, rows: Floats) -> Floats:
    """How far states (N, S, 12), saturated, are from normal by rows (N, JOINT_WIDTH): float32 (N, S, 2).

    First log1p of the squared Mahalanobis distance, then the distance to the nearest prototype.
    """
    apart = states - rows[:, None, _MEAN]
    precision = rows[:, _PRECISION][:, _FULL].reshape(-1, N_METRICS, N_METRICS)
    squared = (np.matmul(apart, precision) * apart).sum(axis=2)
    prototypes = rows[:, _PROTOTYPES].reshape(-1, PROTOTYPES, N_METRICS)
    # |x - c|^2 = |x|^2 + 2 (|c|^2 / 2 - x.c): one product per window instead of a difference per prototype.
    products = np.matmul(states, prototypes.transpose(0, 2, 1))
    nearest = 2.0 * (rows[:, None, _LENGTHS] - products).min(axis=2) + np.einsum("nsk,nsk->ns", states, states)
    out = np.empty((*squared.shape, 2), dtype=np.float32)
    # Rounding can leave a tiny negative square.
    out[..., 0] = np.log1p(np.maximum(squared, 0.0))
    out[..., 1] = np.sqrt(np.maximum(nearest, 0.0))
    return out


def _prototypes(states: NDArray[np.float64]) -> NDArray[np.float64]:
    """k-means centres (PROTOTYPES, 12) of states (M, 12); repeated where there are fewer different states."""
    rng = np.random.default_rng(_SEED)
    if len(states) > _MAX_SAMPLES:
        states = states[np.sort(rng.choice(len(states), _MAX_SAMPLES, replace=False))]
    different = np.unique(states, axis=0)
    if len(different) <= PROTOTYPES:
        return np.asarray(np.resize(different, (PROTOTYPES, N_METRICS)))
    centres = different[np.sort(rng.choice(len(different), PROTOTYPES, replace=False))]
    for _ in range(_ROUNDS):
        squared = (centres**2).sum(axis=1) - 2.0 * states @ centres.T
        nearest = squared.argmin(axis=1)
        counts = np.bincount(nearest, minlength=PROTOTYPES)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, states)
        filled = counts > 0
        centres[filled] = sums[filled] / counts[filled, None]
    return np.asarray(centres)
