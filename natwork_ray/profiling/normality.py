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

from dataclasses import dataclass

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
# Of a row, seen as pairs of figures: enough to tell services apart.
_SUMMED = slice(0, N_METRICS)
# Rows compared at once, so that they stay in the cache.
_AT_ONCE = 256
# With fewer windows per service than this, one product per window is cheaper than one turn per service.
_FEW = 8
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


@dataclass(frozen=True, eq=False)
class Alike:
    """Which of N rows are the same: `order` (N,) puts them next to each other, `ends` says where each run of them ends.

    Many windows have few services, and one product for all of a service's windows costs far less than one for each.
    """

    order: NDArray[np.intp]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, rows: Floats) -> Alike:
        """Of rows float32 (N, P), P even; rows of another type are all taken for different."""
        count = len(rows)
        if count < 2 or rows.dtype != np.float32:
            return cls(np.arange(count), tuple(range(1, count + 1)))
        bits = (np.ascontiguousarray(rows) if rows.strides[1] != rows.itemsize else rows).view(np.uint64)
        # Equal rows have equal sums. Of rows that have equal sums, all are compared with the first.
        _, first, whose = np.unique(np.add.reduce(bits[:, _SUMMED], axis=1), return_index=True, return_inverse=True)
        table = bits[first]
        for begin in range(0, count, _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            if (bits[part] != table[whose[part]]).any():
                whose = np.unique(bits, axis=0, return_inverse=True)[1].reshape(-1)
                break
        return cls(np.argsort(whose, kind="stable"), tuple(np.cumsum(np.bincount(whose)).tolist()))

    @property
    def first(self) -> NDArray[np.intp]:
        """(R,) one row of each run."""
        return self.order[[0, *self.ends[:-1]]] if self.ends else self.order


def distances(states: Floats, rows: Floats, alike: Alike | None = None) -> Floats:
    """How far states (N, S, 12), saturated, are from normal by rows (N, JOINT_WIDTH): float32 (N, S, 2).

    First log1p of the squared Mahalanobis distance, then the distance to the nearest prototype. `alike` says which rows
    are the same, where that is known.
    """
    count, several, _ = states.shape
    alike = Alike.of(rows) if alike is None else alike
    squares = np.empty((2, count, several), dtype=np.float32)
    if _FEW * len(alike.ends) > count:
        squares[:] = _squares_each(states, rows)
    else:
        sorted_states = states[alike.order].reshape(-1, N_METRICS)
        by_run = np.empty((2, len(sorted_states)), dtype=np.float32)
        begin = 0
        for end, first in zip(alike.ends, alike.first, strict=True):
            span = slice(begin * several, end * several)
            by_run[:, span] = _squares(sorted_states[span], rows[first])
            begin = end
        squares[:, alike.order] = by_run.reshape(squares.shape)
    # Rounding can leave a tiny negative square.
    np.maximum(squares, 0.0, out=squares)
    out = np.empty((count, several, 2), dtype=np.float32)
    out[..., 0] = np.log1p(squares[0])
    out[..., 1] = np.sqrt(squares[1])
    return out


def _squares(states: Floats, row: Floats) -> tuple[Floats, Floats]:
    """Squared distances (M,), Mahalanobis and to the nearest prototype, of states (M, 12) by one row."""
    apart = states - row[_MEAN]
    mahalanobis = np.einsum("mk,mk->m", apart @ row[_PRECISION][_FULL].reshape(N_METRICS, N_METRICS), apart)
    # |x - c|^2 = |x|^2 + 2 (|c|^2 / 2 - x.c): one product instead of a difference per prototype.
    apiece = (-2.0 * row[_PROTOTYPES]).reshape(PROTOTYPES, N_METRICS) @ states.T
    apiece += 2.0 * row[_LENGTHS, None]
    return mahalanobis, np.minimum.reduce(apiece) + np.einsum("mk,mk->m", states, states)


def _squares_each(states: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """The same (N, S) of states (N, S, 12), each window by a row of its own: for services that are hardly repeated."""
    apart = states - rows[:, None, _MEAN]
    precision = rows[:, _PRECISION][:, _FULL].reshape(-1, N_METRICS, N_METRICS)
    prototypes = rows[:, _PROTOTYPES].reshape(-1, PROTOTYPES, N_METRICS)
    products = np.matmul(states, prototypes.transpose(0, 2, 1))
    nearest = 2.0 * (rows[:, None, _LENGTHS] - products).min(axis=2) + np.einsum("nsk,nsk->ns", states, states)
    return np.einsum("nsk,nsk->ns", np.matmul(apart, precision), apart), nearest


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
