"""runC and CRIU for real: all verbs between two nodes, and what is left of a container after kills and full disks."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import random
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters import criu_source
from natwork_ray.adapters.container_load import look
from natwork_ray.adapters.criu_pagemap import PAGE
from natwork_ray.adapters.rsync_ssh import RsyncSsh
from natwork_ray.adapters.runc_criu import RuncCriu
from natwork_ray.adapters.subprocesses import family
from natwork_ray.adapters.testbed_containers import new_spec, start
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_network import NETNS
from natwork_ray.adapters.testbed_traces import mounts
from natwork_ray.adapters.testbed_world import NodePorts, build_ports
from natwork_ray.adapters.workload import ECHO_PORT, Load
from natwork_ray.domain.actions import Restart, SetLimits
from natwork_ray.domain.runtime import ContainerSpec, ContainerState, Revival
from natwork_ray.domain.values import encode
from natwork_ray.errors import ActionError, NatworkError, NotFoundError

MIB = 2**20
LOAD = Load(memory_bytes=24 * MIB, working_set_bytes=2 * MIB, dirty_bytes_per_s=2 * MIB)
ANSWER_S = 20.0


def in_a_loop(test: Callable[..., Coroutine[object, object, None]]) -> Callable[..., None]:
    """Run a coroutine as a test, in an event loop of its own."""

    @functools.wraps(test)
    def run(*given: object, **named: object) -> None:
        asyncio.run(test(*given, **named))

    return run


@dataclass
class Session:
    """A TCP session with the workload that checks every reply."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    asked: int = 0
    instance: str = ""

    async def ask(self) -> str:
        """One request; the instance that answered. Fails when replies were lost, doubled, or from another instance."""
        self.asked += 1
        self.writer.write(b"%d\n" % self.asked)
        words = (await asyncio.wait_for(self.reader.readline(), ANSWER_S)).decode().split()
        assert words[:1] == [str(self.asked)]
        assert self.instance in ("", words[2])
        self.instance = words[2]
        return words[2]

    def close(self) -> None:
        self.writer.transport.abort()


@dataclass
class Site:
    """A container on the first of two nodes."""

    spec: ContainerSpec
    here: NodePorts
    there: NodePorts
    session: Session = field(init=False)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def host(self) -> str:
        return self.spec.address.partition("/")[0]

    def turn(self) -> None:
        self.here, self.there = self.there, self.here

    async def instance(self) -> str:
        """Who answers a new session."""
        for _ in range(200):
            try:
                session = await asyncio.wait_for(connect(self.host), ANSWER_S)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            try:
                return await session.ask()
            except (OSError, AssertionError):
                await asyncio.sleep(0.05)
            finally:
                session.close()
        raise AssertionError("nobody answers")


async def connect(host: str) -> Session:
    reader, writer = await asyncio.open_connection(host, ECHO_PORT)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Session(reader, writer)


def left_below(layout: NodeLayout, key: str) -> list[str]:
    """What a migration has left on a node."""
    found = [str(path) for path in (layout.image_set(key, ""), layout.folder / "criu" / key) if path.exists()]
    found += [f"mount {path}" for path in mounts(layout.folder) if path != layout.images]
    found += [
        f"process {process.pid}" for process in family(f"{layout.testbed}/{layout.name}/", layout.folder / "sessions")
    ]
    return found


def cgroups_of(layout: NodeLayout, container: str) -> list[str]:
    return [str(path) for path in Path("/sys/fs/cgroup").glob(f"*{layout.cgroup(container)}")]


def named(pid: int) -> str:
    """The program that a process runs; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def of_process(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}", name).read_text(encoding="ascii")


@asynccontextmanager
async def site(testbed: Any, load: Load = LOAD) -> AsyncIterator[Site]:
    record, rng = testbed.record, random.Random()
    name = f"rc-{secrets.token_hex(3)}"
    spec = new_spec(record, name, load)
    ports = [build_ports(record, node.name, testbed.tools) for node in record.nodes[:2]]
    await start(record, ports[0].layout.name, spec, tools=testbed.tools, rng=rng)
    session: Session | None = None
    try:
        made = Site(spec, ports[0], ports[1])
        await made.instance()
        made.session = session = await connect(made.host)
        await session.ask()
        await ports[0].runtime.abilities()
        await ports[1].runtime.abilities()
        yield made
    finally:
        if session is not None:
            session.close()
        for port in ports:
            await port.runtime.destroy(name, key="end")
            await port.bridge.remove(name)
            await port.shut()
        for port in ports:
            assert (await port.runtime.status(name)).state is ContainerState.ABSENT
            assert cgroups_of(port.layout, name) == []


async def send(at: Site, key: str, images: str, basis: str | None = None) -> None:
    transfer: RsyncSsh = at.here.transfer
    await transfer.open(at.there.layout.name)
    await asyncio.gather(
        transfer.send_images(at.name, target=at.there.layout.name, key=key, images=images, basis=basis),
        transfer.send_volume(at.name, target=at.there.layout.name, key=key),
    )


async def settle(at: Site, key: str) -> None:
    await at.here.runtime.destroy(at.name, key=key)
    await at.here.bridge.remove(at.name)
    await at.here.transfer.close(target=at.there.layout.name, key=key)
    await asyncio.gather(*(port.runtime.clean(at.name, key=key) for port in (at.here, at.there)))
    for port in (at.here, at.there):
        assert left_below(port.layout, key) == []


async def move(at: Site, key: str, *, lazy: bool, rounds: int = 0) -> None:
    """One migration by hand."""
    here, there, name = at.here, at.there, at.name
    await asyncio.gather(there.runtime.prepare(at.spec, key=key), there.bridge.prepare(at.spec, key=key))
    basis = None
    for number in range(1, rounds + 1):
        report = await here.runtime.pre_dump(name, key=key, images=f"pre-{number}", parent=basis)
        assert report.pages_bytes > LOAD.memory_bytes
        assert (await here.runtime.status(name)).state is ContainerState.RUNNING
        await at.session.ask()
        await send(at, key, f"pre-{number}", basis)
        basis = f"pre-{number}"
    await here.runtime.freeze(name)
    dump, _ = await asyncio.gather(
        here.runtime.dump(name, key=key, images="final", parent=basis, lazy=lazy), here.bridge.detach(name)
    )
    assert (await here.runtime.status(name)).state is ContainerState.FROZEN
    await send(at, key, "final", basis)
    server = None
    if lazy:
        target = there.layout.name
        server = await here.transfer.open_page_tunnel(target=target, key=key, port=dump.page_server_port)
    await there.runtime.restore(name, key=key, images="final", page_server=server)
    await there.bridge.attach(name)
    if lazy:
        served, fetched = await asyncio.gather(
            here.runtime.await_pages_served(name, key=key), there.runtime.await_pages_fetched(name, key=key)
        )
        assert served == fetched
        # After a round, only what differs from it has to be fetched.
        assert (fetched > LOAD.memory_bytes) is (rounds == 0)
    assert (await there.runtime.status(name)).state is ContainerState.RUNNING
    assert (await here.runtime.status(name)).state is ContainerState.FROZEN


@in_a_loop
async def test_one_session_lives_through_all_four_methods(testbed: Any) -> None:
    async with site(testbed) as at:
        ways = (("cold", False, 0), ("pre-copy", False, 2), ("post-copy", True, 0), ("hybrid", True, 1))
        for number, (method, lazy, rounds) in enumerate(ways):
            key = f"{method}-{number}"
            await move(at, key, lazy=lazy, rounds=rounds)
            for _ in range(20):
                await at.session.ask()
            await settle(at, key)
            at.turn()


@pytest.mark.parametrize("eager_pages", [0, 40, 2**20])
@in_a_loop
async def test_a_hybrid_move_keeps_every_page(testbed: Any, monkeypatch: pytest.MonkeyPatch, eager_pages: int) -> None:
    monkeypatch.setattr(criu_source, "MOST_EAGER_BYTES", eager_pages * PAGE)
    async with site(testbed) as at:
        here, there, name, key = at.here, at.there, at.name, f"h{eager_pages}"
        pid = (await here.runtime.status(name)).pid
        await asyncio.gather(there.runtime.prepare(at.spec, key=key), there.bridge.prepare(at.spec, key=key))
        await here.runtime.pre_dump(name, key=key, images="pre-1", parent=None)
        round_one, _ = look([pid], every=1)
        await send(at, key, "pre-1")
        await asyncio.sleep(0.4)  # it writes to its memory meanwhile
        await at.session.ask()
        await here.runtime.freeze(name)
        frozen, _ = look([pid], every=1)
        written = {page for page, mark in frozen.items() if round_one.get(page) != mark}
        assert len(written) > 100
        dump = await here.runtime.dump(name, key=key, images="final", parent="pre-1", lazy=True)
        await here.bridge.detach(name)
        await send(at, key, "final", "pre-1")
        server = await here.transfer.open_page_tunnel(target=there.layout.name, key=key, port=dump.page_server_port)
        await there.runtime.restore(name, key=key, images="final", page_server=server)
        await there.runtime.freeze(name)  # what arrives is to be seen as it arrives
        served, fetched = await asyncio.gather(
            here.runtime.await_pages_served(name, key=key), there.runtime.await_pages_fetched(name, key=key)
        )
        assert served == fetched
        assert (fetched == 0) is (eager_pages > 10_000)
        assert fetched < LOAD.memory_bytes / 4
        moved = (await there.runtime.status(name)).pid
        after, _ = look([moved], every=1)
        there_now = {page: mark for (_, page), mark in after.items()}
        differing = {page for (_, page), mark in frozen.items() if there_now.get(page) != mark}
        # It has run for some milliseconds; were anything old or empty, all that was written would differ, or much more.
        assert len(differing) < 3 * len(written) / 4, (len(differing), len(written))
        await there.runtime.thaw(name)
        await there.bridge.attach(name)
        for _ in range(20):
            await at.session.ask()
        await settle(at, key)
        at.turn()


@in_a_loop
async def test_going_back_loses_nothing(testbed: Any) -> None:
    async with site(testbed) as at:
        here, name = at.here, at.name
        assert await here.runtime.revive(name, key="r0") is Revival.STILL_RUNNING
        await at.session.ask()
        for lazy in (False, True):
            key = f"r-{lazy}"
            await here.runtime.freeze(name)
            await here.runtime.dump(name, key=key, images="final", parent=None, lazy=lazy)
            assert await here.runtime.revive(name, key=key) is Revival.THAWED
            await at.session.ask()
            await here.runtime.clean(name, key=key)
            assert left_below(here.layout, key) == []


@in_a_loop
async def test_a_dead_container_comes_back_from_its_images_else_from_its_bundle(testbed: Any) -> None:
    async with site(testbed) as at:
        here, name = at.here, at.name
        instance = at.session.instance
        await here.runtime.dump(name, key="d1", images="final", parent=None, lazy=False)
        os.kill((await here.runtime.status(name)).pid, 9)
        here.runtime._node.cgroup(name).thaw()
        assert await here.runtime.revive(name, key="d1") is Revival.RESTORED
        await at.session.ask()
        assert await at.instance() == instance
        await here.runtime.clean(name, key="d1")
        os.kill((await here.runtime.status(name)).pid, 9)
        assert await here.runtime.revive(name, key="d2") is Revival.RESTARTED
        assert await at.instance() != instance
        assert left_below(here.layout, "d1") == []


async def killed_meanwhile(at: Site, key: str, verb: Coroutine[Any, Any, object], program: str, delay_s: float) -> bool:
    """Kill a program of a verb with SIGKILL after a while, as soon as there is one; whether the verb failed."""
    layout = at.here.layout
    over = asyncio.Event()

    async def kill() -> None:
        await asyncio.sleep(delay_s)
        killed = 0
        while not killed:
            for process in family(f"{layout.testbed}/{layout.name}/{at.name}/{key}/", layout.folder / "sessions"):
                if named(process.pid) == program:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, 9)
                        killed += 1
            if over.is_set():
                return
            await asyncio.sleep(0.001)

    task = asyncio.create_task(kill())
    try:
        await verb
    except NatworkError:
        return True
    finally:
        over.set()
        await task
    return False


@pytest.mark.parametrize("program", ["runc", "criu"])
@pytest.mark.parametrize("phase", ["pre-dump", "dump", "lazy dump", "hybrid dump"])
@in_a_loop
async def test_a_killed_dump_leaves_the_container_running(testbed: Any, phase: str, program: str) -> None:
    async with site(testbed) as at:
        here, name = at.here, at.name
        rng, failed = random.Random(7), 0
        for number in range(6):
            key = f"k{number}"
            if phase == "pre-dump":
                verb = here.runtime.pre_dump(name, key=key, images="pre-1", parent=None)
            else:
                parent = "pre-1" if phase == "hybrid dump" else None
                if parent is not None:
                    await here.runtime.pre_dump(name, key=key, images=parent, parent=None)
                await here.runtime.freeze(name)
                verb = here.runtime.dump(name, key=key, images="final", parent=parent, lazy=phase != "dump")
            failed += await killed_meanwhile(at, key, verb, program, rng.uniform(0.0, 0.12))
            revival = await here.runtime.revive(name, key=key)
            assert (await here.runtime.status(name)).state is ContainerState.RUNNING
            # CRIU killed in the instant in which it enters a process ends that; all else gives it back as it was.
            assert revival is not Revival.RESTARTED or program == "criu"
            try:
                await at.instance()
            except AssertionError:
                # It may live for a while before it meets what CRIU left in it: seen once in a hundred kills.
                assert program == "criu"
                assert await here.runtime.revive(name, key=key) is Revival.RESTARTED
                await at.instance()
            await here.runtime.clean(name, key=key)
            assert left_below(here.layout, key) == []
        assert failed > 0


@in_a_loop
async def test_a_page_server_that_is_killed_lets_nobody_run(testbed: Any) -> None:
    async with site(testbed) as at:
        here, name = at.here, at.name
        await here.runtime.freeze(name)
        await here.runtime.dump(name, key="s1", images="final", parent=None, lazy=True)
        await killed_meanwhile(at, "s1", asyncio.sleep(0), "criu", 0.0)
        with pytest.raises(ActionError, match="page server"):
            await here.runtime.await_pages_served(name, key="s1")
        assert (await here.runtime.status(name)).state is ContainerState.FROZEN
        assert await here.runtime.revive(name, key="s1") is Revival.THAWED
        await at.session.ask()
        await here.runtime.clean(name, key="s1")


@in_a_loop
async def test_a_page_client_that_is_killed_stops_the_container_and_the_source_has_it_back(testbed: Any) -> None:
    async with site(testbed, Load(memory_bytes=96 * MIB)) as at:
        here, there, name = at.here, at.there, at.name
        await asyncio.gather(there.runtime.prepare(at.spec, key="f1"), there.bridge.prepare(at.spec, key="f1"))
        await here.runtime.freeze(name)
        dump, _ = await asyncio.gather(
            here.runtime.dump(name, key="f1", images="final", parent=None, lazy=True), here.bridge.detach(name)
        )
        await send(at, "f1", "final")
        target = there.layout.name
        server = await here.transfer.open_page_tunnel(target=target, key="f1", port=dump.page_server_port)
        await there.runtime.restore(name, key="f1", images="final", page_server=server)
        at.turn()
        await killed_meanwhile(at, "f1", asyncio.sleep(0), "criu", 0.0)
        with pytest.raises(ActionError, match="lazy pages"):
            await there.runtime.await_pages_fetched(name, key="f1")
        # Frozen, or dead already of the zeros that it found in place of its pages.
        assert (await there.runtime.status(name)).state is not ContainerState.RUNNING
        await there.runtime.destroy(name, key="f1")
        await there.bridge.remove(name)
        assert await here.runtime.revive(name, key="f1") is Revival.THAWED
        await here.bridge.attach(name)
        await at.instance()
        await here.transfer.close(target=target, key="f1")
        for port in (here, there):
            await port.runtime.clean(name, key="f1")
            assert left_below(port.layout, "f1") == []


@pytest.mark.parametrize("program", ["runc", "criu"])
@in_a_loop
async def test_a_killed_restore_leaves_nothing_and_can_be_repeated(testbed: Any, program: str) -> None:
    async with site(testbed) as at:
        here, there, name = at.here, at.there, at.name
        await asyncio.gather(there.runtime.prepare(at.spec, key="x1"), there.bridge.prepare(at.spec, key="x1"))
        await here.runtime.freeze(name)
        await asyncio.gather(
            here.runtime.dump(name, key="x1", images="final", parent=None, lazy=False), here.bridge.detach(name)
        )
        await send(at, "x1", "final")
        at.turn()
        failed = 0
        for delay_s in (0.03, 0.02, 0.04, 0.025, 0.05, 0.06):
            verb = there.runtime.restore(name, key="x1", images="final", page_server=None)
            if not await killed_meanwhile(at, "x1", verb, program, delay_s):
                break
            failed += 1
            assert (await there.runtime.status(name)).state is ContainerState.STOPPED
            assert [path for path in mounts(there.layout.folder) if path != there.layout.images] == []
        assert failed > 0
        await there.runtime.restore(name, key="x1", images="final", page_server=None)
        await there.bridge.attach(name)
        await at.session.ask()
        await here.runtime.destroy(name, key="x1")
        await here.bridge.remove(name)
        for port in (here, there):
            await port.runtime.clean(name, key="x1")


@in_a_loop
async def test_a_full_images_folder_is_told_and_the_container_goes_on(testbed: Any) -> None:
    async with site(testbed) as at:
        here, name = at.here, at.name
        blocker = here.layout.images / "blocker"
        free = os.statvfs(here.layout.images)
        with blocker.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, (free.f_bavail - 512) * free.f_frsize)
        try:
            await here.runtime.freeze(name)
            with pytest.raises(ActionError, match="No space left"):
                await here.runtime.dump(name, key="full", images="final", parent=None, lazy=False)
            assert await here.runtime.revive(name, key="full") is Revival.THAWED
        finally:
            blocker.unlink()
        await at.session.ask()
        await here.runtime.clean(name, key="full")
        assert left_below(here.layout, "full") == []


_AGENT = """
import asyncio, sys
from natwork_ray.adapters.runc_criu import RuncCriu
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_requirements import toolchain
from natwork_ray.domain.values import decode

async def main():
    runtime = RuncCriu(decode(NodeLayout, sys.argv[1].encode()), toolchain())
    await runtime.freeze(sys.argv[2])
    print("frozen", flush=True)
    await runtime.dump(sys.argv[2], key="a1", images="final", parent=None, lazy=sys.argv[3] == "lazy")
    print("dumped", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["whole", "lazy"])
@pytest.mark.parametrize("moment", ["frozen", "dumped"])
@in_a_loop
async def test_an_agent_that_is_killed_leaves_what_the_next_one_can_settle(
    testbed: Any, moment: str, kind: str
) -> None:
    async with site(testbed) as at:
        layout, name = at.here.layout, at.name
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _AGENT, encode(layout).decode(), name, kind, stdout=subprocess.PIPE
        )
        assert agent.stdout is not None
        while (await asyncio.wait_for(agent.stdout.readline(), ANSWER_S)).decode().strip() != moment:
            pass
        agent.kill()
        await agent.wait()
        heir = RuncCriu(layout, testbed.tools)
        assert await heir.revive(name, key="a1") is Revival.THAWED
        await at.session.ask()
        await heir.clean(name, key="a1")
        assert left_below(layout, "a1") == []


@in_a_loop
async def test_limits_a_restart_and_what_is_measured(testbed: Any) -> None:
    async with site(testbed, Load(memory_bytes=24 * MIB, working_set_bytes=4 * MIB, dirty_bytes_per_s=8 * MIB)) as at:
        runtime, name = at.here.runtime, at.name
        load = await runtime.load(name, observe_s=0.5)
        assert 24 * MIB < load.memory_bytes < 60 * MIB
        assert 2 * MIB < load.dirty_bytes_per_s < 14 * MIB
        assert 2 * MIB < load.working_set_bytes < 8 * MIB
        assert (await runtime.set_limits(SetLimits(key=f"l-{name}", container=name, cpu_limit_cores=0.5))).done
        cpu = Path("/sys/fs/cgroup/cpu" + at.here.layout.cgroup(name)) / "cpu.cfs_quota_us"
        if cpu.exists():
            assert cpu.read_text(encoding="ascii").strip() == "50000"
        assert (await runtime.describe(name)).cpu_limit_cores == 0.5
        instance = at.session.instance
        outcome = await runtime.restart(Restart(key=f"s-{name}", container=name))
        assert outcome.downtime_s > 0
        assert await at.instance() != instance


@in_a_loop
async def test_the_container_cannot_write_to_the_machine(testbed: Any) -> None:
    async with site(testbed) as at:
        pid = (await at.here.runtime.status(at.name)).pid
        told = of_process(pid, "mountinfo").splitlines()
        points = {line.split(" ")[4]: line.split(" ")[5].split(",") for line in told}
        for point in ("/usr", "/proc/sys", "/proc/bus"):
            assert "ro" in points[point]
        status = of_process(pid, "status")
        bounding = int(status.split("CapBnd:")[1].split()[0], 16)
        assert not bounding >> 21 & 1  # CAP_SYS_ADMIN
        assert json.loads((at.here.layout.bundle(at.name) / "config.json").read_bytes())["process"]["noNewPrivileges"]
        with pytest.raises(NotFoundError):
            await at.there.runtime.describe(at.name)
        assert (NETNS / at.here.layout.container_netns(at.name)).exists()
