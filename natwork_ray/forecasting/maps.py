"""The two maps that section 4.2 analyses each workload indicator against: typical fluctuation and anomaly signatures.

Typical fluctuation, per service and metric, from normal operation: the range of the level, and the range of the change
over 1, 3, 10 and 30 steps (quantiles 0.5 % to 99.5 %). What stays inside is normal growth, however unexpected it was.

Anomaly signatures, for each of the five anomalies of D3.3: where the twelve metrics stand during it, in robust standard
deviations from the service's normal level; the median over labelled samples of all services. A load that leaves its
typical range is compared with them by the cosine of the angle between.

Left out: the time of day. A recording of an hour has none, and neither public data set is longer; a map by the hour
would be made up. Without labelled recordings there are no signatures of one's own, and nothing is matched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, N_METRICS, TelemetryWindow
from natwork_ray.domain.values import value
from natwork_ray.forecasting.references import Doubles

# The five anomalies that D3.3 names; Unknown has no signature by definition.
SIGNED: tuple[AnomalyKind, ...] = (
    AnomalyKind.HIGH_CPU,
    AnomalyKind.HIGH_MEMORY,
    AnomalyKind.TRAFFIC_SPIKE,
    AnomalyKind.STEP_LOAD,
    AnomalyKind.NETWORK_LATENCY,
)
LAGS = (1, 3, 10, 30)
_RANGE = (0.005, 0.995)
_MIN_SAMPLES = 20
_MAD_TO_SD = 1.4826
_CLIP = 10.0
# A metric that deviates by less than this many robust standard deviations says nothing of an anomaly.
_NOTABLE = 1.0
_ALIKE = 0.5


@value
class WorkloadReading:
    """One container at one moment, held against both maps.

    Attributes:
        typical: whether every metric with a map is inside its typical range of level and of changes.
        outside: the metrics that are not, farthest first.
        resembles: the anomaly whose signature is most alike, None where none is alike.
        similarity: cosine with that signature, -1 to 1; 0 where nothing could be compared.
    """

    container: str
    at_s: float
    typical: bool
    outside: tuple[str, ...]
    resembles: AnomalyKind | None
    similarity: float


@dataclass(frozen=True, eq=False)
class WorkloadMaps:
    """Both maps.

    Attributes:
        services: S names.
        level: float64 (S, 12, 4): lowest and highest typical level, median, robust standard deviation; NaN for metrics
            that were hardly measured.
        change: float64 (S, 12, 4, 2): lowest and highest typical change over each of `LAGS`; NaN likewise.
        signatures: float64 (5, 12): deviations during each of `SIGNED`; all NaN where none was labelled.
    """

    services: tuple[str, ...]
    level: Doubles
    change: Doubles
    signatures: Doubles

    @classmethod
    def learn(cls, runs: Sequence[LabelledRun]) -> WorkloadMaps:
        """Maps of all services in these recordings; only samples labelled normal are typical."""
        services = tuple(dict.fromkeys(run.service for run in runs))
        level = np.full((len(services), N_METRICS, 4), np.nan)
        change = np.full((len(services), N_METRICS, len(LAGS), 2), np.nan)
        deviations: list[list[Doubles]] = [[] for _ in SIGNED]
        for s, service in enumerate(services):
            own = [run for run in runs if run.service == service]
            quiet = [np.where((run.kinds == 0)[:, None], run.values, np.nan).astype(np.float64) for run in own]
            for k in range(N_METRICS):
                level[s, k] = _level([v[:, k] for v in quiet])
                for j, lag in enumerate(LAGS):
                    change[s, k, j] = _range([v[lag:, k] - v[:-lag, k] for v in quiet if len(v) > lag])
            for number, kind in enumerate(SIGNED):
                place = STAGE_2_CLASSES.index(kind)
                for run in own:
                    if (run.kinds == place).any():
                        deviations[number].append(_deviations(run.values[run.kinds == place], level[s]))
        signatures = np.full((len(SIGNED), N_METRICS), np.nan)
        for number, found in enumerate(deviations):
            if found:
                rows = np.concatenate(found)
                measured = ~np.isnan(rows).all(axis=0)
                signatures[number] = 0.0
                signatures[number, measured] = np.nanmedian(rows[:, measured], axis=0)
        return cls(services, level, change, signatures)

    def directions(self, kind: AnomalyKind) -> dict[str, int]:
        """The signature of an anomaly as metric and direction: 1 up, -1 down; metrics that hardly move are left out."""
        row = self.signatures[SIGNED.index(kind)]
        return {str(m): int(np.sign(d)) for m, d in zip(METRICS, row, strict=True) if abs(d) >= _NOTABLE}

    def read(self, window: TelemetryWindow) -> tuple[WorkloadReading, ...]:
        """Each container's newest sample against both maps; a service without a map is typical, for want of another."""
        index = {name: i for i, name in enumerate(self.services)}
        return tuple(
            self._read(container, index.get(service), window.values[i].astype(np.float64), window.end_s)
            for i, (container, service) in enumerate(zip(window.containers, window.services, strict=True))
        )

    def _read(self, container: str, s: int | None, values: Doubles, at_s: float) -> WorkloadReading:
        if s is None or not len(values):
            return WorkloadReading(
                container=container, at_s=at_s, typical=True, outside=(), resembles=None, similarity=0.0
            )
        newest = values[-1]
        deviation = _deviations(newest[None], self.level[s])[0]
        low, high = self.level[s, :, 0], self.level[s, :, 1]
        outside = (newest < low) | (newest > high)
        for j, lag in enumerate(LAGS):
            if len(values) > lag:
                moved = newest - values[-1 - lag]
                outside |= (moved < self.change[s, :, j, 0]) | (moved > self.change[s, :, j, 1])
        far = sorted(np.flatnonzero(outside), key=lambda k: -abs(np.nan_to_num(deviation[k])))
        kind, similarity = self._alike(deviation) if far else (None, 0.0)
        return WorkloadReading(
            container=container,
            at_s=at_s,
            typical=not far,
            outside=tuple(str(METRICS[k]) for k in far),
            resembles=kind,
            similarity=similarity,
        )

    def _alike(self, deviation: Doubles) -> tuple[AnomalyKind | None, float]:
        best: tuple[AnomalyKind | None, float] = (None, 0.0)
        for kind, signature in zip(SIGNED, self.signatures, strict=True):
            both = ~np.isnan(deviation) & ~np.isnan(signature)
            a, b = deviation[both], signature[both]
            length = float(np.sqrt((a @ a) * (b @ b)))
            if length > 0 and float(a @ b) / length > best[1]:
                best = kind, min(1.0, float(a @ b) / length)
        return best if best[1] >= _ALIKE else (None, best[1])


def _level(columns: Sequence[Doubles]) -> Doubles:
    found = np.concatenate([c[~np.isnan(c)] for c in columns] or [np.empty(0)])
    if len(found) < _MIN_SAMPLES:
        return np.full(4, np.nan)
    centre = float(np.median(found))
    spread = _MAD_TO_SD * float(np.median(np.abs(found - centre)))
    # A metric at rest: a tenth of its level is the least that counts as a deviation.
    floor = max(0.1 * abs(centre), float(found.std()), 1e-12)
    return np.array([*np.quantile(found, _RANGE), centre, spread if spread > 0 else floor])


def _range(changes: Sequence[Doubles]) -> Doubles:
    found = np.concatenate([c[~np.isnan(c)] for c in changes] or [np.empty(0)])
    return np.quantile(found, _RANGE) if len(found) >= _MIN_SAMPLES else np.full(2, np.nan)


def _deviations(values: NDArray[np.floating], level: Doubles) -> Doubles:
    """(M, 12) clipped distances of samples (M, 12) from the normal level, in robust standard deviations."""
    return np.clip((values - level[:, 2]) / level[:, 3], -_CLIP, _CLIP)
