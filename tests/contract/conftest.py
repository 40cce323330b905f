"""Where migrations happen in the contract tests: two nodes with their ports, and a container that counts.

In the emulation, and on a real testbed (runC and CRIU, rsync through SSH, the bridge), with a fresh container per test.
Without root or what a testbed needs, the real half is skipped and says what is missing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters.migration_journal import FileMigrationJournal
from natwork_ray.adapters.testbed_containers import start
from natwork_ray.adapters.testbed_network import FIRST_CONTAINER, NETNS
from natwork_ray.adapters.testbed_traces import mounts, processes
from natwork_ray.adapters.testbed_world import NodePorts, WallClock, build_ports
from natwork_ray.adapters.workload import ECHO_PORT, MIB, Load, workload_spec
from natwork_ray.domain.runtime import ContainerState
from natwork_ray.domain.topology import Link
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.lab_runtime import LabRuntime
from natwork_ray.emulation.lab_transfer import LabBridge, LabJournal, LabTransfer
from natwork_ray.emulation.lab_values import ContainerProfile, LabContainer, LabNode
from natwork_ray.emulation.migration_lab import MigrationLab
from natwork_ray.ports import AddressBridge, Clock, ContainerRuntime, ImageTransfer, MigrationJournal


@dataclass(frozen=True)
class MigrationBed:
    """Two nodes, and a container that runs on `source`, has its address there, and counts in memory.

    `counter` reads the count as the running container gives it (asked over its address where there is one): it grows
    from one reading to the next, and is smaller than before once memory was lost. `key` is for the test's one
    migration. `run` runs a coroutine in the bed's time. `leftovers` names what lies about on any node beside the one
    running container.
    """

    backend: Backend
    source: str
    target: str
    container: str
    key: str
    runtime: Mapping[str, ContainerRuntime]
    transfer: Mapping[str, ImageTransfer]
    bridge: Mapping[str, AddressBridge]
    journal: Mapping[str, MigrationJournal]
    clock: Clock
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
        key="contract-1",
        runtime={n: LabRuntime(lab, n) for n in names},
        transfer={n: LabTransfer(lab, n) for n in names},
        bridge={n: LabBridge(lab, n) for n in names},
        journal={n: LabJournal() for n in names},
        clock=lab.clock,
        counter=counter,
        run=lab.run,
        leftovers=leftovers,
    )


@dataclass
class RealNodes:
    """The ports of a testbed's nodes, in one event loop for all tests, as in the process of an agent."""

    testbed: Any  # RealTestbed
    runner: asyncio.Runner
    ports: Mapping[str, NodePorts]
    numbers: Iterator[int] = field(default_factory=count)


@pytest.fixture(scope="session")
def real_nodes(testbed: Any) -> Iterator[RealNodes]:
    """The ports of the testbed, opened once."""
    ports = {layout.name: build_ports(testbed.record, layout.name, testbed.tools) for layout in testbed.record.nodes}

    async def shut() -> None:
        for node in ports.values():
            await node.shut()

    with asyncio.Runner() as runner:
        yield RealNodes(testbed, runner, ports)
        runner.run(shut())


# So many requests are answered before a test begins: a container that lost its memory counts from one again.
HEAD_START = 1000


async def asked(host: str, times: int) -> float:
    """The count of the workload after so many requests more, all in one session.

    One that was just started fills its memory before it listens.
    """
    async with asyncio.timeout(20.0):
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, ECHO_PORT)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
        try:
            writer.write(b"".join(b"%d\n" % n for n in range(times)))
            replies = [await reader.readline() for _ in range(times)]
        finally:
            writer.close()
        await writer.wait_closed()
    return float(replies[-1].split()[1])


async def left_behind(nodes: RealNodes, container: str) -> tuple[str, ...]:
    """What a migration can leave on any node, the container's own process, bundle and namespace where it runs apart."""
    found: list[str] = []
    folder, testbed = nodes.testbed.record.folder, nodes.testbed.record.id
    running = []
    for name, node in nodes.ports.items():
        layout, status = node.layout, await node.runtime.status(container)
        found += [f"{name}: images {entry.name}" for entry in layout.images.iterdir() if entry.is_dir()]
        if status.state is ContainerState.RUNNING:
            running.append(layout.bundle(container))
            continue
        found += [f"{name}: {status.state} container"] if status.state is not ContainerState.ABSENT else []
        found += [f"{name}: bundle"] if layout.bundle(container).exists() else []
        found += [f"{name}: namespace"] if (NETNS / layout.container_netns(container)).exists() else []
        found += [f"{name}: attached"] if await node.bridge.attached(container) else []
    found += [f"{len(running)} of it run"] if len(running) != 1 else []
    images = {node.layout.images.resolve() for node in nodes.ports.values()}
    found += [
        f"mount {path}" for path in mounts(folder)
        if path not in images and not any(bundle.resolve() in path.parents for bundle in running)
    ]  # fmt: skip
    # What carried the images has verified them and ends by itself; it may take a moment.
    for _ in range(100):
        busy = [f"process {p.pid} {p.what}" for p in processes(testbed) if p.what in ("criu", "runc", "rsync")]
        if not busy:
            break
        await asyncio.sleep(0.05)
    return (*found, *busy)


@pytest.fixture
def real_migration_bed(real_nodes: RealNodes, tmp_path: Path) -> Iterator[MigrationBed]:
    """Two of the testbed's nodes, and a container of the test's own."""
    record, number = real_nodes.testbed.record, next(real_nodes.numbers)
    base, _, prefix = record.network.partition("/")
    host = f"{base.rpartition('.')[0]}.{FIRST_CONTAINER + number}"
    name, key = f"counter-{number}", f"contract-{number}"
    spec = workload_spec(
        name,
        address=f"{host}/{prefix}",
        mac=f"02:00:00:00:02:{number:02x}",
        load=Load(memory_bytes=16 * MIB, working_set_bytes=1 * MIB, dirty_bytes_per_s=1 * MIB),
    )
    names = [layout.name for layout in record.nodes][:2]
    ports = {node: real_nodes.ports[node] for node in names}
    journals = {node: FileMigrationJournal(tmp_path / node) for node in names}

    def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return real_nodes.runner.run(main())

    async def begin() -> None:
        await start(
            record, names[0], spec, tools=real_nodes.testbed.tools, rng=random.Random(number), volume_bytes=1 * MIB
        )
        await asked(host, HEAD_START)

    async def away(node: NodePorts) -> None:
        await node.runtime.destroy(name, key=key)
        await node.bridge.remove(name)
        await node.runtime.clean(name, key=key)

    async def end() -> None:
        await ports[names[0]].transfer.close(target=names[1], key=key)
        await asyncio.gather(*(away(node) for node in ports.values()))

    async def counter() -> float:
        return await asked(host, 1)

    async def leftovers() -> tuple[str, ...]:
        return await left_behind(real_nodes, name)

    try:
        run(begin)
        yield MigrationBed(
            backend=Backend.REAL,
            source=names[0],
            target=names[1],
            container=name,
            key=key,
            runtime={node: p.runtime for node, p in ports.items()},
            transfer={node: p.transfer for node, p in ports.items()},
            bridge={node: p.bridge for node, p in ports.items()},
            journal=journals,
            clock=WallClock(),
            counter=counter,
            run=run,
            leftovers=leftovers,
        )
    finally:
        run(end)


@pytest.fixture(params=["emulated", "real"])
def bed(request: pytest.FixtureRequest) -> MigrationBed:
    """Every implementation of the ports of live migration in turn."""
    if request.param == "emulated":
        return emulated_bed()
    real: MigrationBed = request.getfixturevalue("real_migration_bed")
    return real
