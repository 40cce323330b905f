from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.errors import InputError
from natwork_ray.limi.dataset import MigrationRow
from natwork_ray.limi.run_table import (
    RunTable,
    balanced_accuracy,
    balanced_accuracy_interval,
    coverage,
    interval,
    mape_pct,
    regret_pct,
)

COSTS = np.array([[1.0, 2.0, 4.0, 4.0], [3.0, 2.0, 4.0, 4.0], [1.0, 2.0, 4.0, 0.5]])


def test_regret_is_the_mean_excess_over_the_best() -> None:
    assert regret_pct(COSTS, COSTS.argmin(axis=1)) == 0
    assert regret_pct(COSTS, np.array([1, 1, 3])) == pytest.approx(100 / 3)
    assert regret_pct(COSTS, np.array([0, 0, 0])) == pytest.approx((0 + 50 + 100) / 3)


def test_balanced_accuracy_counts_each_winner_the_same() -> None:
    best = np.array([0] * 90 + [1] * 10)
    assert balanced_accuracy(best, np.zeros(100, dtype=int)) == 0.5
    assert balanced_accuracy(best, best) == 1.0
    low, high = balanced_accuracy_interval(best, best, seed=1)
    assert (low, high) == (1.0, 1.0)


def test_an_interval_holds_the_mean_and_narrows_with_more_runs() -> None:
    rng = np.random.default_rng(4)
    few, many = rng.normal(1, 1, 50), rng.normal(1, 1, 5000)
    low, high = interval(few, seed=1)
    assert low < few.mean() < high
    assert interval(few, seed=1) == (low, high)
    assert np.diff(interval(many, seed=1)) < (high - low) / 5


def test_missing_migrations_are_left_out_of_errors_and_coverage() -> None:
    actual = np.array([[1.0, np.nan], [2.0, 4.0]])
    predicted = np.array([[1.1, 7.0], [2.0, 2.0]])
    assert mape_pct(predicted, actual) == pytest.approx(100 * (0.1 + 0 + 0.5) / 3)
    assert coverage(predicted, actual) == pytest.approx(2 / 3)


def test_a_run_without_a_method_is_incomplete(rows: Sequence[MigrationRow]) -> None:
    table = RunTable.of([row for row in rows[:12] if not (row.run == rows[0].run and row.method == "hybrid")])
    assert table.complete.tolist() == [False, True, True]
    assert np.isnan(table.total_s[0, 3])
    assert table.select(table.complete).runs == table.runs[1:]
    assert table.costs(1.0)[1] == pytest.approx([r.total_s for r in rows[4:8]])
    assert tuple(MigrationMethod)[3] is MigrationMethod.HYBRID


def test_no_rows_make_no_table() -> None:
    with pytest.raises(InputError, match="no migrations"):
        RunTable.of([])
