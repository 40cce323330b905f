"""Real migrations measured side by side in one run: ours, the ideal by hand, and podman (D3.3 section 2.1).

A run makes a testbed of its own with two nodes, two containers of the same workload (one is moved by us and by hand,
the other one by podman), and a client in a network namespace of its own. Each repetition moves once by every arm: each
method by us, each method by hand, podman; every other repetition in the reverse order, so that a drift of the machine
meets all arms alike. Before the first one each arm is warmed up once, which is not counted: connections between the
nodes stay open, as they do between agents.

What is compared:

- *ours*: `limi.driver.drive` with the real adapters and the journal on disk, all in this process, without Ray. Total
  time and phases are the record's, downtime is the longest gap of the client;
- *ideal*: `natwork_ray.adapters.ideal_move`, the same commands by hand;
- *podman*: `natwork_ray.adapters.podman_peer`.

The testbed is taken down at the end, whatever happened, and what is left of it is part of the result.

    result = await measure(BenchPlan(runs=10, memory_bytes=64 * 2**20, ...), Path("/var/lib/x"), rng=random.Random(1))
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from natwork_ray.adapters import testbed, testbed_containers
from natwork_ray.adapters.ideal_move import IdealMove
from natwork_ray.adapters.podman_peer import PeerMove, PodmanPeer
from natwork_ray.adapters.probe_client import ProbeClient
from natwork_ray.adapters.prober import ProbeReport
from natwork_ray.adapters.testbed_network import FIRST_CONTAINER
from natwork_ray.adapters.testbed_requirements import Toolchain, require
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.adapters.testbed_world import NodePorts, build_node, build_ports
from natwork_ray.adapters.workload import BASE_MEMORY_BYTES, Load, make_rootfs, workload_spec
from natwork_ray.domain.migrations import MigrationRecord, MigrationState
from natwork_ray.domain.phases import MigrationMethod, Phase
from natwork_ray.domain.runtime import ContainerSpec
from natwork_ray.domain.values import Backend, value
from natwork_ray.errors import ActionError, UsageError
from natwork_ray.limi.driver import drive
from natwork_ray.limi.migration_bench import IDEAL, OURS, Measurement
from natwork_ray.limi.node import LimiNode
from natwork_ray.limi.steps import MigrationStarted

T = TypeVar("T")
CONTAINER = "bench"
PODMAN = "podman"
_NODES = ("node-0", "node-1")
_BEFORE_S, _AFTER_S = 0.3, 0.3  # the client watches so long before and after a move


@value
class BenchPlan:
    """What is to be measured.

    Attributes:
        runs: repetitions of every arm, at least 1.
        memory_bytes: resident memory of the workload, what Python itself takes included: at least 20 MiB.
        volume_bytes: data in its writable file system.
        dirty_bytes_per_s: distinct pages that it writes while it runs.
        peer: whether podman is measured where it is installed.
    """

    runs: int
    memory_bytes: float
    volume_bytes: float
    methods: tuple[MigrationMethod, ...]
    seed: int
    peer: bool = True
    dirty_bytes_per_s: float = 0.0

    @property
    def moves(self) -> int:
        """How many moves that makes, warm-up left out."""
        return self.runs * (2 * len(self.methods) + self.peer)

    def load(self) -> Load:
        """The workload's load.

        Raises:
            UsageError: less memory than Python takes.
        """
        held = int(self.memory_bytes) - BASE_MEMORY_BYTES
        if held <= 0:
            raise UsageError(
                f"memory = {self.memory_bytes:.0f} bytes is less than an idle workload takes", hint="32MiB or more"
            )
        return Load(memory_bytes=held, working_set_bytes=held // 4, dirty_bytes_per_s=int(self.dirty_bytes_per_s))


@value
class BenchResult:
    """All of it. `peers` holds what is to be said of a peer beside its figures."""

    measurements: tuple[Measurement, ...]
    peers: dict[str, dict[str, str]]
    versions: dict[str, str]
    sizes: dict[str, float]
    notes: dict[str, str]
    leftovers: tuple[str, ...]


@dataclass
class Bench:
    """A testbed with everything in place; `close` takes all but the testbed itself away."""

    plan: BenchPlan
    record: TestbedRecord
    tools: Toolchain
    rng: random.Random
    home: str = _NODES[0]
    ports: dict[str, NodePorts] = field(default_factory=dict)
    nodes: dict[str, LimiNode] = field(default_factory=dict)
    peer: PodmanPeer | None = None
    moved: int = 0

    async def open(self) -> None:
        """Nodes, client, containers."""
        self.client = ProbeClient(self.record, self.tools)
        self.client.open()
        for name in _NODES:
            self.ports[name] = build_ports(self.record, name, self.tools)
            self.nodes[name] = build_node(self.ports[name])
        self.ideal = IdealMove(self.record, self.tools, self.ports, volume_bytes=self.plan.volume_bytes)
        self.spec = self._spec(CONTAINER, 0)
        await testbed_containers.start(
            self.record, self.home, self.spec, tools=self.tools, rng=self.rng, volume_bytes=int(self.plan.volume_bytes)
        )
        await self.client.until_served(_host(self.spec))
        podman = shutil.which("podman") if self.plan.peer else None
        if podman is not None:
            self.peer = PodmanPeer(self.record, _NODES, tools=self.tools, podman=Path(podman))
            rootfs = self.record.folder / "peer-rootfs"
            make_rootfs(rootfs, volume_bytes=int(self.plan.volume_bytes), rng=self.rng)
            await self.peer.prepare(rootfs)
            await self.peer.start(self._spec("peer", 1), binds=[(Path("/usr"), "/usr")])
            await self.client.until_served(_host(self._spec("peer", 1)))

    async def close(self) -> None:
        """End connections, threads and podman; `down` ends the rest."""
        if self.peer is not None:
            await self.peer.remove()
        await self.ideal.close()
        for name in _NODES:
            await self.nodes[name].close()
            await self.ports[name].shut()
        self.client.close()

    async def ours(self, run: int, method: MigrationMethod) -> Measurement:
        """One migration by us.

        Raises:
            ActionError: it did not arrive.
        """
        source, target = self._ends()
        self.moved += 1

        async def move() -> MigrationRecord:
            here = self.nodes[source]
            started = MigrationStarted(
                at_s=here.clock.now_s(), key=f"bench-{self.moved}", container=CONTAINER, source=source, target=target,
                method=method, backend=Backend.REAL,
            )  # fmt: skip
            return await drive(started, source=here, target=self.nodes[target], journal=here.journal, clock=here.clock)

        record, report = await self._watched(self.spec, move)
        if record.state is not MigrationState.MIGRATED:
            raise ActionError(
                f"{method} to {target}: {record.state}: {record.error}", hint=record.hint or "see its log"
            )
        self.home = target
        return Measurement(
            run=run, who=OURS, method=method, total_s=record.total_s, downtime_s=report.longest_gap_s,
            record_downtime_s=record.downtime_s, lost_replies=faults(report), phases=record.phases,
            rounds=record.pre_copy_rounds,
        )  # fmt: skip

    async def by_hand(self, run: int, method: MigrationMethod, rounds: int) -> Measurement:
        """The same commands alone."""
        source, target = self._ends()
        phases, report = await self._watched(
            self.spec, lambda: self.ideal.move(self.spec, source, target, method, rounds=rounds)
        )
        self.home = target
        return Measurement(
            run=run, who=IDEAL, method=method, total_s=sum(p.duration_s for p in phases),
            downtime_s=report.longest_gap_s, lost_replies=faults(report), phases=phases, rounds=rounds,
        )  # fmt: skip

    async def by_peer(self, run: int, peer: PodmanPeer) -> Measurement:
        """A move by podman."""
        move, report = await self._watched(self._spec("peer", 1), peer.move)
        return Measurement(
            run=run, who=PODMAN, method="checkpoint and restore", total_s=move.total_s,
            downtime_s=report.longest_gap_s, lost_replies=faults(report), phases=_phases(move),
        )  # fmt: skip

    def _ends(self) -> tuple[str, str]:
        return self.home, _NODES[1 - _NODES.index(self.home)]

    def _spec(self, name: str, number: int) -> ContainerSpec:
        base, _, prefix = self.record.network.partition("/")
        address = f"{base.rpartition('.')[0]}.{FIRST_CONTAINER + number}/{prefix}"
        return workload_spec(name, address=address, mac=f"02:00:00:00:00:{number + 1:02x}", load=self.plan.load())

    async def _watched(self, spec: ContainerSpec, move: Callable[[], Awaitable[T]]) -> tuple[T, ProbeReport]:
        """What `move` returns, and what the client saw of it."""
        await self.client.start(_host(spec))
        await asyncio.sleep(_BEFORE_S)
        try:
            outcome = await move()
            await asyncio.sleep(_AFTER_S)
        finally:
            report = await self.client.stop()
        return outcome, report


def faults(report: ProbeReport) -> int:
    """Replies that were lost, came twice or out of order, and a session that did not live."""
    broken = bool(report.error) + (report.instances > 1) + report.count_breaks
    return report.lost + report.duplicated + report.reordered + broken


def _host(spec: ContainerSpec) -> str:
    return spec.address.partition("/")[0]


def _phases(move: PeerMove) -> tuple[Phase, ...]:
    at_s, found = 0.0, []
    for name, duration_s, size in (
        ("checkpoint", move.checkpoint_s, move.size_bytes),
        ("transfer", move.transfer_s, move.size_bytes),
        ("restore", move.restore_s, 0.0),
        ("address", move.address_s, 0.0),
    ):
        found.append(Phase(name=name, duration_s=duration_s, starts_s=at_s, size_bytes=size))
        at_s += duration_s
    return tuple(found)


async def measure(
    plan: BenchPlan,
    state_dir: Path,
    *,
    rng: random.Random,
    told: Callable[[str, int], None] = lambda _what, _done: None,
) -> BenchResult:
    """Make a testbed below `state_dir`, measure, take it down.

    Args:
        told: hears what is being measured and how many moves are done.

    Raises:
        PreconditionError: something is missing; nothing was changed.
        ActionError: a move failed.
    """
    tools = require(plan.methods)
    plan.load()
    record = testbed.plan(state_dir, nodes=len(_NODES), tools=tools, rng=rng, now_s=time.time())
    record = testbed.up(record, tools=tools, rng=rng)
    try:
        bench = Bench(plan, record, tools, rng)
        try:
            await bench.open()
            measurements = await _all(bench, told)
            versions = {
                "criu": _version([str(tools.criu), "--version"]),
                "runc": _version([str(tools.runc), "--version"]),
                "rsync": _version([str(tools.rsync), "--version"]),
                "ssh": _version([str(tools.ssh), "-V"]),
            }
            facts: dict[str, dict[str, str]] = {}
            notes = {"ideal": "see docs/testbed.md", "warm_up": "one move per arm, not counted"}
            if bench.peer is not None:
                versions[PODMAN] = await bench.peer.version()
                facts[PODMAN] = {
                    "version": versions[PODMAN],
                    "measured": "longest gap in the client's numbered TCP session, which survives",
                    "transfer": "the same rsync through the same nodes' sshd, connection open, archive on tmpfs",
                    "address": "moved by our own bridge",
                }
            elif plan.peer:
                notes["peers"] = "podman is not installed: scripts/install_testbed --with-podman"
        finally:
            await bench.close()
    finally:
        await asyncio.to_thread(testbed.down, state_dir)
    return BenchResult(
        measurements=measurements, peers=facts, versions=versions, notes=notes,
        sizes={"memory_bytes": plan.memory_bytes, "volume_bytes": plan.volume_bytes},
        leftovers=tuple(str(trace) for trace in testbed.traces(record)),
    )  # fmt: skip


async def _all(bench: Bench, told: Callable[[str, int], None]) -> tuple[Measurement, ...]:
    found: list[Measurement] = []
    rounds = dict.fromkeys(bench.plan.methods, 0)
    for run in range(-1, bench.plan.runs):  # the first one is the warm-up
        arms: list[tuple[str, MigrationMethod | None]] = []
        for each in bench.plan.methods:
            arms += [(OURS, each), (IDEAL, each)]
        if bench.peer is not None:
            arms.append((PODMAN, None))
        for who, method in reversed(arms) if run % 2 else arms:
            told(f"{who} {method or ''}".strip() if run >= 0 else "warming up", len(found))
            measurement = await _one(bench, run, who, method, rounds)
            if run >= 0:
                found.append(measurement)
    return tuple(found)


async def _one(
    bench: Bench, run: int, who: str, method: MigrationMethod | None, rounds: dict[MigrationMethod, int]
) -> Measurement:
    if method is None:
        if bench.peer is None:
            raise UsageError("there is no peer to measure", hint="install podman")
        return await bench.by_peer(run, bench.peer)
    if who == IDEAL:
        return await bench.by_hand(run, method, rounds[method])
    measurement = await bench.ours(run, method)
    rounds[method] = measurement.rounds
    return measurement


def _version(argv: Sequence[str]) -> str:
    done = subprocess.run(list(argv), capture_output=True, text=True, timeout=10, check=False)
    match = re.search(r"\d+(?:\.\d+)+\S*", done.stdout + done.stderr)
    return match[0].rstrip(",") if match else "unknown"
