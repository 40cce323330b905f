"""Runs as arrays, and how good a choice of method was: regret, balanced accuracy, and what nobody can do better.

Definitions, for a weight w and cost = w * total + (1 - w) * downtime:

- *expected cost* of a method for one run: its mean over all migrations of that very container over that very path. In
  the emulation it is known (noise-free); on a real testbed it is not.
- *regret*: expected cost of the method chosen over that of the best one, minus 1, mean over runs. The oracle knows the
  expected costs, and has 0.
- *hindsight regret*: the same with the costs as they were realised, one draw for each method. Nobody reaches 0 there:
  which method happened to be quickest hangs on noise that comes after the choice.
- *balanced accuracy*: mean over methods of the share of runs won by it (realised) for which it was chosen. Methods that
  never won are left out.
- *noise ceiling*: the balanced accuracy of the oracle. More than that is luck.

Intervals are 95 % bootstrap intervals over runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.errors import InputError
from natwork_ray.limi.collection import RunKey
from natwork_ray.limi.dataset import MigrationRow, runs_of
from natwork_ray.limi.features import Floats
from natwork_ray.limi.selection import cost

METHODS = tuple(MigrationMethod)
Choices = NDArray[np.intp]
_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class RunTable:
    """R runs under the four methods; NaN where a run lacks a method.

    `loads` are as measured before the first migration of each run: a chooser sees one measurement, not four.
    """

    runs: tuple[str, ...]
    keys: tuple[RunKey, ...]
    seeds: tuple[int, ...]
    loads: tuple[ContainerLoad, ...]
    total_s: Floats
    downtime_s: Floats

    @classmethod
    def of(cls, rows: Sequence[MigrationRow]) -> RunTable:
        """The table of these rows.

        Raises:
            InputError: there are none.
        """
        groups = runs_of(rows)
        if not groups:
            raise InputError("no migrations to look at", hint="collect some with `natwork migrations collect`")
        total, down = (np.full((len(groups), len(METHODS)), np.nan) for _ in range(2))
        for i, group in enumerate(groups.values()):
            for row in group:
                m = METHODS.index(row.method)
                total[i, m], down[i, m] = row.total_s, row.downtime_s
        firsts = [group[0] for group in groups.values()]
        return cls(
            runs=tuple(groups),
            keys=tuple(RunKey(load_class=row.load_class, repetition=row.repetition) for row in firsts),
            seeds=tuple(row.seed for row in firsts),
            loads=tuple(row.load for row in firsts),
            total_s=total,
            downtime_s=down,
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The load class of each run."""
        return tuple(key.load_class for key in self.keys)

    @property
    def complete(self) -> NDArray[np.bool_]:
        """(R,) true where all four methods are there."""
        return np.asarray(~np.isnan(self.total_s).any(axis=1))

    def select(self, keep: NDArray[np.bool_] | NDArray[np.intp]) -> RunTable:
        """The runs that `keep` (mask or indices) names."""
        places = np.arange(len(self.runs))[keep].tolist()
        return RunTable(
            runs=tuple(self.runs[i] for i in places),
            keys=tuple(self.keys[i] for i in places),
            seeds=tuple(self.seeds[i] for i in places),
            loads=tuple(self.loads[i] for i in places),
            total_s=self.total_s[places],
            downtime_s=self.downtime_s[places],
        )

    def costs(self, weight: float) -> Floats:
        """(R, 4) realised."""
        return cost(self.total_s, self.downtime_s, weight)


def regret_pct(costs: Floats, chosen: Choices) -> float:
    """Mean over runs of how much more the chosen method costs than the best one, in per cent. `costs` is (R, 4)."""
    return float(regrets_pct(costs, chosen).mean())


def regrets_pct(costs: Floats, chosen: Choices) -> Floats:
    """(R,) likewise, for each run."""
    taken = costs[np.arange(len(costs)), chosen]
    return np.asarray(100 * (taken / costs.min(axis=1) - 1), dtype=np.float64)


def balanced_accuracy(best: Choices, chosen: Choices) -> float:
    """Mean over the methods that won, of the share of their wins for which they were chosen."""
    return float(np.mean([np.mean(chosen[best == m] == m) for m in np.unique(best)]))


def interval(values: Floats, *, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over runs."""
    draws = np.random.default_rng(seed).integers(0, len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def balanced_accuracy_interval(best: Choices, chosen: Choices, *, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval over runs."""
    won = np.eye(len(METHODS))[best]  # (R, 4)
    hit = won * (best == chosen)[:, None]
    runs = len(best)
    draws = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=_RESAMPLES)
    wins, hits = draws @ won, draws @ hit  # (resamples, 4)
    there = wins > 0
    found = np.where(there, hits / np.maximum(wins, 1), 0.0).sum(axis=1) / there.sum(axis=1)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def mape_pct(predicted: Floats, actual: Floats) -> float:
    """Mean absolute percentage error over what is there (NaN in `actual` is left out)."""
    return float(100 * np.nanmean(np.abs(predicted - actual) / actual))


def coverage(bound: Floats, actual: Floats) -> float:
    """Share of the migrations that are there which stayed within their bound."""
    there = ~np.isnan(actual)
    return float(np.mean(actual[there] <= bound[there]))
