"""A dependency graph out of telemetry alone, for applications that nobody described and whose flows nobody measures.

Two containers that depend on each other move together also when everything else is held still. So:

1. Each container is one series of activity: the first measured of request throughput, received bytes and CPU, in log
   units, standardised robustly, and differenced (levels and slow waves make everything correlate with everything).
2. Partial correlations of all pairs given all others come from the inverse of the shrunk covariance matrix (shrinkage
   after Schaefer and Strimmer towards the diagonal, so that it also exists with more containers than samples).
3. Each is tested against zero (Fisher's z, with the number of samples reduced for what autocorrelation is left);
   the false discovery rate over all pairs is held at `fdr` (Benjamini and Hochberg).
4. An edge has no direction: within one sample a call takes no time. Lagged partial correlations were tried and pointed
   the wrong way in 39 of 52 cases of the emulation (trouble travels against the calls, demand along them), so both
   directions are kept, at half the weight.

What it can't tell: calls that never vary (health checks), dependencies that only show in trouble, two callees of one
caller from a chain when the caller is not in the data, anything at all from one sample a minute, and who is to blame in
a shared node. Neighbours on an overloaded node look like dependants. `docs/dependencies.md` gives precision and recall
against known graphs; both are far from 1.

    >>> graph = infer_graph(normal_hour)
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from natwork_ray.dependencies.deviation import SCALE_FLOOR, UNITS, Floats
from natwork_ray.dependencies.graph import Call, DependencyGraph, Origin
from natwork_ray.domain.telemetry import METRICS, Metric, TelemetryWindow
from natwork_ray.errors import InputError

MIN_SAMPLES = 60
MOST_CONTAINERS = 500  # the matrix is inverted: 500 containers take a fraction of a second
_ACTIVITY = tuple(METRICS.index(m) for m in (Metric.THROUGHPUT, Metric.NETWORK_RX, Metric.CPU))
_MEASURED = 0.8  # of the samples that a series needs
_EITHER_WAY = 0.5


def infer_graph(normal: TelemetryWindow, *, fdr: float = 0.05) -> DependencyGraph:
    """The graph of a window of normal operation (N, T, 12); an hour at least is advisable.

    Args:
        normal: normal operation. An incident makes everything correlate with everything.
        fdr: expected share of false edges among those given, between 0 and 1.

    Raises:
        InputError: fewer than 60 samples, more than 500 containers, `fdr` out of range.
    """
    if normal.length < MIN_SAMPLES or len(normal.containers) > MOST_CONTAINERS or not 0.0 < fdr < 1.0:
        raise InputError(
            f"{len(normal.containers)} containers, {normal.length} samples, fdr {fdr}",
            hint=f"at most {MOST_CONTAINERS} containers, {MIN_SAMPLES} samples or more, fdr between 0 and 1",
        )
    series, rows = _activity(normal)
    calls: list[Call] = []
    if len(rows) >= 2:
        partial = _partial_correlations(series)
        samples = _effective_samples(series)
        edges = _discoveries(partial, samples, fdr)
        for i, j in zip(*np.nonzero(np.triu(edges)), strict=True):
            a, b = normal.containers[rows[i]], normal.containers[rows[j]]
            calls += [Call(caller=x, callee=y, weight=_EITHER_WAY, origin=Origin.INFERRED) for x, y in ((a, b), (b, a))]
    return DependencyGraph(containers=normal.containers, calls=tuple(calls))


def _activity(window: TelemetryWindow) -> tuple[Floats, list[int]]:
    """(M, T - 1) standardised changes, and the rows of the containers that have one."""
    logs = np.log1p(window.values.astype(np.float64) / UNITS)
    found, rows = [], []
    for i in range(len(window.containers)):
        for k in _ACTIVITY:
            column = logs[i, :, k]
            measured = ~np.isnan(column)
            if measured.mean() < _MEASURED or np.ptp(column[measured]) < 1e-9:
                continue
            moments = np.arange(len(column))
            change = np.diff(np.interp(moments, moments[measured], column[measured]))
            spread = 1.4826 * np.median(np.abs(change - np.median(change)))
            # Clipped: one burst must not decide a correlation.
            scale = max(float(spread), SCALE_FLOOR / 10)
            found.append(np.clip((change - np.median(change)) / scale, -4.0, 4.0))
            rows.append(i)
            break
    return np.array(found), rows


def _partial_correlations(series: Floats) -> Floats:
    centred = series - series.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    z = centred / np.where(spread > 0, spread, 1.0)
    n = z.shape[1]
    correlation = z @ z.T / n
    # Schaefer and Strimmer: shrink by the sampling variance of the correlations over their squares.
    variance = ((z**2) @ (z**2).T / n - correlation**2) / max(n - 1, 1)
    off = ~np.eye(len(z), dtype=bool)
    squares = float((correlation[off] ** 2).sum())
    shrink = min(1.0, max(0.0, float(variance[off].sum()) / squares)) if squares > 0 else 1.0
    shrunk = (1 - shrink) * correlation
    np.fill_diagonal(shrunk, 1.0)
    precision = np.linalg.inv(shrunk + 1e-9 * np.eye(len(z)))
    scale = np.sqrt(np.diag(precision))
    partial = -precision / np.outer(scale, scale)
    np.fill_diagonal(partial, 1.0)
    return np.asarray(np.clip(partial, -0.999999, 0.999999))


def _effective_samples(series: Floats) -> float:
    """Independent samples that the series are worth, by their mean lag-1 autocorrelation."""
    now, before = series[:, 1:], series[:, :-1]
    spread = np.maximum(series.var(axis=1), 1e-12)
    lag_1 = ((now - now.mean(axis=1, keepdims=True)) * (before - before.mean(axis=1, keepdims=True))).mean(axis=1)
    rho = float(np.clip(np.mean((lag_1 / spread) ** 2), 0.0, 0.9))
    return float(series.shape[1] * (1 - rho) / (1 + rho))


def _discoveries(partial: Floats, samples: float, fdr: float) -> NDArray[np.bool_]:
    """(M, M) pairs whose partial correlation is above zero, at this false discovery rate (symmetric)."""
    m = len(partial)
    freedom = max(samples - (m - 2) - 3, 1.0)
    upper = np.triu_indices(m, 1)
    z = np.arctanh(partial[upper]) * math.sqrt(freedom)
    # One-sided: what depends on each other rises and falls together.
    p = np.array([0.5 * math.erfc(x / math.sqrt(2)) for x in z])
    order = np.argsort(p)
    below = np.flatnonzero(p[order] <= fdr * np.arange(1, len(p) + 1) / len(p))
    edges = np.zeros((m, m), dtype=bool)
    if len(below):
        chosen = order[: below[-1] + 1]
        edges[upper[0][chosen], upper[1][chosen]] = True
    return edges | edges.T
