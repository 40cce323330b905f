from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError, UsageError
from natwork_ray.limi.collection import (
    REPETITIONS,
    CollectionPlan,
    RunKey,
    class_names,
    collect_run,
    in_order,
    streams,
    true_load,
)

PLAN = CollectionPlan(backend=Backend.EMULATED, seed=1, repetitions=2, classes=class_names()[:3])


def test_the_whole_data_set_has_6120_migrations() -> None:
    plan = CollectionPlan(backend=Backend.EMULATED, seed=1, repetitions=REPETITIONS, classes=class_names())
    assert plan.migrations == 6120
    assert len(set(plan.keys())) == 34 * 45


def test_a_run_depends_on_its_seed_and_key_alone(laboratory: Any) -> None:
    wider = replace(PLAN, repetitions=9, classes=class_names())
    for key in PLAN.keys():  # noqa: SIM118
        assert collect_run(PLAN, key, laboratory) == collect_run(wider, key, laboratory)
    key = PLAN.keys()[0]
    assert collect_run(replace(PLAN, seed=2), key, laboratory) != collect_run(PLAN, key, laboratory)


def test_methods_share_the_container_and_its_measurement(laboratory: Any) -> None:
    rows = collect_run(PLAN, PLAN.keys()[0], laboratory)
    assert [row.method for row in rows] == list(MigrationMethod)
    assert {row.load for row in rows} == {rows[0].load}
    assert len({row.run for row in rows}) == 1


def test_repetitions_and_classes_have_streams_of_their_own() -> None:
    loads = {true_load(1, RunKey(load_class=name, repetition=n)) for name in class_names() for n in range(5)}
    assert len(loads) == 34 * 5
    first, again = (streams(1, PLAN.keys()[0])[1] for _ in range(2))
    assert np.random.default_rng(first).integers(2**60) == np.random.default_rng(again).integers(2**60)


def test_rows_are_put_in_the_order_of_the_plan(laboratory: Any) -> None:
    rows = [row for key in PLAN.keys() for row in collect_run(PLAN, key, laboratory)]  # noqa: SIM118
    assert in_order(PLAN, rows[::-1]) == rows


@pytest.mark.parametrize(
    "wrong",
    [{"repetitions": 0}, {"seed": -1}, {"classes": ()}, {"classes": class_names()[:1] * 2}, {"methods": ()}],
)
def test_plans_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(PLAN, **wrong)


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(InputError, match="no load class"):
        replace(PLAN, classes=("x",))
