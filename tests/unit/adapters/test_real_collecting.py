"""What the real collector decides before it touches the machine; tests/real has the rest."""

from __future__ import annotations

import pytest

from natwork_ray.adapters import real_collecting
from natwork_ray.adapters.real_collecting import MIB, collect_real, drawn_load, needed_bytes, real_plan
from natwork_ray.adapters.workload import load_of
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend
from natwork_ray.errors import PreconditionError
from natwork_ray.limi.collection import RunKey, class_names
from natwork_ray.limi.load_classes import load_class


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which real migration is possible, as far as planning is concerned."""
    monkeypatch.setattr(real_collecting, "require", lambda _methods: None)


def test_classes_that_do_not_fit_are_left_out_with_the_reason(able: None) -> None:
    plan, left_out = real_plan(seed=1, repetitions=2, classes=class_names(), available_bytes=1500.0 * MIB)
    names = [name for name, _ in left_out]
    assert sorted([*plan.classes, *names]) == sorted(class_names())
    assert names
    assert all("memory-high" in name for name in names)
    assert all("750 MiB may be used" in reason for _, reason in left_out)
    assert (plan.backend, plan.migrations) == (Backend.REAL, len(plan.classes) * 8)


def test_a_machine_with_room_takes_them_all_and_one_without_none(able: None) -> None:
    plan, left_out = real_plan(seed=1, repetitions=1, classes=class_names(), available_bytes=1e12)
    assert (len(plan.classes), left_out) == (34, ())
    assert real_plan(seed=1, repetitions=1, classes=class_names()[:1])[0].classes == class_names()[:1]
    with pytest.raises(PreconditionError, match="none of the classes"):
        real_plan(seed=1, repetitions=1, classes=class_names(), available_bytes=MIB)


def test_a_machine_that_cannot_migrate_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_methods: object) -> None:
        raise PreconditionError("real cold migration is not possible here: criu", hint="scripts/install_testbed")

    monkeypatch.setattr(real_collecting, "require", missing)
    with pytest.raises(PreconditionError, match="criu"):
        real_plan(seed=1, repetitions=1, classes=class_names())


def test_loads_are_drawn_around_their_levels() -> None:
    name = class_names()[-1]
    levels = load_of(load_class(name))
    drawn = [drawn_load(RunKey(load_class=name, repetition=n), 7)[0] for n in range(40)]
    assert drawn[0] == drawn_load(RunKey(load_class=name, repetition=0), 7)[0]
    assert len({load.memory_bytes for load in drawn}) == 40
    for load in drawn:
        assert 0.6 * levels.memory_bytes < load.memory_bytes < 1.7 * levels.memory_bytes
        assert load.working_set_bytes <= load.memory_bytes
        assert 0 < load.cpu_cores <= 1
        assert 5 * load.memory_bytes < needed_bytes(name)


def test_nothing_to_collect_needs_no_testbed(able: None) -> None:
    plan, _ = real_plan(seed=1, repetitions=1, classes=class_names()[:1], methods=[MigrationMethod.COLD])
    assert list(collect_real(plan, ())) == []
