"""How far each container left its normal behaviour, when, and in which metric: the evidence that causes are ranked by.

Everything is measured against a *normal part* of the same containers, in logarithmic units, so that a container that
uses little and one that uses much are judged alike. The scale of a metric is the largest of

- its scaled median absolute deviation,
- its 99 % quantile of |deviation| divided by 2.33 (both are 1 for a normal distribution), and
- a floor of 0.1 (about 10 % of the metric).

The second is what makes heavy-tailed metrics honest: a latency that multiplies once an hour in normal operation is no
evidence when it does so during an incident, and the median deviation alone would call it a catastrophe.

The size of a deviation is its median over the incident, not its maximum: a cause lasts, a spike of one sample does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric, TelemetryWindow
from natwork_ray.errors import InputError

Floats = NDArray[np.float64]

# Below its unit a metric is nearly linear, above it logarithmic; the same choice as the profiles make.
UNITS: Floats = np.array([1e3, 1e3, 1e6, 1e6, 0.01, 1e3, 1e3, 1e-3, 1e-3, 1e-3, 1.0, 1.0])
SCALE_FLOOR = 0.1
TAIL = 0.99
_TAIL_OF_NORMAL = 2.33
_MAD_TO_SD = 1.4826
MIN_NORMAL = 8  # measured samples without which a metric says nothing about a container
MOST_SAMPLES = 100_000
DEVIATES = 3.0  # robust standard deviations from which a container counts as having left its normal behaviour

#: What a slow or failing callee does to its callers.
FELT: tuple[int, ...] = tuple(
    METRICS.index(m)
    for m in (Metric.LATENCY_P50, Metric.LATENCY_P90, Metric.LATENCY_P99, Metric.THROUGHPUT, Metric.ERRORS)
)
#: What more demand from its callers does to a callee.
DRIVEN: tuple[int, ...] = tuple(
    METRICS.index(m)
    for m in (Metric.THROUGHPUT, Metric.NETWORK_RX, Metric.NETWORK_TX, Metric.CPU, Metric.DISK_READ, Metric.DISK_WRITE)
)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an incident shows, against a normal part.

    Attributes:
        containers: N names.
        size: float64 (N, 12), median signed deviation over the incident, robust standard deviations; 0 where unknown.
        onset: float64 (N, 12), share of the incident that had passed when the deviation began to last, 0 to 1; 1 where
            it never did.
        judged: bool (N, 12), measured often enough in both parts.
    """

    containers: tuple[str, ...]
    size: Floats
    onset: Floats
    judged: NDArray[np.bool_]

    @property
    def farthest(self) -> Floats:
        """(N,) the largest |size| of each container."""
        return np.asarray(np.abs(self.size).max(axis=1))


@dataclass(frozen=True, eq=False)
class NormalPart:
    """What is normal: centre, tail-aware scale and whether enough was measured, each (N, 12), in log units."""

    containers: tuple[str, ...]
    centre: Floats
    scale: Floats
    known: NDArray[np.bool_]


def learn(normal: TelemetryWindow) -> NormalPart:
    """Learn what is normal from (N, T, 12) samples of normal operation.

    Raises:
        InputError: no or too many samples, infinite or negative ones.
    """
    logs = _logs(normal, "the normal part")
    known = np.asarray((~np.isnan(logs)).sum(axis=1) >= MIN_NORMAL)
    centre = over_time(logs, 0.5)
    away = np.abs(logs - centre[:, None])
    scale = np.maximum(_MAD_TO_SD * over_time(away, 0.5), over_time(away, TAIL) / _TAIL_OF_NORMAL)
    return NormalPart(normal.containers, centre, np.asarray(np.maximum(scale, SCALE_FLOOR)), known)


def gather(normal: NormalPart, incident: TelemetryWindow, *, quantile: float = 0.5) -> Evidence:
    """Compare an incident with normal operation.

    Args:
        normal: of the same containers; it need not border on the incident.
        incident: (N, T, 12) from the moment that the trouble was noticed, or a little before.
        quantile: of the deviations over the incident that is taken as its size; 0.5 is the median.

    Raises:
        InputError: other containers, no or too many samples, infinite or negative ones, `quantile` out of range.
    """
    cases = _logs(incident, "the incident")
    if normal.containers != incident.containers:
        raise InputError(
            "the normal part and the incident name other containers", hint="give both windows the same containers"
        )
    if not 0.0 < quantile < 1.0:
        raise InputError(f"quantile {quantile} of the deviations", hint="between 0 and 1, 0.5 is the median")
    deviating = (cases - normal.centre[:, None]) / normal.scale[:, None]
    measured = ~np.isnan(cases)
    judged = np.asarray(normal.known & (measured.sum(axis=1) * 2 >= cases.shape[1]))
    size = _signed_quantile(deviating, quantile)
    return Evidence(
        containers=normal.containers,
        size=np.where(judged, size, 0.0),
        onset=np.where(judged, _onset(deviating, size), 1.0),
        judged=judged,
    )


def _logs(window: TelemetryWindow, what: str) -> Floats:
    values = window.values.astype(np.float64)
    if not 1 <= values.shape[1] <= MOST_SAMPLES or values.shape[2] != N_METRICS:
        raise InputError(f"{what} has {values.shape[1]} samples", hint=f"1 to {MOST_SAMPLES:,} samples")
    if ((values < 0) | (values == np.inf)).any():
        raise InputError(f"{what} holds infinite or negative samples", hint="what was not measured is NaN")
    return np.asarray(np.log1p(values / UNITS))


def _signed_quantile(deviating: Floats, quantile: float) -> Floats:
    """(N, 12) quantile of |deviation| over time with the sign of the median; 0 where nothing was measured."""
    size = over_time(np.abs(deviating), quantile)
    return np.asarray(np.where(over_time(deviating, 0.5) < 0, -size, size))


def over_time(samples: Floats, quantile: float) -> Floats:
    """(N, 12) quantile over the time of (N, T, 12), linear between samples, NaN left out; 0 where all is NaN.

    As numpy's nanquantile, which takes a hundred times as long for many short series.
    """
    ordered = np.sort(samples, axis=1)  # NaN goes last
    count = np.asarray((~np.isnan(samples)).sum(axis=1))
    place = quantile * np.maximum(count - 1, 0)
    low = np.floor(place).astype(np.intp)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    below, above = (np.take_along_axis(ordered, at[:, None], axis=1)[:, 0] for at in (low, high))
    return np.asarray(np.where(count > 0, below + (place - low) * (above - below), 0.0))


def _onset(deviating: Floats, size: Floats) -> Floats:
    """(N, 12) share of the incident before the deviation lasts: for the rest of it, half of the samples deviate."""
    out = np.nan_to_num(np.abs(deviating), nan=0.0) >= DEVIATES
    n = out.shape[1]
    lasting = np.cumsum(out[:, ::-1], axis=1)[:, ::-1] * 2 >= np.arange(n, 0, -1)[None, :, None]
    begins = np.argmax(out & lasting, axis=1)
    never = ~(out & lasting).any(axis=1) | (np.abs(size) < DEVIATES)
    return np.asarray(np.where(never, 1.0, begins / n))
