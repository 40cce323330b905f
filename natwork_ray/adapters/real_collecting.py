"""The real data set: load classes as containers on a testbed of this machine, moved for real (D3.3 section 2.1).

A collection makes a testbed of its own with two nodes and takes it down at the end, whatever happened; that of a
collection that was killed is taken down by the next one (natwork_ray.adapters.testbed_orphans). For each run it
starts the dynamic workload at the levels of the class, with amounts drawn a little around them, and moves it by every
method in an order of its own, from wherever the move before left it. What is known before (`ContainerLoad`) is measured
before each move, by the agents' own code; a client with a numbered TCP session watches, so that downtime is also what
it saw.

Rules kept: a class that the machine cannot hold (memory: the container, and its checkpoint on both nodes) is left out,
and said so, before anything begins; a migration that fails is made again with a fresh container, three times at most,
since a row has to be a migration that arrived.

    plan, left_out = real_plan(seed=11, repetitions=3, classes=class_names())
    for rows in collect_real(plan, plan.keys()): ...

Left out: shaping of the link, so that the path is as quick as the machine; several containers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import psutil

from natwork_ray.adapters import testbed, testbed_containers
from natwork_ray.adapters.probe_client import ProbeClient
from natwork_ray.adapters.testbed_orphans import ephemeral
from natwork_ray.adapters.testbed_requirements import Toolchain, require
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.adapters.testbed_traces import delete_tree
from natwork_ray.adapters.testbed_world import NodePorts, build_node, build_ports
from natwork_ray.adapters.workload import BASE_MEMORY_BYTES, STORAGE, Load, load_of
from natwork_ray.domain.migrations import ContainerLoad, MigrationRecord
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.runtime import ContainerSpec
from natwork_ray.domain.values import Backend
from natwork_ray.errors import ActionError, InputError, NatworkError, PreconditionError
from natwork_ray.limi.collection import METHODS, CollectionPlan, RunKey, streams
from natwork_ray.limi.dataset import MigrationRow, row_of
from natwork_ray.limi.driver import drive
from natwork_ray.limi.load_classes import CPU_LEVELS, load_class
from natwork_ray.limi.node import LimiNode
from natwork_ray.limi.steps import MigrationStarted

MIB = 2**20
NODES = ("node-0", "node-1")
OBSERVE_S = 1.0
_SPREAD_SIGMA = 0.25  # of the drawn amounts, in their logarithm; cut at two sigmas
_WARM_UP_S = 0.5  # the workload writes and sends for so long before it is measured
_AFTER_S = 0.3
_ATTEMPTS = 3
_SHARE_OF_MEMORY = 0.5  # of what the machine has to spare: others work on it as well


def real_plan(
    *,
    seed: int,
    repetitions: int,
    classes: Sequence[str],
    methods: Sequence[MigrationMethod] = METHODS,
    available_bytes: float | None = None,
) -> tuple[CollectionPlan, tuple[tuple[str, str], ...]]:
    """What this machine can collect, and the classes that it cannot hold, each with the reason. Changes nothing.

    `available_bytes` None asks the machine.

    Raises:
        PreconditionError: real migration is not possible here, or no class fits.
    """
    require(methods)
    room = (psutil.virtual_memory().available if available_bytes is None else available_bytes) * _SHARE_OF_MEMORY
    kept, left_out = [], []
    for name in classes:
        needed = needed_bytes(name)
        if needed <= room:
            kept.append(name)
        else:
            left_out.append((name, f"takes {needed / MIB:.0f} MiB, {room / MIB:.0f} MiB may be used"))
    if not kept:
        raise PreconditionError("this machine can hold none of the classes", hint="free memory, or choose smaller ones")
    plan = CollectionPlan(
        backend=Backend.REAL, seed=seed, repetitions=repetitions, classes=tuple(kept), methods=tuple(methods)
    )
    return plan, tuple(left_out)


def needed_bytes(name: str) -> float:
    """Memory that a run of the class takes at most: container, and its checkpoints on both nodes' tmpfs."""
    load = load_of(load_class(name))
    largest = load.memory_bytes * float(np.exp(2 * _SPREAD_SIGMA)) + BASE_MEMORY_BYTES
    # Without dirty tracking each round of pre-copy is a whole checkpoint; two sets lie on either node at a time.
    return 5 * largest + load.storage_file_bytes


def drawn_load(key: RunKey, seed: int) -> tuple[Load, random.Random]:
    """The workload of a run, and the generator of everything else that is random about it."""
    rng, rest = streams(seed, key)
    levels = load_of(load_class(key.load_class))

    def near(amount: float) -> int:
        z = float(np.clip(rng.standard_normal(), -2, 2))
        return int(amount * np.exp(_SPREAD_SIGMA * z))

    memory = near(levels.memory_bytes)
    drawn = replace(
        levels,
        memory_bytes=memory,
        working_set_bytes=min(memory, near(levels.working_set_bytes)),
        dirty_bytes_per_s=near(levels.dirty_bytes_per_s),
        cpu_cores=min(1.0, near(levels.cpu_cores * 1000) / 1000),
        storage_bytes_per_s=near(levels.storage_bytes_per_s),
        network_bytes_per_s=near(levels.network_bytes_per_s),
    )
    return drawn, random.Random(int(rest.generate_state(1)[0]))  # noqa: S311 - replayed, and no secret


def collect_real(plan: CollectionPlan, keys: Sequence[RunKey]) -> Generator[tuple[MigrationRow, ...], None, None]:
    """The rows of these runs, one run at a time.

    Raises:
        PreconditionError: something that real migration needs is missing; nothing was changed.
        ActionError: a run failed three times.
    """
    if not keys:
        return
    tools = require(plan.methods)
    with ephemeral("nwc-") as folder:
        try:
            rng = random.SystemRandom()
            record = testbed.plan(folder, nodes=len(NODES), tools=tools, rng=rng, now_s=time.time())
            record = testbed.up(record, tools=tools, rng=rng)
            with asyncio.Runner() as runner:
                laboratory = RealLaboratory(plan, record, tools)
                try:
                    runner.run(laboratory.open())
                    for key in keys:
                        yield runner.run(laboratory.run(key))
                finally:
                    runner.run(laboratory.close())
        finally:
            testbed.down(folder)


@dataclass
class RealLaboratory:
    """A testbed with its nodes' ports open, and the client that watches."""

    plan: CollectionPlan
    record: TestbedRecord
    tools: Toolchain
    ports: dict[str, NodePorts] = field(default_factory=dict)
    nodes: dict[str, LimiNode] = field(default_factory=dict)
    made: int = 0

    def __post_init__(self) -> None:
        self.client = ProbeClient(self.record, self.tools)

    async def open(self) -> None:
        """Connect to the nodes."""
        self.client.open()
        for name in NODES:
            self.ports[name] = build_ports(self.record, name, self.tools)
            self.nodes[name] = build_node(self.ports[name])

    async def close(self) -> None:
        """End connections and threads; taking the testbed down ends the rest."""
        for node in self.nodes.values():
            await node.close()
        for ports in self.ports.values():
            await ports.shut()
        self.client.close()

    async def run(self, key: RunKey) -> tuple[MigrationRow, ...]:
        """The rows of one run, in the order of the plan's methods.

        Raises:
            ActionError: it failed as often as it may.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                rows = await self._run(key)
            except (ActionError, InputError) as error:
                if attempt == _ATTEMPTS:
                    raise ActionError(
                        f"{key.load_class}, repetition {key.repetition}: {error.what}", hint=error.hint
                    ) from error
            else:
                return tuple(sorted(rows, key=lambda row: self.plan.methods.index(row.method)))
        raise AssertionError  # the last attempt returns or raises

    async def _run(self, key: RunKey) -> list[MigrationRow]:
        load, rng = drawn_load(key, self.plan.seed)
        kind = load_class(key.load_class)
        limit = CPU_LEVELS[kind.cpu].limit_cores
        self.made += 1
        spec = testbed_containers.new_spec(self.record, f"load-{self.made}", load, cpu_limit_cores=limit)
        methods = list(self.plan.methods)
        rng.shuffle(methods)
        home = NODES[0]
        rows = []
        try:
            await testbed_containers.start(
                self.record, home, spec, tools=self.tools, rng=rng, volume_bytes=STORAGE[kind.storage][1]
            )
            await self.client.until_served(_host(spec))
            for method in methods:
                target = NODES[1 - NODES.index(home)]
                await asyncio.sleep(_WARM_UP_S)
                record = await self._move(spec, home, target, method)
                rows.append(row_of(record, load_class=kind, repetition=key.repetition, seed=self.plan.seed))
                home = target
        finally:
            await self._remove(spec)
        return rows

    async def _move(self, spec: ContainerSpec, source: str, target: str, method: MigrationMethod) -> MigrationRecord:
        load = await self._measured(spec.name, source, target)
        here = self.nodes[source]
        started = MigrationStarted(
            at_s=here.clock.now_s(),
            key=f"{spec.name}-{method}",
            container=spec.name,
            source=source,
            target=target,
            method=method,
            backend=Backend.REAL,
            load=load,
        )
        await self.client.start(_host(spec))
        try:
            record = await drive(
                started, source=here, target=self.nodes[target], journal=here.journal, clock=here.clock
            )
            await asyncio.sleep(_AFTER_S)
        finally:
            report = await self.client.stop()
        if report.error or report.instances > 1:
            raise ActionError(f"{method}: the client's session broke: {report.error}", hint="see the records")
        return replace(record, client_downtime_s=report.longest_gap_s)

    async def _measured(self, container: str, source: str, target: str) -> ContainerLoad:
        ports = self.ports[source]
        load = await ports.runtime.load(container, observe_s=OBSERVE_S)
        path = await ports.transfer.open(target)
        return replace(load, bandwidth_bytes_per_s=path.bandwidth_bytes_per_s, rtt_s=path.rtt_s)

    async def _remove(self, spec: ContainerSpec) -> None:
        for ports in self.ports.values():
            with contextlib.suppress(
                NatworkError
            ):  # of a node that never had it; taking the testbed down ends the rest
                await ports.runtime.destroy(spec.name, key="remove")
                await ports.bridge.remove(spec.name)
            delete_tree(ports.layout.bundle(spec.name))


def _host(spec: ContainerSpec) -> str:
    return spec.address.partition("/")[0]
