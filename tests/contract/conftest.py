"""Where migrations happen in the contract tests: two nodes with their ports, and a container that counts.

A real testbed joins by a fixture `real_migration_bed` that gives a `MigrationBed` (function scope, one running
container of its own per test); without it the real half of the suite is skipped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from natwork_ray.domain.topology import Link
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.lab_runtime import LabRuntime
from natwork_ray.emulation.lab_transfer import LabBridge, LabJournal, LabTransfer
from natwork_ray.emulation.lab_values import ContainerProfile, LabContainer, LabNode
from natwork_ray.emulation.migration_lab import MigrationLab
from natwork_ray.limi.phase_times import MIB
from natwork_ray.ports import AddressBridge, Clock, ContainerRuntime, ImageTransfer, MigrationJournal


@dataclass(frozen=True)
class MigrationBed:
    """Two nodes, and a container that runs on `source`, has its address there, and counts in memory.

    `counter` reads the count as the running container gives it (asked over its address where there is one);
    `counts_per_s` is about how fast it counts. `run` runs a coroutine in the bed's time. `leftovers` names what lies
    about on either node beside the one running container.
    """

    backend: Backend
    source: str
    target: str
    container: str
    runtime: Mapping[str, ContainerRuntime]
    transfer: Mapping[str, ImageTransfer]
    bridge: Mapping[str, AddressBridge]
    journal: Mapping[str, MigrationJournal]
    clock: Clock
    counts_per_s: float
    counter: Callable[[], Awaitable[float]]
    run: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]
    leftovers: Callable[[], Awaitable[tuple[str, ...]]]


def emulated_bed() -> MigrationBed:
    """Two nodes of the migration laboratory."""
    names = ("a", "b")
    lab = MigrationLab(
        [LabNode(name=name) for name in names],
        [Link(a="a", b="b", bandwidth_bytes_per_s=125e6, rtt_s=0.001)],
        [
            LabContainer(
                name="counter",
                node="a",
                profile=ContainerProfile(
                    memory_bytes=64 * MIB,
                    dirty_bytes_per_s=4 * MIB,
                    working_set_bytes=20 * MIB,
                    volume_bytes=32 * MIB,
                    volume_delta_bytes=8 * MIB,
                    volume_write_bytes_per_s=1 * MIB,
                    cpu_cores=0.3,
                    cpu_limit_cores=1.0,
                    request_rate=50.0,
                    service_rate=200.0,
                ),
            )
        ],
        seed=5,
    )

    async def counter() -> float:
        return lab.counter("counter")

    async def leftovers() -> tuple[str, ...]:
        return (*lab.leftovers("counter"), *lab.violations)

    return MigrationBed(
        backend=Backend.EMULATED,
        source="a",
        target="b",
        container="counter",
        runtime={n: LabRuntime(lab, n) for n in names},
        transfer={n: LabTransfer(lab, n) for n in names},
        bridge={n: LabBridge(lab, n) for n in names},
        journal={n: LabJournal() for n in names},
        clock=lab.clock,
        counts_per_s=1.0,
        counter=counter,
        run=lab.run,
        leftovers=leftovers,
    )


@pytest.fixture(params=["emulated", "real"])
def bed(request: pytest.FixtureRequest) -> MigrationBed:
    """Every implementation of the ports of live migration in turn."""
    if request.param == "emulated":
        return emulated_bed()
    try:
        real: MigrationBed = request.getfixturevalue("real_migration_bed")
    except pytest.FixtureLookupError:
        pytest.skip("no real testbed here: the fixture real_migration_bed would give one")
    return real
