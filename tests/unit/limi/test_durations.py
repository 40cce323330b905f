"""The duration model: phases add up, the p95 holds, and no method wins everywhere."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.errors import UsageError
from natwork_ray.limi.durations import (
    DEFAULT_PARAMETERS,
    MIB,
    MigrationInputs,
    best_method,
    predict,
    predict_p95,
    shared_ends_s,
    typical_inputs,
)
from natwork_ray.limi.fluid import Job, Stage, simulate
from natwork_ray.limi.load_classes import FEASIBLE_CLASSES, draw_load

GIGABIT = 125e6
inputs = st.builds(
    lambda dump, dirty, share, link, volume: MigrationInputs(
        dump_bytes=dump,
        dirty_bytes_per_s=dirty,
        working_set_bytes=share * dump,
        bandwidth_bytes_per_s=link,
        volume_delta_bytes=volume,
    ),
    st.floats(0, 8e9),
    st.floats(0, 1e9),
    st.floats(0, 1),
    st.floats(1e5, 1e10),
    st.floats(0, 1e9),
)


def case(mib: float, *, dirty: float, working_set: float) -> MigrationInputs:
    return MigrationInputs(
        dump_bytes=mib * MIB,
        dirty_bytes_per_s=dirty * MIB,
        working_set_bytes=working_set * MIB,
        bandwidth_bytes_per_s=GIGABIT,
    )


@given(inputs, st.sampled_from(MigrationMethod))
def test_phases_lie_in_the_total(given_inputs: MigrationInputs, method: MigrationMethod) -> None:
    took = predict(method, given_inputs)
    assert math.isclose(max(p.starts_s + p.duration_s for p in took.phases), took.total_s, rel_tol=1e-9)
    assert all(p.starts_s >= 0 and p.duration_s >= 0 and p.transferred_bytes >= 0 for p in took.phases)
    assert 0 < took.downtime_s <= took.total_s
    assert took.downtime_starts_s >= 0
    # Before, during and after the downtime make up the whole.
    assert math.isclose(took.downtime_starts_s + took.downtime_s + took.degraded_s, took.total_s, rel_tol=1e-9)
    assert (took.degraded_s > 0) <= (method in (MigrationMethod.POST_COPY, MigrationMethod.HYBRID))


@given(inputs, st.sampled_from(MigrationMethod))
def test_the_slow_case_is_slower_but_bounded(given_inputs: MigrationInputs, method: MigrationMethod) -> None:
    usual, slow = predict(method, given_inputs), predict_p95(method, given_inputs)
    most = math.exp(1.6449 * 2 * DEFAULT_PARAMETERS.noise_sigma)
    assert usual.total_s < slow.total_s <= most * usual.total_s
    assert usual.downtime_s < slow.downtime_s <= most * usual.downtime_s


@given(
    st.tuples(st.floats(0, 10), st.floats(0.1, 1e3)),
    st.tuples(st.floats(0, 10), st.floats(0.1, 1e3)),
    st.floats(1, 100),
    st.floats(0.5, 1),
)
def test_two_flows_share_a_link_as_in_the_planners_simulation(
    first: tuple[float, float], second: tuple[float, float], capacity: float, share: float
) -> None:
    ceiling = share * capacity
    jobs = [
        Job(start, (Stage(transfer_bytes=size, links=("link",), rate_bytes_per_s=ceiling),))
        for start, size in (first, second)
    ]
    expected = [of[-1] for of in simulate(jobs, {"link": capacity})]
    assert shared_ends_s([first, second], ceiling=ceiling, capacity=capacity) == pytest.approx(expected, rel=1e-6)


def test_rounds_end_when_the_residual_stops_shrinking() -> None:
    def rounds(of: MigrationInputs, method: MigrationMethod = MigrationMethod.PRE_COPY) -> int:
        return sum(p.name == "pre-dump" for p in predict(method, of).phases)

    assert rounds(case(500, dirty=0.01, working_set=100)) == 2  # the second round had next to nothing to carry
    assert rounds(case(500, dirty=40, working_set=400)) == 5
    assert rounds(case(500, dirty=400, working_set=490)) == 2  # all of it was dirtied again
    assert rounds(case(500, dirty=40, working_set=400), MigrationMethod.HYBRID) == 1


def test_a_small_cpu_share_and_a_long_way_cost_time() -> None:
    usual = case(100, dirty=1, working_set=20)
    for slower in (
        replace(usual, rtt_s=0.05),
        replace(usual, volume_bytes=4000 * MIB, volume_delta_bytes=1.0),
        replace(usual, volume_bytes=400 * MIB, volume_delta_bytes=200 * MIB),
    ):
        for method in (MigrationMethod.COLD, MigrationMethod.POST_COPY):
            assert predict(method, slower).downtime_s > predict(method, usual).downtime_s
    # Only pages that are written or read back while nobody is served cost more under a limit.
    limited = replace(usual, cpu_limit_cores=0.25)
    assert predict(MigrationMethod.COLD, limited).downtime_s > predict(MigrationMethod.COLD, usual).downtime_s
    assert predict(MigrationMethod.HYBRID, limited).downtime_s == predict(MigrationMethod.HYBRID, usual).downtime_s
    assert predict(MigrationMethod.HYBRID, limited).total_s > predict(MigrationMethod.HYBRID, usual).total_s
    # A volume that is written to fast leaves more to send while nobody is served.
    quiet = replace(usual, volume_bytes=400 * MIB, volume_delta_bytes=100 * MIB)
    busy = replace(quiet, volume_write_bytes_per_s=100 * MIB)
    for method in (MigrationMethod.PRE_COPY, MigrationMethod.HYBRID):
        assert predict(method, busy).downtime_s > predict(method, quiet).downtime_s


def test_inputs_of_a_measured_load() -> None:
    load = draw_load(FEASIBLE_CLASSES[20], np.random.default_rng(1))
    found = MigrationInputs.of(load)
    assert (found.dump_bytes, found.rtt_s, found.volume_bytes) == (load.memory_bytes, load.rtt_s, load.volume_bytes)
    with pytest.raises(UsageError, match="bandwidth"):
        MigrationInputs.of(replace(load, bandwidth_bytes_per_s=0.0))


@pytest.mark.parametrize(("weight", "winners"), [(0.0, 3), (0.2, 4), (0.5, 3)])
def test_no_method_wins_every_load_class(weight: float, winners: int) -> None:
    # docs/live-migration-model.md has the table. Loss as the choosers weigh it: total time against downtime.
    rng = np.random.default_rng(0)
    won: Counter[MigrationMethod] = Counter()
    for load_class in FEASIBLE_CLASSES:
        for _ in range(10):
            asked = MigrationInputs.of(draw_load(load_class, rng))
            predicted = [predict(method, asked) for method in MigrationMethod]
            won[min(predicted, key=lambda d: weight * d.total_s + (1 - weight) * d.downtime_s).method] += 1
    assert len(won) >= winners
    assert max(won.values()) <= 0.6 * won.total()


def test_cold_migration_agrees_with_the_published_dumps() -> None:
    # CubeMig froze redis with 96.1 MiB for 193 ms and its CPU spinner with 4.3 MiB for 90 ms on average.
    for mib, frozen_s, tolerance in ((96.1, 0.193, 0.15), (4.3, 0.090, 0.15)):
        dump = next(
            p for p in predict(MigrationMethod.COLD, case(mib, dirty=0, working_set=0)).phases if p.name == "dump"
        )
        assert dump.duration_s == pytest.approx(frozen_s, rel=tolerance)


def test_each_method_wins_somewhere() -> None:
    assert best_method(case(2, dirty=1, working_set=1)).method is MigrationMethod.COLD
    assert best_method(case(50, dirty=0.5, working_set=15)).method is MigrationMethod.PRE_COPY
    assert best_method(case(500, dirty=10, working_set=200)).method is MigrationMethod.HYBRID
    assert best_method(case(500, dirty=400, working_set=490)).method is MigrationMethod.POST_COPY


def test_pre_copy_loses_when_all_of_the_working_set_is_dirtied_again() -> None:
    calm, busy = case(500, dirty=1, working_set=450), case(500, dirty=200, working_set=450)
    cold = predict(MigrationMethod.COLD, calm)
    assert predict(MigrationMethod.PRE_COPY, calm).downtime_s < 0.3 * cold.downtime_s
    busy_pre = predict(MigrationMethod.PRE_COPY, busy)
    assert busy_pre.loss_s() > cold.loss_s()
    assert best_method(busy).method is not MigrationMethod.PRE_COPY


def test_volume_delta_travels_beside_the_dump() -> None:
    bare = case(100, dirty=0, working_set=0)
    alone = predict(MigrationMethod.COLD, bare)
    # What is sent while the dump is being written costs nothing; more of it shares the link with the dump.
    assert predict(MigrationMethod.COLD, replace(bare, volume_delta_bytes=10 * MIB)).total_s == alone.total_s
    shared = predict(MigrationMethod.COLD, replace(bare, volume_delta_bytes=50 * MIB))
    assert alone.total_s < shared.total_s < alone.total_s + 50 * MIB / GIGABIT
    volume, dump = (next(p for p in shared.phases if p.name == name) for name in ("volume transfer", "dump transfer"))
    assert volume.starts_s < dump.starts_s < volume.starts_s + volume.duration_s


def test_typical_inputs_count_every_replica() -> None:
    one = typical_inputs(rss_bytes=100 * MIB, bandwidth_bytes_per_s=GIGABIT)
    three = typical_inputs(rss_bytes=100 * MIB, replicas=3, bandwidth_bytes_per_s=GIGABIT)
    assert three.dump_bytes == 3 * one.dump_bytes
    assert three.working_set_bytes == 3 * one.working_set_bytes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dump_bytes", -1.0),
        ("dirty_bytes_per_s", math.nan),
        ("working_set_bytes", math.inf),
        ("bandwidth_bytes_per_s", 0),
    ],
)
def test_senseless_inputs_are_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=field):
        MigrationInputs(**{**vars(case(1, dirty=0, working_set=0)), field: value})
