"""The laws of the phases: what was published comes out, limits cost time, and queues drain."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.limi.phase_times import (
    DEFAULT_PARAMETERS,
    MIB,
    demand_faults_s,
    dump_s,
    pre_dump_s,
    queueing_s,
    quota_factor,
    residual_bytes,
    restore_s,
    volume_residual_bytes,
    volume_start_s,
)


@pytest.mark.parametrize(("mib", "frozen_s"), [(4.3, 0.0898), (2.7, 0.0906), (12.2, 0.0993), (96.1, 0.1934)])
def test_dumps_are_as_published(mib: float, frozen_s: float) -> None:
    # CubeMig's CPU spinner and redis, means over 1,052 to 5,573 dumps each.
    assert dump_s(mib * MIB) == pytest.approx(frozen_s, rel=0.11)


def test_a_limit_below_a_core_costs_time() -> None:
    assert quota_factor(0.0) == quota_factor(1.0) == quota_factor(8.0) == 1
    assert quota_factor(0.25) > quota_factor(0.5) > 1
    assert dump_s(MIB, cpu_limit_cores=0.25) > dump_s(MIB)
    assert restore_s(100 * MIB, lazy=False, cpu_limit_cores=0.25) > restore_s(100 * MIB, lazy=False)
    assert restore_s(100 * MIB, lazy=True, cpu_limit_cores=0.25) == restore_s(0, lazy=True)
    busy = pre_dump_s(100 * MIB, cpu_cores=2.0, cpu_limit_cores=2.0)
    assert busy > pre_dump_s(100 * MIB, cpu_cores=0.2, cpu_limit_cores=2.0) > pre_dump_s(100 * MIB)


@given(st.floats(0, 1e9), st.floats(0, 1e8), st.floats(0, 1e3), st.floats(0, 1e3))
def test_residuals_grow_up_to_the_working_set(working_set: float, dirty: float, first_s: float, more_s: float) -> None:
    def left(elapsed_s: float) -> float:
        return residual_bytes(working_set_bytes=working_set, dirty_bytes_per_s=dirty, elapsed_s=elapsed_s)

    assert 0 <= left(first_s) <= left(first_s + more_s) <= working_set
    assert left(0) == 0


def test_volumes_always_differ_a_little() -> None:
    assert volume_residual_bytes(volume_bytes=0, write_bytes_per_s=0, elapsed_s=9) == 0
    settled = DEFAULT_PARAMETERS.volume_settle_bytes
    assert volume_residual_bytes(volume_bytes=1e9, write_bytes_per_s=0, elapsed_s=9) == settled
    assert volume_residual_bytes(volume_bytes=1e9, write_bytes_per_s=1e6, elapsed_s=9) == settled + 9e6
    assert volume_start_s(1000 * MIB, 0.0) - volume_start_s(0, 0.0) == pytest.approx(1.0)


def test_single_pages_cost_round_trips() -> None:
    assert demand_faults_s(400 * MIB, 100 * MIB, 0.0) == 0
    assert demand_faults_s(400 * MIB, 100 * MIB, 0.01) == pytest.approx(0.002 * 25600 * 0.01)
    assert demand_faults_s(1 * MIB, 100 * MIB, 0.01) < demand_faults_s(400 * MIB, 100 * MIB, 0.01)


def test_queues_by_hand() -> None:
    def drains(**changed: float) -> float:
        usual = {"downtime_s": 1.0, "degraded_s": 0.0, "request_rate": 50.0, "service_rate": 150.0}
        asked: dict[str, Any] = {**usual, **changed}
        return queueing_s(**asked)

    assert drains() == pytest.approx(0.5)  # 50 wait, 100 a second are served beyond what arrives
    assert drains(request_rate=0.0) == drains(downtime_s=0.0) == 0
    # Half of 150 while pages are fetched: 25 a second beyond what arrives, then 100.
    assert drains(degraded_s=10.0) == pytest.approx(2.0)
    assert drains(degraded_s=1.0) == pytest.approx(1.0 + 25 / 100)
    # Slower than what arrives: the queue grows to its bound.
    assert drains(service_rate=80.0, degraded_s=100.0) == pytest.approx(100 + 128 / 30)
    assert drains(request_rate=1000.0, service_rate=1500.0) == pytest.approx(128 / 500)


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 1e4), st.floats(0, 1e5))
def test_queues_end(downtime: float, degraded: float, arriving: float, served: float) -> None:
    took = queueing_s(downtime_s=downtime, degraded_s=degraded, request_rate=arriving, service_rate=served)
    bound = DEFAULT_PARAMETERS.queue_bound
    assert 0 <= took <= degraded + (bound / (0.05 * arriving) if arriving > 0 else 0) * (1 + 1e-6)
