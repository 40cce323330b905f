"""Telemetry made ready for forecasting: what is missing, and what belongs to a process that has since been restarted.

Masks, not zeros. A missing sample is carried from the last one that was taken, and the models see how old it is; what
lies before a restart is as good as not taken, because a new process starts with an empty heap and an empty past.

A container counts as restarted at a sample when its address space and its resident memory both fall below a quarter of
what they were at the sample before, or when resident memory falls below half across a gap in which nothing was measured
at all. (A rate over counters shows a reset as a gap already: adapters write NaN there.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.telemetry import METRICS, Metric

Floats = NDArray[np.float32]

_RSS = METRICS.index(Metric.MEMORY_RSS)
_VSIZE = METRICS.index(Metric.MEMORY_VSIZE)
_FALL = 0.25
_FALL_IN_GAP = 0.5


@dataclass(frozen=True, eq=False)
class Frame:
    """N windows of W samples without holes.

    Attributes:
        filled: float32 (N, W, 12); the last sample taken is carried forward, the first one backward; 0 where a metric
            was never taken in the window.
        age: int32 (N, 12), steps since the newest sample taken; W where there is none.
        taken: int32 (N, 12), samples taken.
    """

    filled: Floats
    age: NDArray[np.int32]
    taken: NDArray[np.int32]


def restarts(values: Floats) -> NDArray[np.bool_]:
    """(N, W) true at the first sample of a new process, for samples (N, W, 12)."""
    rss, vsize = values[..., _RSS], values[..., _VSIZE]
    found = np.zeros(values.shape[:2], dtype=bool)
    with np.errstate(invalid="ignore"):  # NaN compares false: no verdict
        found[:, 1:] = (rss[:, 1:] < _FALL * rss[:, :-1]) & (vsize[:, 1:] < _FALL * vsize[:, :-1])
    silent = np.asarray(np.isnan(values).all(axis=2))
    # First samples after a silence that is not the window's beginning.
    first = np.zeros_like(found)
    first[:, 1:] = silent[:, :-1] & ~silent[:, 1:]
    for i, t in np.argwhere(first).tolist():
        earlier = rss[i, :t]
        before = earlier[~np.isnan(earlier)]
        if before.size and rss[i, t] < _FALL_IN_GAP * before[-1]:
            found[i, t] = True
    return found


def framed(values: Floats) -> Frame:
    """The frame of samples (N, W, 12), NaN where nothing was taken."""
    n, width, _ = values.shape
    born = restarts(values)
    if born.any():
        start = np.where(born, np.arange(width), 0).max(axis=1)
        values = np.where(np.arange(width)[None, :, None] < start[:, None, None], np.float32(np.nan), values)
    missing = np.isnan(values)
    taken = width - missing.sum(axis=1)
    filled = np.ascontiguousarray(values, dtype=np.float32)
    age = np.zeros((n, values.shape[2]), dtype=np.int32)
    holes = np.flatnonzero(missing.any(axis=(0, 1)))
    if holes.size:
        filled = filled.copy()
        steps = np.arange(width, dtype=np.int32)[None, :, None]
        gone = missing[..., holes]
        newest = np.where(gone, np.int32(-1), steps)
        age[:, holes] = width - 1 - newest.max(axis=1)
        np.maximum.accumulate(newest, axis=1, out=newest)
        first = np.argmin(gone, axis=1)[:, None, :]  # 0 where all or none are missing
        source = np.where(newest < 0, first, newest)
        filled[..., holes] = np.nan_to_num(np.take_along_axis(filled[..., holes], source, axis=1), nan=0.0)
    return Frame(filled, age, taken.astype(np.int32))


def sliding(values: Floats, width: int) -> Floats:
    """(T, width, 12): for each of T samples (T, 12) the window that ends there; NaN before the first sample."""
    padding = np.full((width - 1, values.shape[1]), np.nan, dtype=np.float32)
    view = np.lib.stride_tricks.sliding_window_view(np.concatenate([padding, values]), width, axis=0)
    return np.ascontiguousarray(view.transpose(0, 2, 1))


def last_samples(values: Floats, width: int) -> Floats:
    """(N, width, 12): the newest `width` samples of (N, T, 12); NaN before the first when there are fewer."""
    n, length, metrics = values.shape
    if length >= width:
        return values[:, length - width :]
    padding = np.full((n, width - length, metrics), np.nan, dtype=np.float32)
    return np.concatenate([padding, values], axis=1)
