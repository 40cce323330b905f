"""Faults on a real testbed: agents, CRIU and sshd killed, disks filled, links cut; the container lives after each.

Nine faults, one of each kind; the command has more: `natwork bench faults --backend real --faults 20`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.cli.bench_faults import run
from natwork_ray.cli.fault_plan import KINDS


def test_a_container_survives_one_fault_of_each_kind(tools: Toolchain, state_dir: Path) -> None:
    assert tools is not None  # else skipped
    document = asyncio.run(
        run(faults=len(KINDS), seed=11, memory_bytes=24 * 2**20, state_dir=state_dir, told=lambda _what, _done: None)
    )
    dead = [row for row in document["faults"] if not row["survived"]]
    assert dead == []
    assert document["passed"]
    assert document["left_after_down"] == []
    totals = document["totals"]
    assert set(totals["by_kind"]) == set(KINDS)
    assert (totals["on_two_nodes"], totals["on_no_node"], totals["leftovers"]) == (0, 0, 0)
