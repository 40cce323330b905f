"""A collection fanned out over Ray is the one that a single process makes."""

from __future__ import annotations

from typing import Any

from natwork_ray.domain.values import Backend
from natwork_ray.emulation.collecting import collect_emulated
from natwork_ray.limi.collection import CollectionPlan, class_names, in_order


def test_many_hands_make_the_same_rows(ray_cluster: Any) -> None:
    from agents.collecting import RUNS_PER_TASK, fan_out

    plan = CollectionPlan(backend=Backend.EMULATED, seed=4, repetitions=9, classes=class_names()[::16])
    keys = plan.keys()
    assert len(keys) > 3 * RUNS_PER_TASK
    parts = list(fan_out(plan, keys, workers=1))
    assert len(parts) == -(-len(keys) // RUNS_PER_TASK)
    rows = in_order(plan, [row for part in parts for row in part])
    assert tuple(rows) == tuple(in_order(plan, collect_emulated(plan, keys)))


def test_nothing_to_do_is_done_at_once(ray_cluster: Any) -> None:
    from agents.collecting import fan_out

    plan = CollectionPlan(backend=Backend.EMULATED, seed=4, repetitions=1, classes=class_names()[:1])
    assert list(fan_out(plan, (), workers=2)) == []
