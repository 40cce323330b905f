"""Faults on a real testbed: agents, CRIU and sshd killed, disks filled, links cut; the container lives after each.

Nine faults, one of each kind; the command has more: `natwork bench faults --backend real --faults 20`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.cli.bench_faults import run
from natwork_ray.cli.fault_plan import KINDS, LOST


def test_a_container_survives_one_fault_of_each_kind(tools: Toolchain, state_dir: Path) -> None:
    assert tools is not None  # else skipped
    document = asyncio.run(
        run(faults=len(KINDS), seed=11, memory_bytes=24 * 2**20, state_dir=state_dir, told=lambda _what, _done: None)
    )
    rows = [*document["faults"], *document["missed"]]
    assert [row for row in rows if not row["survived"]] == []
    assert [row for row in rows if row["leftovers"]] == []
    # Memory is lost, if at all, past the point of no return of a method that has one, and the record says so.
    assert [row for row in rows if not row["memory_sound"]] == []
    assert [row for row in rows if row["memory"] == LOST and row["method"] in ("cold", "pre-copy")] == []
    assert document["passed"]
    assert document["left_after_down"] == []
    totals = document["totals"]
    assert totals["by_kind"] == dict.fromkeys(sorted(KINDS), 1)
    assert totals["faults"] == len(document["faults"]) == len(KINDS)
    assert (totals["on_two_nodes"], totals["on_no_node"], totals["leftovers"]) == (0, 0, 0)
    assert totals["memory_unexcused"] == 0
