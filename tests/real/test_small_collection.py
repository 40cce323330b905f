"""A small real collection: rows of every method, and a machine as it was before."""

from __future__ import annotations

from natwork_ray.adapters.real_collecting import collect_real, real_plan
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend
from natwork_ray.limi.collection import class_names


def test_a_run_is_collected_under_every_method(tools: Toolchain) -> None:
    plan, _ = real_plan(seed=3, repetitions=1, classes=class_names()[3:4])
    ((*rows,),) = list(collect_real(plan, plan.keys()))
    assert [row.method for row in rows] == list(MigrationMethod)
    for row in rows:
        assert row.backend is Backend.REAL
        assert 0 < row.downtime_s < row.total_s < 60
        assert row.client_downtime_s is not None
        assert 0 < row.client_downtime_s < 10
        assert row.load.memory_bytes > 10e6
        assert row.load.bandwidth_bytes_per_s > 1e6
        assert min(row.dump_s, row.dump_bytes, row.restore_s) > 0
    cold, pre, post, hybrid = rows
    assert min(pre.pre_dump_s, hybrid.pre_dump_bytes) > 0
    assert min(post.lazy_pages_s, hybrid.lazy_pages_s) > 0
    # After its round, hybrid fetches only what was written since and does not fit into the dump: often nothing.
    assert post.lazy_pages_bytes > hybrid.lazy_pages_bytes >= 0
    assert cold.lazy_pages_bytes == cold.pre_dump_bytes == 0
