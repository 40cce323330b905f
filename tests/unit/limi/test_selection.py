from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.errors import InputError, RefusedError, UsageError
from natwork_ray.limi.dataset import MigrationRow
from natwork_ray.limi.features import MEASURED, MOST
from natwork_ray.limi.selection import MethodSelector

MIB = 2.0**20
amount = st.one_of(st.floats(0, MOST), st.floats(0, 1e9))
any_load = st.builds(
    lambda numbers, path, rtt: ContainerLoad(
        **dict(zip([n for n, _ in MEASURED[:10]], numbers, strict=True)),
        bandwidth_bytes_per_s=path, rtt_s=rtt, observed_s=1.0,
    ),
    st.tuples(*[amount] * 10), st.floats(1, MOST), st.floats(0, 1e6),
)  # fmt: skip
quick = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(load=any_load)
def test_percentiles_never_cross_and_downtime_is_part_of_the_total(
    selector: MethodSelector, load: ContainerLoad
) -> None:
    for forecast in selector.predict(load):
        assert 0 < forecast.downtime_p50_s <= forecast.downtime_p95_s <= forecast.total_p95_s < float("inf")
        assert forecast.downtime_p50_s <= forecast.total_p50_s <= forecast.total_p95_s


@quick
@given(load=any_load, weight=st.floats(0, 1), allowed=st.sets(st.sampled_from(MigrationMethod), min_size=1))
def test_the_choice_is_the_cheapest_of_those_allowed(
    selector: MethodSelector, load: ContainerLoad, weight: float, allowed: set[MigrationMethod]
) -> None:
    chosen = selector.choose(load, weight=weight, allowed=tuple(allowed))
    assert chosen.method in allowed
    for other in selector.predict(load):
        if other.method in allowed:
            assert weight * chosen.total_p50_s + (1 - weight) * chosen.downtime_p50_s <= (
                weight * other.total_p50_s + (1 - weight) * other.downtime_p50_s
            ) * (1 + 1e-12)


def test_many_loads_at_once_are_each_load_alone(selector: MethodSelector, rows: Sequence[MigrationRow]) -> None:
    loads = [row.load for row in rows[:40:4]]
    together = selector.forecasts(loads)
    for i, load in enumerate(loads):
        for a, b in zip(together.of(i), selector.predict(load), strict=True):
            assert a.method is b.method
            assert a.total_p50_s == pytest.approx(b.total_p50_s, rel=1e-12)
    assert together.costs(1.0) == pytest.approx(together.total_p50_s)
    assert together.costs(0.0) == pytest.approx(together.downtime_p50_s)


def test_the_weight_decides(selector: MethodSelector, rows: Sequence[MigrationRow]) -> None:
    """A large container that writes little: copied beforehand for a short downtime, stopped for a short migration."""
    (large, *_) = (r.load for r in rows if r.load.memory_bytes > 300 * MIB)
    load = replace(large, dirty_bytes_per_s=5 * MIB, working_set_bytes=25 * MIB, bandwidth_bytes_per_s=60 * MIB)
    assert selector.choose(load, weight=1.0).method is MigrationMethod.COLD
    assert selector.choose(load, weight=0.0).method is not MigrationMethod.COLD


def test_more_memory_over_a_slower_link_takes_longer(selector: MethodSelector, rows: Sequence[MigrationRow]) -> None:
    by_size = sorted((row.load for row in rows), key=lambda load: load.memory_bytes / load.bandwidth_bytes_per_s)
    for a, b in zip(selector.predict(by_size[0]), selector.predict(by_size[-1]), strict=True):
        assert b.total_p50_s > 5 * a.total_p50_s


def test_what_was_never_seen_is_named(selector: MethodSelector, rows: Sequence[MigrationRow]) -> None:
    load = rows[0].load
    assert selector.extrapolated(load) == ()
    huge = replace(load, memory_bytes=64 * 2.0**30, rtt_s=3.0)
    assert {"memory_bytes", "rtt_s", "memory_transfer_s", "dirty_share_per_s"} <= set(selector.extrapolated(huge))


def test_usual_quantities_that_never_went_together_are_named(
    selector: MethodSelector, rows: Sequence[MigrationRow]
) -> None:
    """A large container that writes as little as a small one."""
    sizes = sorted((row.load for row in rows), key=lambda load: load.memory_bytes)
    odd = replace(sizes[-1], dirty_bytes_per_s=sizes[0].dirty_bytes_per_s / 4)
    assert selector.extrapolated(odd) == ("dirty_share_per_s",)


def test_questions_that_make_no_sense_are_refused(selector: MethodSelector, rows: Sequence[MigrationRow]) -> None:
    load = rows[0].load
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="weight"):
            selector.choose(load, weight=weight)
    with pytest.raises(RefusedError, match="allowed is nothing"):
        selector.choose(load, allowed=())
    with pytest.raises(InputError, match="memory_bytes"):
        selector.predict(replace(load, memory_bytes=float("nan")))


def test_forecasts_are_good_on_containers_of_another_seed(
    selector: MethodSelector, rows: Sequence[MigrationRow]
) -> None:
    from natwork_ray.limi.run_table import RunTable

    table = RunTable.of(rows)
    predicted = selector.forecasts(table.loads).total_p50_s
    assert np.mean(np.abs(predicted - table.total_s) / table.total_s) < 0.2
