"""Real migrations: four methods, one session through all of them, nothing lost and nothing left (issue 3, 1 and 6)."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from natwork_ray.adapters.probe_client import ProbeClient
from natwork_ray.adapters.testbed_containers import start
from natwork_ray.adapters.testbed_network import FIRST_CONTAINER, NETNS
from natwork_ray.adapters.testbed_traces import mounts, processes
from natwork_ray.adapters.testbed_world import NodePorts, build_node, build_ports
from natwork_ray.adapters.workload import Load, workload_spec
from natwork_ray.domain.migrations import MigrationRecord, MigrationState
from natwork_ray.domain.phases import MigrationMethod, Phase
from natwork_ray.domain.runtime import ContainerSpec, ContainerState
from natwork_ray.domain.values import Backend
from natwork_ray.limi.driver import drive, unfinished
from natwork_ray.limi.node import LimiNode
from natwork_ray.limi.steps import MigrationStarted, Verb

MIB = 2**20
METHODS = tuple(MigrationMethod)
LAZY = (MigrationMethod.POST_COPY, MigrationMethod.HYBRID)
ROUNDS = (MigrationMethod.PRE_COPY, MigrationMethod.HYBRID)


@dataclass
class Site:
    """A container on a testbed, its nodes, and who moves it."""

    record: object
    tools: object
    ports: dict[str, NodePorts]
    nodes: dict[str, LimiNode]
    spec: ContainerSpec
    home: str
    moved: int = 0

    @property
    def host(self) -> str:
        return self.spec.address.partition("/")[0]

    async def move(self, target: str, method: MigrationMethod) -> MigrationRecord:
        source = self.nodes[self.home]
        self.moved += 1
        started = MigrationStarted(
            at_s=source.clock.now_s(), key=f"{self.spec.name}-{self.moved}", container=self.spec.name,
            source=self.home, target=target, method=method, backend=Backend.REAL,
        )  # fmt: skip
        record = await drive(
            started, source=source, target=self.nodes[target], journal=source.journal, clock=source.clock
        )
        if record.state is MigrationState.MIGRATED:
            self.home = target
        return record

    async def leftovers(self) -> list[str]:
        """Everything of migrations that is still there."""
        found = []
        for name, ports in self.ports.items():
            layout, status = ports.layout, await ports.runtime.status(self.spec.name)
            found += [f"{name}: images {entry}" for entry in layout.images.iterdir() if entry.is_dir()]
            found += [f"{name}: open {started.key}" for started in unfinished(self.nodes[name].journal)]
            if name == self.home:
                assert status.state is ContainerState.RUNNING
                assert await ports.bridge.attached(self.spec.name)
                continue
            assert not await ports.bridge.attached(self.spec.name)
            if status.state is not ContainerState.ABSENT:
                found.append(f"{name}: {status.state} container")
            if layout.bundle(self.spec.name).exists():
                found.append(f"{name}: bundle")
            if (NETNS / layout.container_netns(self.spec.name)).exists():
                found.append(f"{name}: namespace")
        return found


@asynccontextmanager
async def site(testbed, name: str, *, load: Load, volume_bytes: int, number: int) -> AsyncIterator[Site]:  # type: ignore[no-untyped-def]
    record, tools = testbed.record, testbed.tools
    base, _, prefix = record.network.partition("/")
    address = f"{base.rpartition('.')[0]}.{FIRST_CONTAINER + number}/{prefix}"
    spec = workload_spec(name, address=address, mac=f"02:00:00:00:01:{number:02x}", load=load)
    ports = {layout.name: build_ports(record, layout.name, tools) for layout in record.nodes}
    nodes = {name: build_node(port) for name, port in ports.items()}
    there = Site(record, tools, ports, nodes, spec, "node-0")
    try:
        await start(record, "node-0", spec, tools=tools, rng=random.Random(1), volume_bytes=volume_bytes)
        yield there
    finally:
        for node, port in ports.items():
            await port.runtime.destroy(name, key="end")
            await port.bridge.remove(name)
            await nodes[node].close()
            await port.shut()


def check_record(record: MigrationRecord, method: MigrationMethod) -> None:
    """Every phase that the method has, with its time and, where something was carried, its size."""
    assert record.state is MigrationState.MIGRATED, record.error
    assert record.method is method
    assert record.backend is Backend.REAL
    phases = {phase.name: phase for phase in record.phases}
    wanted = {Verb.PREPARE, Verb.DUMP, Verb.DUMP_TRANSFER, Verb.RESTORE, Verb.VOLUME_TRANSFER, Verb.ADDRESS_MOVE}
    wanted |= {Verb.PRE_DUMP, Verb.PRE_DUMP_TRANSFER} if method in ROUNDS else set()
    wanted |= {Verb.PAGES_FETCHED} if method in LAZY else set()
    assert wanted <= set(phases), wanted - set(phases)
    for phase in record.phases:
        assert phase.starts_s >= 0
        assert phase.duration_s >= 0
        assert phase.starts_s + phase.duration_s <= record.total_s + 60
    carrying = {Verb.DUMP, Verb.DUMP_TRANSFER, Verb.PRE_DUMP, Verb.PRE_DUMP_TRANSFER}
    if method is MigrationMethod.POST_COPY:  # after a round, what has changed often fits into the dump
        carrying.add(Verb.PAGES_FETCHED)
    for name in wanted & carrying:
        assert phases[name].size_bytes > 0, name
    assert 0 < record.downtime_s <= record.total_s
    assert (record.point_of_no_return_s is not None) == (method in LAZY)
    assert (record.pre_copy_rounds > 0) == (method in ROUNDS)


def test_forty_migrations_through_one_session(testbed) -> None:  # type: ignore[no-untyped-def]
    asyncio.run(_forty(testbed))


async def _forty(testbed) -> None:  # type: ignore[no-untyped-def]
    load = Load(memory_bytes=44 * MIB, working_set_bytes=8 * MIB, dirty_bytes_per_s=2 * MIB)
    client = ProbeClient(testbed.record, testbed.tools)
    mounted, started = set(mounts(testbed.record.folder)), set(processes(testbed.record.id))
    async with site(testbed, "shuttle", load=load, volume_bytes=2 * MIB, number=1) as there:
        client.open()
        try:
            await client.until_served(there.host)
            await client.start(there.host)
            records = []
            for turn in range(40):
                method = METHODS[turn % len(METHODS)]
                target = [name for name in there.nodes if name != there.home][turn // len(METHODS) % 2]
                record = await there.move(target, method)
                check_record(record, method)
                records.append(record)
            report = await client.stop()
        finally:
            client.close()
        assert Counter(record.method for record in records) == dict.fromkeys(METHODS, 10)
        assert len({record.target for record in records}) == 3
        assert report.whole, report
        assert report.answered == report.sent > 1000
        assert report.longest_gap_s < 5.0
        assert await there.leftovers() == []
        for name, node in there.nodes.items():
            filed = [record for record in records if record.source == name]
            assert len([b for b in node.journal.records() if b"shuttle-" in b]) == len(filed)
    left = {p for p in processes(testbed.record.id) if p not in started}
    assert left == set()
    assert set(mounts(testbed.record.folder)) == mounted


def test_dump_and_volume_transfer_overlap(testbed) -> None:  # type: ignore[no-untyped-def]
    asyncio.run(_overlap(testbed))


async def _overlap(testbed) -> None:  # type: ignore[no-untyped-def]
    load = Load(memory_bytes=44 * MIB)
    async with site(testbed, "heavy", load=load, volume_bytes=256 * MIB, number=2) as there:
        digests = {}
        for method, target in ((MigrationMethod.COLD, "node-1"), (MigrationMethod.POST_COPY, "node-2")):
            record = await there.move(target, method)
            check_record(record, method)
            phases = {phase.name: phase for phase in record.phases}
            volume = phases[Verb.VOLUME_TRANSFER]
            assert volume.size_bytes >= 256 * MIB
            assert volume.transferred_bytes >= 250 * MIB  # nobody had it there
            dump = _overlap_s(volume, phases[Verb.DUMP])
            transfer = _overlap_s(volume, phases[Verb.DUMP_TRANSFER])
            assert dump > 0.5 * phases[Verb.DUMP].duration_s, (volume, phases[Verb.DUMP])
            assert transfer > 0, (volume, phases[Verb.DUMP_TRANSFER])
            digests[method] = _size(there.ports[target].layout.rootfs("heavy") / "data")
        assert set(digests.values()) == {256 * MIB}
        assert await there.leftovers() == []


def _overlap_s(a: Phase, b: Phase) -> float:
    return min(a.starts_s + a.duration_s, b.starts_s + b.duration_s) - max(a.starts_s, b.starts_s)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("method", METHODS)
def test_a_target_that_has_it_already_refuses_and_nothing_changes(testbed, method: MigrationMethod) -> None:  # type: ignore[no-untyped-def]
    asyncio.run(_refused(testbed, method))


async def _refused(testbed, method: MigrationMethod) -> None:  # type: ignore[no-untyped-def]
    async with site(testbed, "stays", load=Load(), volume_bytes=0, number=3) as there:
        rival = there.ports["node-1"]
        await start(testbed.record, "node-1", there.spec, tools=testbed.tools, rng=random.Random(2))
        await rival.bridge.detach("stays")
        await there.ports["node-0"].bridge.attach("stays")
        record = await there.move("node-1", method)
        assert record.state in (MigrationState.REFUSED, MigrationState.ROLLED_BACK)
        assert record.runs_on == "node-0"
        assert "node-1" in record.error
        await rival.runtime.destroy("stays", key="end")
        await rival.bridge.remove("stays")
        assert await there.leftovers() == []
