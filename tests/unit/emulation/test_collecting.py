"""The emulated data set: rows as the laboratory makes them, and the expected costs behind them."""

from __future__ import annotations

import numpy as np
import pytest

from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.collecting import collect_emulated, expected_costs, expected_of, laboratory
from natwork_ray.limi.collection import CollectionPlan, class_names, true_load
from natwork_ray.limi.load_classes import OBSERVED_S, load_class
from natwork_ray.limi.run_table import METHODS, RunTable

PLAN = CollectionPlan(backend=Backend.EMULATED, seed=3, repetitions=2, classes=class_names()[::11])


def test_rows_are_a_function_of_the_plan_and_measured_alike() -> None:
    rows = collect_emulated(PLAN, PLAN.keys())
    assert len(rows) == PLAN.migrations
    assert collect_emulated(PLAN, PLAN.keys()[-1:]) == rows[-4:]
    for i in range(0, len(rows), 4):
        assert [row.method for row in rows[i : i + 4]] == list(MigrationMethod)
        assert len({row.load for row in rows[i : i + 4]}) == 1
        assert rows[i].load.observed_s == OBSERVED_S
        # Measured with errors: near the truth, and not the truth.
        truth = true_load(3, PLAN.keys()[i // 4])
        assert rows[i].load.memory_bytes == pytest.approx(truth.memory_bytes, rel=0.1)
        assert rows[i].load != truth


def test_phases_are_there_where_the_method_has_them() -> None:
    by_method = {row.method: row for row in collect_emulated(PLAN, PLAN.keys()[3:4])}
    cold, pre, post, hybrid = (by_method[m] for m in MigrationMethod)
    for row in (cold, pre, post, hybrid):
        assert 0 < row.downtime_s <= row.total_s
        assert min(row.dump_s, row.dump_bytes, row.dump_transfer_s, row.restore_s, row.parallel_transfer_s) > 0
        assert row.volume_size_bytes >= row.volume_sent_bytes > 0
        assert row.client_downtime_s is not None
    assert cold.pre_dump_s == post.pre_dump_s == 0
    assert min(pre.pre_dump_s, pre.pre_dump_sent_bytes, hybrid.pre_dump_transfer_s) > 0
    assert cold.lazy_pages_s == pre.lazy_pages_s == 0
    assert min(post.lazy_pages_bytes, hybrid.lazy_pages_s) > 0


def test_expected_costs_are_those_of_many_migrations() -> None:
    """Of a small container and a large one: the mean of many draws lies within 6 % of the noise-free migration."""
    for key in (PLAN.keys()[0], PLAN.keys()[-1]):
        load, kind = true_load(3, key), load_class(key.load_class)
        total, down = expected_of(load)
        for m, method in enumerate(METHODS):
            draws = [laboratory(kind, load, method, np.random.default_rng(n)) for n in range(12)]
            assert np.mean([d.total_s for d in draws]) == pytest.approx(total[m], rel=0.06)
            assert np.mean([d.downtime_s for d in draws]) == pytest.approx(down[m], rel=0.06)


def test_expected_costs_of_a_table_are_in_its_order() -> None:
    table = RunTable.of(collect_emulated(PLAN, PLAN.keys()[:3]))
    costs = expected_costs(table)
    assert costs.total_s.shape == (3, 4)
    assert costs.total_s[1].tolist() == list(expected_of(true_load(3, PLAN.keys()[1]))[0])
    assert np.all(costs.downtime_s <= costs.total_s)
