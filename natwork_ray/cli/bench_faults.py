"""The fault campaign on the real testbed: migrations that are shot at, one fault each, and what came of the container.

Each fault is drawn before the campaign begins: kind, method, direction, and the step of the migration at which it
strikes. The migration runs in agent processes of their own (natwork_ray.cli.node_process); the campaign follows its
progress and strikes when that step is reported as under way, a seeded few milliseconds into it. Kinds:

- `agent-source`, `agent-target`: kill -9 of the node's agent; it is started again at once, as a supervisor would, and
  the source's settles what its journal holds;
- `criu-source`, `criu-target`: kill -9 of every criu and runc that works for the container on that node;
- `sshd-target`: kill -9 of the target's sshd with all its sessions; started again after a second;
- `disk-source`, `disk-target`: the node's tmpfs of checkpoints is full from that step on, until the migration is over;
- `link-short`, `link-long`: the target's port of the bridge is down for a second, or for ten, which ends SSH and calls.

After each the world is looked at, not the record alone: the container runs on exactly one node, its address is on one,
it answers a new client, and nothing is left (images, processes, namespaces, open journals, bundles elsewhere). A client
with a numbered session watches. The container counts every request that it answers, in memory: asked before and after,
the count tells whether memory was `kept`, `set back` (the same instance, but it has forgotten answers that it gave past
the point of no return of post-copy) or `lost` (another instance, from scratch). The last two fail the campaign,
unless the migration was past the point of no return and its record says so: there the method documents the loss. A shot
that hit nothing is repeated with the next migration and listed as missed: as many faults are reported as asked for.

Left out: loss of power (what is not synchronised is lost there, too), and two faults at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from natwork_ray.adapters import testbed, testbed_containers
from natwork_ray.adapters.machine import Machine
from natwork_ray.adapters.probe_client import ProbeClient
from natwork_ray.adapters.prober import ProbeReport
from natwork_ray.adapters.runc_calls import SESSIONS
from natwork_ray.adapters.subprocesses import family
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_network import FIRST_CONTAINER, checked, host_link
from natwork_ray.adapters.testbed_requirements import Toolchain, require
from natwork_ray.adapters.testbed_sshd import environment
from natwork_ray.adapters.testbed_state import OwnProcess, TestbedRecord
from natwork_ray.adapters.testbed_traces import kill
from natwork_ray.adapters.workload import ECHO_PORT, Load, workload_spec
from natwork_ray.cli.bench_migration import state_folder
from natwork_ray.cli.fault_plan import KEPT, LOST, SET_BACK, Fault, Struck, document, draw
from natwork_ray.cli.node_process import TOKEN, NodeCalls, Standing, calls_of
from natwork_ray.domain.migrations import MigrationProgress, MigrationRecord
from natwork_ray.domain.runtime import ContainerState
from natwork_ray.domain.values import Backend, decode, encode
from natwork_ray.errors import ActionError, NatworkError, TimedOutError
from natwork_ray.limi.steps import MigrationStarted

CONTAINER = "shot-at"
MIB = 2**20
_NODES = ("node-0", "node-1", "node-2")
_READY_S, _MIGRATION_S, _SETTLE_S = 20.0, 180.0, 15.0
_SHORT_S, _LONG_S, _SSHD_DEAD_S = 1.0, 10.0, 1.0
_WATCH_S = 0.3
_PROGRAMS_S = 1.0
_SHOTS = 3  # at most, until a fault hits anything
_ANSWER_S = 20.0


def measure(*, faults: int, seed: int, memory_bytes: int, bar: Any) -> dict[str, Any]:
    """The campaign in a folder of its own; see `run`."""
    task = bar.add_task("making a testbed", total=faults)

    def told(what: str, done: int) -> None:
        bar.update(task, description=what, completed=done)

    with state_folder() as folder:
        return asyncio.run(run(faults=faults, seed=seed, memory_bytes=memory_bytes, state_dir=folder, told=told))


async def run(
    *, faults: int, seed: int, memory_bytes: int, state_dir: Path, told: Callable[[str, int], None]
) -> dict[str, Any]:
    """The campaign, on a testbed of its own; a document for JSON, whose `passed` says whether everything held.

    Raises:
        PreconditionError: something that real migration needs is missing; nothing was changed.
    """
    tools = require()
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    plan = draw(rng, faults)
    began = time.monotonic()
    names = random.SystemRandom()  # two campaigns of one seed at once must not meet
    record = testbed.plan(
        state_dir, nodes=len(_NODES), images_bytes=4 * memory_bytes + 128 * MIB, tools=tools, rng=names,
        now_s=time.time(),
    )  # fmt: skip
    record = testbed.up(record, tools=tools, rng=names)
    results: list[Struck] = []
    try:
        campaign = Campaign(record, tools, rng, memory_bytes)
        try:
            await campaign.open()
            for done, fault in enumerate(plan):
                told(f"{fault.kind} at {fault.step} ({fault.method})", done)
                for _ in range(_SHOTS):
                    results.append(await campaign.strike(len(results), fault))
                    if results[-1].struck:
                        break
                if not results[-1].runs_on:
                    break  # there is nothing left to shoot at
        finally:
            await campaign.close()
    finally:
        await asyncio.to_thread(testbed.down, state_dir)
    left = [str(trace) for trace in testbed.traces(record)]
    return document(results, wanted=faults, seed=seed, left=left, wall_s=time.monotonic() - began)


class Campaign:
    """The testbed under fire: three agents, one container, one client."""

    def __init__(self, record: TestbedRecord, tools: Toolchain, rng: random.Random, memory_bytes: int) -> None:
        self._record, self._tools, self._rng, self._memory_bytes = record, tools, rng, memory_bytes
        self._machine = Machine()
        self._agents: dict[str, asyncio.subprocess.Process] = {}
        self._calls: dict[str, NodeCalls] = {}
        self._client = ProbeClient(record, tools)
        base, _, prefix = record.network.partition("/")
        self._host = f"{base.rpartition('.')[0]}.{FIRST_CONTAINER}"
        self._spec = workload_spec(
            CONTAINER, address=f"{self._host}/{prefix}", mac="02:00:00:00:00:01",
            load=Load(memory_bytes=memory_bytes, working_set_bytes=memory_bytes // 4, dirty_bytes_per_s=MIB),
        )  # fmt: skip
        self._home = _NODES[0]
        self._strikes: list[float] = []
        self._after: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Agents, client, container."""
        testbed_token = self._record.folder / TOKEN
        with os.fdopen(os.open(testbed_token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32))
        self._client.open()
        for node in _NODES:
            await self._start_agent(node)
        await testbed_containers.start(
            self._record, self._home, self._spec, tools=self._tools, rng=self._rng, volume_bytes=4 * MIB
        )
        await self._client.until_served(self._host)

    async def close(self) -> None:
        """End the agents; `down` ends the rest."""
        for calls in self._calls.values():
            await calls.close()
        for process in self._agents.values():
            if process.returncode is None:
                process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(5):
                        await process.wait()
        self._client.close()

    async def strike(self, number: int, fault: Fault) -> Struck:
        """One migration with one fault."""
        source = self._home
        target = self._rng.choice([node for node in _NODES if node != source])
        started = MigrationStarted(
            at_s=time.time(), key=f"fault-{number}", container=CONTAINER, source=source, target=target,
            method=fault.method, backend=Backend.REAL, max_rounds=2,
        )  # fmt: skip
        self._strikes.clear()
        before = await self._count()
        await self._client.start(self._host)
        await asyncio.sleep(_WATCH_S)
        record = await self._migrate(started, fault)
        settled_s = time.monotonic()
        for task in self._after:
            await task
        self._after.clear()
        self._mend()
        await asyncio.sleep(_WATCH_S)
        report = await self._client.stop(patience_s=10.0)
        return await self._look(number, fault, started, record, report, before, settled_s)

    # The migration and the shot.

    async def _migrate(self, started: MigrationStarted, fault: Fault) -> MigrationRecord | None:
        reached = asyncio.Event()

        def progress(now: MigrationProgress) -> None:
            if any(name == fault.step for name in now.under_way):
                reached.set()

        shooter = asyncio.create_task(self._shoot(reached, fault, started))
        try:
            async with asyncio.timeout(_MIGRATION_S):
                try:
                    said = await self._calls[started.source].call("drive", encode(started), progress)
                    return decode(MigrationRecord, said)
                except TimedOutError:
                    return await self._recovered(started)
                except NatworkError:
                    return None
        except TimeoutError:
            return None
        finally:
            shooter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await shooter

    async def _recovered(self, started: MigrationStarted) -> MigrationRecord | None:
        """The agent that drove is dead: the next one settles what its journal holds."""
        while True:
            try:
                said = await self._calls[started.source].call("recover")
                settled: tuple[MigrationRecord, ...] = decode(tuple[MigrationRecord, ...], said)
                return next((record for record in settled if record.key == started.key), None)
            except TimedOutError:
                await asyncio.sleep(0.05)

    async def _shoot(self, reached: asyncio.Event, fault: Fault, started: MigrationStarted) -> None:
        await reached.wait()
        await asyncio.sleep(fault.delay_s)
        kind, _, where = fault.kind.partition("-")
        node = started.source if where == "source" else started.target
        layout = self._record.node(node)
        match kind:
            case "agent":
                agent = self._agents[node]
                agent.kill()
                self._hit()
                await agent.wait()
                await self._start_agent(node)
            case "criu":
                await self._kill_criu(layout)
            case "sshd":
                self._kill_sshd(node)
                self._after.append(asyncio.create_task(self._restart_sshd(node)))
            case "disk":
                self._fill(layout)
            case _:
                link = host_link(layout)
                checked(self._machine, [str(self._tools.ip), "link", "set", link, "down"])
                self._hit()
                self._after.append(asyncio.create_task(self._restore_link(link, where)))

    def _hit(self) -> None:
        self._strikes.append(time.monotonic())

    async def _kill_criu(self, layout: NodeLayout) -> None:
        """Kill what runC and CRIU have running there; wait a moment for it, since a step begins before its programs."""
        deadline = time.monotonic() + _PROGRAMS_S
        while time.monotonic() < deadline:
            victims = programs_of(layout)
            if victims:
                for victim in victims:
                    kill(victim)
                self._hit()
                return
            await asyncio.sleep(0.001)

    def _kill_sshd(self, node: str) -> None:
        ours = next(p for p in self._record.processes if p.what == f"sshd of {node}")
        with contextlib.suppress(psutil.NoSuchProcess):
            daemon = psutil.Process(ours.pid)
            for process in [daemon, *daemon.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._hit()

    async def _restart_sshd(self, node: str) -> None:
        await asyncio.sleep(_SSHD_DEAD_S)
        self._record = await asyncio.to_thread(testbed.restart_sshd, self._record, node, tools=self._tools)

    def _fill(self, layout: NodeLayout) -> None:
        stones = layout.images / "stones"
        with stones.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while stream.write(bytes(MIB)):
                pass
        self._hit()

    async def _restore_link(self, link: str, length: str) -> None:
        await asyncio.sleep(_LONG_S if length == "long" else _SHORT_S)
        checked(self._machine, [str(self._tools.ip), "link", "set", link, "up"])

    def _mend(self) -> None:
        for layout in self._record.nodes:
            (layout.images / "stones").unlink(missing_ok=True)

    # What came of it.

    async def _look(
        self, number: int, fault: Fault, started: MigrationStarted, record: MigrationRecord | None,
        report: ProbeReport, before: tuple[int, str], settled_s: float,
    ) -> Struck:  # fmt: skip
        deadline = time.monotonic() + _SETTLE_S
        while True:
            standings = {node: await self._standing(node) for node in _NODES}
            running = tuple(n for n, s in standings.items() if s.status.state is ContainerState.RUNNING)
            left = self._leftovers(standings, running)
            if (len(running) == 1 and not left) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        if running:
            self._home = running[0]
        return Struck(
            fault=fault,
            number=number,
            struck=bool(self._strikes),
            state=str(record.state) if record else "unknown",
            error=record.error if record else "no record",
            source=started.source,
            target=started.target,
            runs_on=running,
            addresses=tuple(node for node, standing in standings.items() if standing.attached),
            served=await self._served(),
            session_kept=not report.error and report.lost == 0,
            memory=_memory(before, await self._count(), report),
            confessed=record is not None and confessed(record),
            recovery_s=settled_s - self._strikes[0] if self._strikes else 0.0,
            gap_s=report.longest_gap_s,
            leftovers=left,
        )

    async def _standing(self, node: str) -> Standing:
        return decode(Standing, await self._calls[node].call("standing", CONTAINER.encode()))

    async def _count(self) -> tuple[int, str]:
        """How many requests the container says that it answered, this one included, and its instance."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_connection(self._host, ECHO_PORT)
                try:
                    writer.write(b"0\n")
                    words = (await reader.readline()).decode("ascii", errors="replace").split()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return 0, ""
        return (int(words[1]), words[2]) if len(words) == 3 and words[1].isdecimal() else (0, "")

    async def _served(self) -> bool:
        try:
            await self._client.start(self._host)
            return (await self._client.stop()).whole
        except (ActionError, TimedOutError):
            return False

    def _leftovers(self, standings: dict[str, Standing], running: tuple[str, ...]) -> tuple[str, ...]:
        left: list[str] = []
        for node, standing in standings.items():
            layout = self._record.node(node)
            left += [f"{node}: open journal {key}" for key in standing.open_keys]
            left += [f"{node}: images {entry.name}" for entry in images_of(layout)]
            left += [f"{node}: process {process.pid}" for process in programs_of(layout)]
            if node in running:
                continue
            if standing.status.state is not ContainerState.ABSENT:
                left.append(f"{node}: {standing.status.state} container")
            if (Path("/run/netns") / layout.container_netns(CONTAINER)).exists():
                left.append(f"{node}: network namespace")
            if layout.bundle(CONTAINER).exists():
                left.append(f"{node}: bundle")
        return tuple(left)

    # Agents.

    async def _start_agent(self, node: str) -> None:
        if node in self._calls:
            await self._calls[node].close()
        program = [sys.executable, "-m", "natwork_ray.cli.node_process", str(self._record.folder.parent), node]
        process = await asyncio.create_subprocess_exec(
            *program,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **environment(self._record.id)},
        )
        self._agents[node] = process
        async with asyncio.timeout(_READY_S):
            said = await process.stdout.readline() if process.stdout is not None else b""
        if said != b"ready\n":
            raise ActionError(f"the agent of {node} does not start", hint="see its words on standard error")
        self._calls[node] = calls_of(self._record, node)


def _memory(before: tuple[int, str], after: tuple[int, str], report: ProbeReport) -> str:
    """What became of the memory between two questions, while `report.answered` requests were answered."""
    if after[1] != before[1]:
        return LOST
    return KEPT if after[0] - before[0] > report.answered else SET_BACK


def confessed(record: MigrationRecord) -> bool:
    """Whether a record tells of a loss past the point of no return, where the methods document one."""
    return record.point_of_no_return_s is not None and bool(record.error)


def programs_of(layout: NodeLayout) -> tuple[OwnProcess, ...]:
    """What works for migrations on a node just now: runC, CRIU and what they start. The container is not among them."""
    return family(f"{layout.testbed}/{layout.name}/", layout.folder / SESSIONS)


def images_of(layout: NodeLayout) -> list[Path]:
    """Checkpoints on a node."""
    return [entry for entry in layout.images.iterdir() if entry.is_dir()] if layout.images.is_dir() else []
