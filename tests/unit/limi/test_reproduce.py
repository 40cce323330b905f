"""Baselines, and the protocol of `natwork reproduce migration-models`, on a small data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from natwork_ray.domain.migrations import LoadLevel
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.errors import InputError
from natwork_ray.limi.baselines import MIB, by_classifier, by_equations, by_rule_of_thumb, rule_of_thumb
from natwork_ray.limi.collection import true_load
from natwork_ray.limi.dataset import MigrationRow
from natwork_ray.limi.durations import MigrationInputs, predict
from natwork_ray.limi.load_classes import load_class
from natwork_ray.limi.reproduce import (
    BY_RUN,
    CLASSES_OUT,
    HIGH_MEMORY_OUT,
    ONE_BY_ONE,
    WEIGHTS,
    ExpectedCosts,
    held_out,
    judge,
    rescaled,
)
from natwork_ray.limi.run_table import METHODS, RunTable
from natwork_ray.limi.selection import Forecasts, MethodSelector
from natwork_ray.limi.selector_card import SelectorSettings


def expected(table: RunTable) -> ExpectedCosts:
    """The truth behind `noisy_equations`."""
    found = [
        [predict(m, MigrationInputs.of(true_load(seed, key))) for m in METHODS]
        for key, seed in zip(table.keys, table.seeds, strict=True)
    ]
    return ExpectedCosts(
        np.array([[d.total_s for d in run] for run in found]), np.array([[d.downtime_s for d in run] for run in found])
    )


def test_the_rule_of_thumb_is_as_stated(rows: Sequence[MigrationRow]) -> None:
    load = replace(rows[0].load, memory_bytes=100 * MIB, bandwidth_bytes_per_s=100 * MIB, dirty_bytes_per_s=MIB)
    assert rule_of_thumb(load) is MigrationMethod.PRE_COPY
    assert rule_of_thumb(replace(load, dirty_bytes_per_s=30 * MIB)) is MigrationMethod.POST_COPY
    assert rule_of_thumb(replace(load, memory_bytes=20 * MIB)) is MigrationMethod.COLD
    assert by_rule_of_thumb([load]).tolist() == [1]


def test_equations_choose_as_the_truth_does_where_it_is_made_of_them(rows: Sequence[MigrationRow]) -> None:
    table = RunTable.of(rows)
    costs = expected(table)
    best = (0.2 * costs.total_s + 0.8 * costs.downtime_s).argmin(axis=1)
    assert np.mean(by_equations(table.loads, 0.2) == best) > 0.98


def test_a_classifier_learns_the_winners(rows: Sequence[MigrationRow]) -> None:
    table = RunTable.of(rows)
    best = table.costs(0.2).argmin(axis=1)
    assert np.mean(by_classifier(table, table.loads, weight=0.2, seed=1) == best) > 0.8
    cold = table.select(best == best[0])
    assert set(by_classifier(cold, table.loads, weight=0.2, seed=1).tolist()) == {int(best[0])}


def test_held_out_runs_are_judged_once_beside_baselines_and_oracle(
    rows: Sequence[MigrationRow], quick: SelectorSettings
) -> None:
    told: list[str] = []
    few = [row for row in rows if row.repetition < 3]
    report = held_out(
        few, split=BY_RUN, settings=quick, expected=expected, progress=lambda _done, _all, what: told.append(what)
    )
    assert (report.runs, report.rows) == (102, 408)
    assert len(told) == 6
    assert report.forecasts.total_time_mape_floor_pct is not None
    assert report.forecasts.total_time_mape_floor_pct < report.forecasts.total_time_mape_pct < 20
    assert [w.weight for w in report.weights] == list(WEIGHTS)
    for at in report.weights:
        assert at.selector.regret_pct is not None
        assert at.oracle is not None
        assert at.oracle.regret_pct == 0
        assert at.oracle.hindsight_regret_pct > 0
        assert set(at.baselines) == {
            *(f"always {m}" for m in METHODS), "random", "rule of thumb", "equations", "classifier"
        }  # fmt: skip
        assert sum(at.wins.values()) == sum(at.chosen.values()) == 102
        low, high = at.balanced_accuracy_ci
        assert low <= at.selector.balanced_accuracy <= high
    at = report.at(0.2)
    assert at.selector.regret_pct is not None
    for name in ("always cold", "always post-copy", "random", "rule of thumb"):
        regret = at.baselines[name].regret_pct
        assert regret is not None
        assert at.selector.regret_pct < regret / 2


def test_whole_classes_and_the_largest_containers_can_be_held_out(
    rows: Sequence[MigrationRow], quick: SelectorSettings
) -> None:
    few = [row for row in rows if row.repetition < 3]
    assert held_out(few, split=CLASSES_OUT, settings=quick, weights=(0.2,)).runs == 102
    high = held_out(few, split=HIGH_MEMORY_OUT, settings=quick, weights=(0.2,))
    large = {r.run for r in few if load_class(r.load_class).memory is LoadLevel.HIGH}
    assert (high.runs, high.rows) == (len(large), 4 * len(large))
    assert high.at(0.2).selector.regret_pct is None
    low = [row for row in rows if load_class(row.load_class).memory is LoadLevel.LOW][:80]
    with pytest.raises(InputError, match="high memory"):
        held_out(low, split=HIGH_MEMORY_OUT, settings=quick)
    with pytest.raises(InputError, match="load classes"):
        held_out([r for r in low if r.load_class == low[0].load_class], split=CLASSES_OUT, settings=quick)


def test_runs_without_all_methods_count_for_forecasts_only(
    rows: Sequence[MigrationRow], quick: SelectorSettings
) -> None:
    cold = [row for row in rows if row.method is MigrationMethod.COLD][:30]
    report = held_out(cold, split=ONE_BY_ONE, settings=replace(quick, trees=2, margin_trees=1))
    assert (report.runs, report.weights) == (30, ())
    assert list(report.forecasts.total_time_mape_by_method_pct) == ["cold"]


def test_models_from_elsewhere_are_rescaled_by_the_other_runs(
    rows: Sequence[MigrationRow], selector: MethodSelector
) -> None:
    slow = [replace(row, total_s=3 * row.total_s, downtime_s=2 * row.downtime_s) for row in rows if row.repetition == 0]
    table = RunTable.of(slow)
    forecasts = selector.forecasts(table.loads)

    def mape(found: Forecasts) -> tuple[float, float]:
        report = judge(slow, lambda _: found, name="x", seed=1, weights=(0.2,))
        return report.forecasts.total_time_mape_pct, report.forecasts.downtime_mape_pct

    assert mape(forecasts)[0] > 50
    assert mape(rescaled(forecasts, table)) < (25, 25)
    lone = RunTable.of(slow[:4])
    assert rescaled(selector.forecasts(lone.loads), lone).total_p50_s == pytest.approx(
        selector.forecasts(lone.loads).total_p50_s
    )
