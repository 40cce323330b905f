"""What is usual for the load of a service: level, spread and the character of its changes, learnt from history only.

Models are global over containers; these numbers put every container on the same footing. Levels and changes are
measured in the service's own units (`scale`), so that a forecast does not depend on whether memory is counted in bytes
or pages, and the shape of the changes (how often nothing moves, how fast a move is forgotten) tells a garbage-collected
service from one that never lets go.

Cold start: for a service that nobody has seen, level and spread come from the window itself, and the rest from the
fleet (the median over the services that were seen).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import N_METRICS
from natwork_ray.errors import InputError
from natwork_ray.forecasting.frames import Floats, Frame

Doubles = NDArray[np.float64]

# Columns of a reference.
CENTRE, SCALE, STEP = 0, 1, 2
# Of these models see the values themselves: relative step, its evenness, share of still and of rising steps, and the
# correlation of steps 1, 2 and 5 apart.
CHARACTER = slice(3, 10)
WIDTH = 10
CHARACTER_NAMES = ("relative_step", "evenness", "still", "rising", "echo_1", "echo_2", "echo_5")
_ECHOES = (1, 2, 5)
# Spread below this share of the level is rounding, not load.
_FLOOR = 1e-6
_TINY = 1e-12
_MIN_SAMPLES = 8


@dataclass(frozen=True, eq=False)
class References:
    """References of S services.

    Attributes:
        services: S names.
        table: float64 (S, 12, 10), metrics in the order of `METRICS`.
        reach: float64 (S, K, H), root mean square change of each target metric over each horizon; positive.
        fleet: float64 (12, 10), the character that stands in for a service not seen; its level and spread are unused.
        fleet_reach: float64 (K, H), reach over step, for a service not seen.
    """

    services: tuple[str, ...]
    table: Doubles
    reach: Doubles
    fleet: Doubles
    fleet_reach: Doubles

    def rows(self, services: Sequence[str]) -> NDArray[np.intp]:
        """(N,) place of each service, -1 where it was not seen."""
        index = {name: i for i, name in enumerate(self.services)}
        return np.array([index.get(name, -1) for name in services], dtype=np.intp)

    def of(self, rows: NDArray[np.intp], frame: Frame, targets: Sequence[int]) -> tuple[Doubles, Doubles]:
        """References (N, 12, 10) and reaches (N, K, H) for rows; those of -1 are taken from the frame."""
        if self.services:
            table, reach = self.table[rows].copy(), self.reach[rows].copy()
        else:
            table = np.empty((len(rows), *self.fleet.shape))
            reach = np.empty((len(rows), *self.fleet_reach.shape))
        new = np.flatnonzero(rows < 0)
        if new.size:
            own = _from_window(frame.filled[new])
            table[new] = self.fleet
            table[new, :, : CHARACTER.start] = own
            reach[new] = self.fleet_reach * own[:, list(targets), STEP][:, :, None]
        return table, reach

    def joined(self, other: References) -> References:
        """These and the other's services; the other's word counts where both know one. The fleet stays this one's."""
        kept = [i for i, name in enumerate(self.services) if name not in set(other.services)]
        return References(
            services=tuple(self.services[i] for i in kept) + other.services,
            table=np.concatenate([self.table[kept], other.table]),
            reach=np.concatenate([self.reach[kept], other.reach]),
            fleet=self.fleet,
            fleet_reach=self.fleet_reach,
        )


def learn(runs: Sequence[LabelledRun], targets: Sequence[int], horizons: Sequence[int]) -> References:
    """References of all services in these runs; the runs of a service are pooled.

    Raises:
        InputError: no runs, or infinite or negative samples.
    """
    if not runs:
        raise InputError("no runs to learn the usual load from", hint="give at least one recording")
    services = tuple(dict.fromkeys(run.service for run in runs))
    table = np.empty((len(services), N_METRICS, WIDTH))
    reach = np.empty((len(services), len(targets), len(horizons)))
    for i, service in enumerate(services):
        own = [run.values.astype(np.float64) for run in runs if run.service == service]
        for metric in range(N_METRICS):
            table[i, metric] = _reference([v[:, metric] for v in own])
        for k, metric in enumerate(targets):
            for j, h in enumerate(horizons):
                changes = np.concatenate([v[h:, metric] - v[:-h, metric] for v in own if len(v) > h] or [np.empty(0)])
                changes = changes[~np.isnan(changes)]
                usual = float(np.sqrt(np.mean(changes**2))) if changes.size else 0.0
                # A metric that never moved in training still has to be able to move in a forecast of its spread.
                reach[i, k, j] = max(usual, table[i, metric, STEP])
    fleet = np.median(table, axis=0)
    fleet_reach = np.median(reach / table[:, list(targets), STEP][:, :, None], axis=0)
    return References(services, table, reach, fleet, fleet_reach)


def _reference(columns: list[Doubles]) -> Doubles:
    row = np.zeros(WIDTH)
    level = np.concatenate([c[~np.isnan(c)] for c in columns] or [np.empty(0)])
    if np.isinf(level).any() or (level < 0).any():
        raise InputError("a sample is infinite or negative", hint="metrics are finite and not negative; missing is NaN")
    if len(level) < _MIN_SAMPLES:
        row[SCALE] = row[STEP] = 1.0
        return row
    row[CENTRE] = np.median(level)
    floor = _FLOOR * abs(row[CENTRE]) + _TINY
    row[SCALE] = max(float(level.std()), floor)
    steps = np.concatenate([np.diff(c) for c in columns if len(c) > 1] or [np.empty(0)])
    steps = steps[~np.isnan(steps)]
    power = float(np.mean(steps**2)) if steps.size else 0.0
    row[STEP] = max(np.sqrt(power), floor)
    if power <= 0:
        row[CHARACTER.start + 2] = 1.0
        return row
    row[CHARACTER.start : CHARACTER.start + 4] = (
        np.log(row[STEP] / row[SCALE]),
        np.log(np.abs(steps).mean() / row[STEP]),
        np.mean(steps == 0),
        np.mean(steps > 0),
    )
    for place, lag in enumerate(_ECHOES, start=CHARACTER.start + 4):
        products = np.concatenate(
            [np.diff(c)[lag:] * np.diff(c)[:-lag] for c in columns if len(c) > lag + 2] or [np.empty(0)]
        )
        products = products[~np.isnan(products)]
        row[place] = products.mean() / power if products.size else 0.0
    return row


def _from_window(filled: Floats) -> Doubles:
    """Level, spread and step (N, 12, 3) from windows (N, W, 12)."""
    values = filled.astype(np.float64)
    out = np.empty((len(values), N_METRICS, CHARACTER.start))
    out[..., CENTRE] = np.median(values, axis=1)
    floor = _FLOOR * np.abs(out[..., CENTRE]) + _TINY
    out[..., SCALE] = np.maximum(values.std(axis=1), floor)
    steps = np.diff(values, axis=1)
    out[..., STEP] = np.maximum(np.sqrt((steps**2).mean(axis=1)), floor)
    return out
