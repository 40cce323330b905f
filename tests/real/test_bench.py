"""The migration benchmark on the real machine, at its smallest: every arm moves, nothing is lost, nothing is left."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

from natwork_ray.adapters.migration_bench import PODMAN, BenchPlan, measure
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.limi.migration_bench import IDEAL, OURS, figures


def test_all_arms_of_the_benchmark(tools: Toolchain, state_dir: Path) -> None:
    assert tools is not None  # else skipped
    plan = BenchPlan(
        runs=1, memory_bytes=32 * 2**20, volume_bytes=2**20, methods=tuple(MigrationMethod), seed=1,
    )  # fmt: skip
    result = asyncio.run(measure(plan, state_dir, rng=random.Random(1)))
    assert result.leftovers == ()
    who = [m.who for m in result.measurements]
    assert (who.count(OURS), who.count(IDEAL)) == (4, 4)
    assert [m.lost_replies for m in result.measurements] == [0] * len(who)
    document = figures(result.measurements, seed=1)
    for row in document["methods"].values():
        assert row["total_s_p50"] > row["downtime_s_p50"] * 0.5 > 0
        assert row["ideal_total_s_p50"] > 0
    if shutil.which("podman"):
        assert who.count(PODMAN) == 1
        assert document["peers"][PODMAN]["downtime_s_p50"] > 0
        assert result.peers[PODMAN]["measured"]
    else:
        assert "podman" in result.notes["peers"]
