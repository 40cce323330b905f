"""A small real collection: rows of every method, and a machine as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters import testbed
from natwork_ray.adapters.migration_data import CollectionFile, part_of, read_dataset
from natwork_ray.adapters.real_collecting import collect_real, real_plan
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend
from natwork_ray.limi.collection import class_names


@pytest.fixture
def collected(tools: Toolchain, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Testbeds that collections make; at the end nothing of any may be left."""
    made: list[Any] = []
    plan = testbed.plan

    def noted(*args: Any, **kwargs: Any) -> Any:
        made.append(plan(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(testbed, "plan", noted)
    yield made
    assert made
    for record in made:
        assert testbed.traces(record) == ()
        assert not record.folder.parent.exists()


def test_a_run_is_collected_under_every_method(collected: list[Any]) -> None:
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


def test_a_collection_that_was_cut_off_goes_on_and_ends(collected: list[Any], tmp_path: Path) -> None:
    whole, _ = real_plan(seed=4, repetitions=2, classes=class_names()[:1])
    plan = replace(whole, methods=(MigrationMethod.COLD, MigrationMethod.PRE_COPY))
    out = tmp_path / "real.csv"
    with CollectionFile.open(out, plan) as cut_off:
        source = collect_real(plan, cut_off.missing())
        cut_off.append(next(source))
        source.close()
    assert testbed.traces(collected[0]) == ()
    with CollectionFile.open(out, plan) as again:
        assert (again.done, len(again.missing())) == (2, 1)
        for rows in collect_real(plan, again.missing()):
            again.append(rows)
        again.finish()
    assert len(collected) == 2
    rows = read_dataset(out)
    assert [(row.repetition, row.method) for row in rows] == [(n, m) for n in (0, 1) for m in plan.methods]
    assert not part_of(out).exists()
