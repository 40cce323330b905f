# ruff: noqa: S607, ASYNC220, ASYNC221 - the machine's own programs; nothing else runs on these tests' event loops
"""Nodes, keys, transfer, addresses on the real machine: what is made works, and nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters import testbed as testbeds
from natwork_ray.adapters.arrival import digest
from natwork_ray.adapters.l2_bridge import L2Bridge, port_name
from natwork_ray.adapters.rsync_ssh import RsyncSsh
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_network import NETNS
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_sshd import CLIENT_CONFIG, KNOWN_HOSTS, environment
from natwork_ray.adapters.testbed_state import PIPES, TestbedRecord, members
from natwork_ray.domain.runtime import ContainerSpec
from natwork_ray.errors import ActionError, ConflictError, NatworkError


@pytest.fixture
def own(state_dir: Path, tools: Toolchain) -> TestbedRecord:
    """A testbed of the test's own, to be broken."""
    rng = random.Random()
    record = testbeds.plan(state_dir, nodes=2, tools=tools, rng=rng, now_s=time.time())
    return testbeds.up(record, tools=tools, rng=rng)


def _ssh(tools: Toolchain, here: NodeLayout, there: NodeLayout, *options: str) -> subprocess.CompletedProcess[str]:
    enter = [str(tools.nsenter), f"--net={NETNS / here.netns}", "--", str(tools.ssh), "-F"]
    enter += [str(here.ssh / CLIENT_CONFIG)]
    return subprocess.run(
        [*enter, *options, there.address, "echo $NATWORK_TESTBED"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment(here.testbed),
    )


@asynccontextmanager
async def _transfer(record: TestbedRecord, tools: Toolchain, node: str = "node-0") -> AsyncIterator[RsyncSsh]:
    transfer = RsyncSsh(record.node(node), {layout.name: layout for layout in record.nodes}, tools)
    try:
        yield transfer
    finally:
        await transfer.shut()


def test_every_node_reaches_every_other_by_pinned_key(testbed: Any) -> None:
    record = testbed.record
    assert testbeds.status(testbed.state_dir).healthy
    for here in record.nodes:
        for there in record.nodes:
            if here is not there:
                said = _ssh(testbed.tools, here, there)
                assert (said.returncode, said.stdout.strip(), said.stderr) == (0, record.id, "")


def test_an_unknown_host_key_is_refused(testbed: Any, tmp_path: Path) -> None:
    here, there, third = testbed.record.nodes
    pins = (here.ssh / KNOWN_HOSTS).read_text().splitlines()
    of_third = next(line for line in pins if third.address in line).partition(" ")[2]
    swapped = tmp_path / "pins"
    swapped.write_text(f"[{there.address}]:{there.ssh_port} {of_third}\n")
    said = _ssh(testbed.tools, here, there, "-o", f"UserKnownHostsFile={swapped}")
    assert said.returncode == 255
    assert "Host key verification failed" in said.stderr
    swapped.write_text("")
    assert _ssh(testbed.tools, here, there, "-o", f"UserKnownHostsFile={swapped}").returncode == 255


def test_nobody_is_let_in_without_a_node_s_key_or_by_password(testbed: Any, tmp_path: Path) -> None:
    here, there, _ = testbed.record.nodes
    subprocess.run([testbed.tools.ssh_keygen, "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    said = _ssh(testbed.tools, here, there, "-o", f"IdentityFile={tmp_path / 'key'}", "-o", "IdentityFile=none")
    # The pinned client key of the configuration still works; only the strange one alone must not.
    assert said.returncode == 0
    config = tmp_path / "config"
    config.write_text(
        (here.ssh / CLIENT_CONFIG).read_text().replace(str(here.ssh / "client_ed25519"), str(tmp_path / "key"))
    )
    enter = [testbed.tools.nsenter, f"--net={NETNS / here.netns}", "--", testbed.tools.ssh, "-F", config]
    said = subprocess.run([*enter, there.address, "true"], capture_output=True, text=True, timeout=30, check=False)
    assert said.returncode == 255
    assert "Permission denied (publickey)" in said.stderr


def test_a_second_up_says_what_is_there(testbed: Any) -> None:
    with pytest.raises(ConflictError, match=f"testbed {testbed.record.id} is there already: node-0, node-1, node-2"):
        testbeds.plan(testbed.state_dir, tools=testbed.tools, rng=random.Random(1), now_s=0.0)


def _images(layout: NodeLayout, name: str, pages: bytes) -> Path:
    folder = layout.image_set("key", name)
    folder.mkdir(parents=True)
    (folder / "pages-1.img").write_bytes(pages)
    (folder / "core-1.img").write_bytes(b"core of " + name[:3].encode())
    for path in folder.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return folder


def test_images_of_equal_size_and_time_are_not_taken_for_each_other(testbed: Any) -> None:
    """The trap of rsync's quick check: the second checkpoint within a second would be skipped."""
    here, there = testbed.record.nodes[:2]
    rng = random.Random(3)
    first = rng.randbytes(2**20)
    second = first[:500_000] + rng.randbytes(4096) + first[504_096:]
    assert len(first) == len(second)

    async def scenario() -> None:
        async with _transfer(testbed.record, testbed.tools) as transfer:
            path = await transfer.open("node-1")
            assert path.bandwidth_bytes_per_s > 1e6
            assert 0 < path.rtt_s < 0.1
            _images(here, "pre-1", first)
            sent = await transfer.send_images("web", target="node-1", key="key", images="pre-1", basis=None)
            assert sent.sent_bytes > sent.size_bytes == 2**20 + 11
            # The same name again, with other pages of the same size and time.
            (here.image_set("key", "pre-1") / "pages-1.img").write_bytes(second)
            os.utime(here.image_set("key", "pre-1") / "pages-1.img", (1_700_000_000, 1_700_000_000))
            await transfer.send_images("web", target="node-1", key="key", images="pre-1", basis=None)
            assert (there.image_set("key", "pre-1") / "pages-1.img").read_bytes() == second
            # And another set against that one: the difference only.
            _images(here, "final", first)
            sent = await transfer.send_images("web", target="node-1", key="key", images="final", basis="pre-1")
            assert (there.image_set("key", "final") / "pages-1.img").read_bytes() == first
            assert sent.sent_bytes < 50_000
            assert sent.digest == digest(here.image_set("key", "final"))[1]

    asyncio.run(scenario())


def test_a_full_disk_on_the_target_is_told(testbed: Any, own: TestbedRecord) -> None:
    here, there = own.nodes
    subprocess.run(["mount", "-o", "remount,size=2m", str(there.images)], check=True)
    _images(here, "final", random.Random(1).randbytes(4 * 2**20))

    async def scenario() -> None:
        async with _transfer(own, testbed.tools) as transfer:
            with pytest.raises(ActionError, match="No space left on device"):
                await transfer.send_images("web", target="node-1", key="key", images="final", basis=None)

    asyncio.run(scenario())


def test_a_volume_travels_with_its_links_owners_and_holes_but_without_the_machine_s_folders(testbed: Any) -> None:
    here, there = testbed.record.nodes[:2]
    root = here.rootfs("db")
    (root / "data").mkdir(parents=True)
    (root / "usr").mkdir()
    (root / "usr/machine").write_bytes(b"not the container's")
    (there.rootfs("db") / "usr").mkdir(parents=True)
    (there.rootfs("db") / "usr/kept").write_bytes(b"nor deleted there")
    (root / "data/a").write_bytes(random.Random(1).randbytes(100_000))
    os.link(root / "data/a", root / "data/same")
    (root / "lib").symlink_to("usr/lib")
    os.chown(root / "data/a", 1234, 4321)
    (root / "data/a").chmod(0o640)
    os.mkfifo(root / "data/pipe")

    async def scenario() -> None:
        async with _transfer(testbed.record, testbed.tools) as transfer:
            first = await transfer.send_volume("db", target="node-1", key="key")
            (root / "data/a").write_bytes(b"changed")
            (root / "data/pipe").unlink()
            second = await transfer.send_volume("db", target="node-1", key="key")
            assert first.digest != second.digest
            assert second.sent_bytes < 10_000

    asyncio.run(scenario())
    arrived = there.rootfs("db")
    status = (arrived / "data/a").stat()
    assert (arrived / "data/same").read_bytes() == b"changed"
    assert (status.st_nlink, status.st_uid, status.st_gid, status.st_mode & 0o7777) == (2, 1234, 4321, 0o640)
    assert (arrived / "lib").readlink() == Path("usr/lib")
    assert not (arrived / "data/pipe").exists()
    assert [entry.name for entry in (arrived / "usr").iterdir()] == ["kept"]


_PAGE_SERVER = "import socket; s=socket.create_server(('127.0.0.1', 9123)); c, _ = s.accept(); c.sendall(b'pages')"
_FETCH = "import socket, sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).recv(9).decode())"


def test_lazy_pages_come_through_the_tunnel_and_only_there(testbed: Any) -> None:
    here, there, third = testbed.record.nodes

    def python(layout: NodeLayout, *words: str) -> list[str]:
        return [str(testbed.tools.nsenter), f"--net={NETNS / layout.netns}", "--", sys.executable, "-c", *words]

    async def scenario() -> None:
        async with _transfer(testbed.record, testbed.tools) as transfer:
            server = subprocess.Popen(python(here, _PAGE_SERVER), env=environment(here.testbed))
            try:
                offered = await transfer.open_page_tunnel(target="node-1", key="key", port=9123)
                assert await transfer.open_page_tunnel(target="node-1", key="key", port=9123) == offered
                refused = subprocess.run(python(third, _FETCH, str(offered.port)), capture_output=True, check=False)
                assert refused.returncode != 0
                said = _retried(lambda: subprocess.run(
                    python(there, _FETCH, str(offered.port)), capture_output=True, text=True, check=False
                ).stdout.strip())  # fmt: skip
                assert said == "pages"
            finally:
                server.kill()
                server.wait()
            await transfer.close(target="node-1", key="key")
            gone = subprocess.run(python(there, _FETCH, str(offered.port)), capture_output=True, check=False)
            assert b"ConnectionRefusedError" in gone.stderr

    asyncio.run(scenario())


def _retried(attempt: Callable[[], str]) -> str:
    for _ in range(50):
        if said := attempt():
            return said
        time.sleep(0.1)
    return ""


def test_a_killed_sshd_cuts_the_way_and_a_new_one_opens_it_again(testbed: Any, own: TestbedRecord) -> None:
    here, there = own.nodes
    _images(here, "final", b"pages")

    async def scenario() -> None:
        async with _transfer(own, testbed.tools) as transfer:
            await transfer.open("node-1")
            for process in testbeds.status(own.folder.parent).record.processes:
                if process.what.endswith("node-1"):
                    os.kill(process.pid, signal.SIGKILL)
            for pid in _in_namespace(there):
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(NatworkError):
                await transfer.send_images("web", target="node-1", key="key", images="final", basis=None)
            # Killed is not yet dead.
            assert _retried(lambda: "" if testbeds.status(own.folder.parent).healthy else "ill") == "ill"
            testbeds.restart_sshd(own, "node-1", tools=testbed.tools)
            assert testbeds.status(own.folder.parent).healthy
            sent = await transfer.send_images("web", target="node-1", key="key", images="final", basis=None)
            assert sent.size_bytes > 0

    asyncio.run(scenario())


def _in_namespace(layout: NodeLayout) -> list[int]:
    said = subprocess.run(["ip", "netns", "pids", layout.netns], capture_output=True, text=True, check=True)
    return [int(word) for word in said.stdout.split()]


_ECHO = """
import socket, sys
server = socket.create_server(("", 7))
while True:
    session, _ = server.accept()
    while data := session.recv(100):
        session.sendall(sys.argv[1].encode() + data)
"""


@asynccontextmanager
async def _bridges(record: TestbedRecord) -> AsyncIterator[tuple[L2Bridge, ...]]:
    bridges = tuple(L2Bridge(layout) for layout in record.nodes)
    try:
        yield bridges
    finally:
        for bridge in bridges:
            await bridge.remove("web")
            await bridge.shut()


def _spec(record: TestbedRecord) -> ContainerSpec:
    address = record.network.replace(".0/24", ".77/24")
    return ContainerSpec(name="web", image="none", address=address, mac="02:00:00:00:77:01", command=("none",))


def test_the_address_is_owned_once_and_frames_wait_for_its_next_owner(testbed: Any) -> None:
    record = testbed.record
    spec = _spec(record)
    host = spec.address.partition("/")[0]

    def echo(layout: NodeLayout) -> subprocess.Popen[bytes]:
        enter = [str(testbed.tools.nsenter), f"--net={NETNS / layout.container_netns('web')}", "--"]
        return subprocess.Popen([*enter, sys.executable, "-c", _ECHO, layout.name], env=environment(record.id))

    async def ask() -> str:
        reader, writer = await asyncio.open_connection(host, 7)
        writer.write(b" says hi")
        said = await reader.read(100)
        writer.close()
        return said.decode()

    async def scenario() -> None:
        async with _bridges(record) as (a, b, _):
            await a.prepare(spec, key="k")
            await b.prepare(spec, key="k")
            assert [await bridge.attached("web") for bridge in (a, b)] == [False, False]
            await a.attach("web")
            assert [await bridge.attached("web") for bridge in (a, b)] == [True, False]
            servers = [echo(record.nodes[0]), echo(record.nodes[1])]
            try:
                for _ in range(50):
                    try:
                        assert await ask() == "node-0 says hi"
                        break
                    except ConnectionRefusedError:
                        await asyncio.sleep(0.1)
                else:
                    pytest.fail("the echo server does not listen")
                await a.detach("web")
                assert [await bridge.attached("web") for bridge in (a, b)] == [False, False]
                waiting = asyncio.create_task(ask())
                await asyncio.sleep(0.15)
                assert not waiting.done()
                began = time.perf_counter()
                await b.attach("web")
                assert await waiting == "node-1 says hi"
                # The first packet had waited in the queue: TCP would have sent the next one after a second.
                assert time.perf_counter() - began < 0.5
                assert [await bridge.attached("web") for bridge in (a, b)] == [False, True]
                await b.detach("web")
                await a.attach("web")
                assert await ask() == "node-0 says hi"
            finally:
                for server in servers:
                    server.kill()
                    server.wait()

    asyncio.run(scenario())
    assert not (NETNS / record.nodes[0].container_netns("web")).exists()


def test_an_established_session_survives_an_interruption_of_its_address(testbed: Any) -> None:
    """Detached and attached again, as a roll-back does: nothing is lost, and no reset is sent."""
    record, spec = testbed.record, _spec(testbed.record)

    async def scenario() -> None:
        async with _bridges(record) as (a, _, _third):
            await a.prepare(spec, key="k")
            await a.attach("web")
            enter = [str(testbed.tools.nsenter), f"--net={NETNS / record.nodes[0].container_netns('web')}", "--"]
            server = subprocess.Popen([*enter, sys.executable, "-c", _ECHO, ">"], env=environment(record.id))
            try:
                for attempt in range(50):
                    try:
                        reader, writer = await asyncio.open_connection(spec.address.partition("/")[0], 7)
                        break
                    except ConnectionRefusedError:
                        assert attempt < 49
                        await asyncio.sleep(0.1)
                for turn in range(5):
                    await a.detach("web")
                    writer.write(b"%d\n" % turn)
                    await asyncio.sleep(0.02)
                    await a.attach("web")
                    assert await asyncio.wait_for(reader.readline(), 10) == b">%d\n" % turn
                writer.close()
            finally:
                server.kill()
                server.wait()

    asyncio.run(scenario())


def test_attach_and_detach_take_milliseconds(testbed: Any) -> None:
    async def scenario() -> list[float]:
        async with _bridges(testbed.record) as (a, _, _third):
            spec, took = _spec(testbed.record), []
            await a.prepare(spec, key="k")
            for _ in range(11):
                began = time.perf_counter()
                await a.attach("web")
                await a.detach("web")
                took.append(time.perf_counter() - began)
            return sorted(took)

    assert asyncio.run(scenario())[5] < 0.05


def test_an_agent_that_was_killed_finds_the_port_again(testbed: Any) -> None:
    async def scenario() -> None:
        async with _bridges(testbed.record) as (a, _, _third):
            spec = _spec(testbed.record)
            await a.prepare(spec, key="k")
            again = L2Bridge(testbed.record.nodes[0])
            await again.prepare(spec, key="k")
            await again.attach("web")
            assert await a.attached("web")
            await again.prepare(spec, key="k")  # does not take it off
            assert await a.attached("web")
            await again.remove("web")
            await again.remove("web")
            assert not await a.attached("web")
            await again.shut()

    asyncio.run(scenario())


def test_down_leaves_no_trace_after_a_killed_sshd(state_dir: Path, tools: Toolchain, own: TestbedRecord) -> None:
    os.kill(own.processes[0].pid, signal.SIGKILL)
    (own.folder / "testbed.json").unlink()  # and what was known of it
    assert testbeds.traces_of(state_dir)
    assert testbeds.down(state_dir) == own.id
    assert testbeds.traces(own) == ()
    assert testbeds.down(state_dir) is None


_HALF = """
import os, random, signal, sys, time
from pathlib import Path
from natwork_ray.adapters import testbed
from natwork_ray.adapters.testbed_requirements import toolchain
steps = 0
def told(text):
    global steps
    steps += 1
    if steps == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
tools = toolchain()
record = testbed.plan(Path(sys.argv[1]), tools=tools, rng=random.Random(), now_s=time.time())
testbed.up(record, tools=tools, rng=random.Random(), told=told)
"""


@pytest.mark.parametrize("step", [1, 2, 4])
def test_down_leaves_no_trace_of_an_up_that_was_killed_half_way(state_dir: Path, tools: Toolchain, step: int) -> None:
    before = {path: path.read_text() for path in PIPES} if not members() else {}
    ended = subprocess.run([sys.executable, "-c", _HALF, str(state_dir), str(step)], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    record = testbeds.current(state_dir)
    assert not record.complete
    assert testbeds.traces(record)
    assert testbeds.down(state_dir) == record.id
    assert testbeds.traces(record) == ()
    assert record.id not in dict(members())
    if not members():
        assert {path: path.read_text() for path in before} == before


def test_a_frozen_process_in_one_of_its_cgroups_ends_with_it(state_dir: Path, own: TestbedRecord) -> None:
    """What a killed agent leaves between freeze and restore."""
    freezer = next(p for p in (Path("/sys/fs/cgroup/freezer"), Path("/sys/fs/cgroup")) if p.is_dir())
    cgroup = freezer / own.id / "node-0" / "web"
    cgroup.mkdir(parents=True)
    sleeper = subprocess.Popen(["sleep", "600"])
    (cgroup / "cgroup.procs").write_text(str(sleeper.pid))
    if (cgroup / "freezer.state").exists():
        (cgroup / "freezer.state").write_text("FROZEN")
    else:
        (cgroup / "cgroup.freeze").write_text("1")
    testbeds.down(state_dir)
    assert sleeper.wait(10) == -signal.SIGKILL
    assert testbeds.traces(own) == ()


def test_down_deletes_nothing_below_a_mount_that_it_cannot_take_off(own: TestbedRecord, tmp_path: Path) -> None:
    """A bind mount in the bundle, as a runtime may leave it: what is behind it stays."""
    machines = tmp_path / "usr"
    machines.mkdir()
    (machines / "precious").write_bytes(b"the machine's own")
    bundle = own.nodes[0].rootfs("web") / "usr"
    bundle.mkdir(parents=True)
    subprocess.run(["mount", "--bind", machines, bundle], check=True)
    assert any(trace.kind == "mount" and trace.name == str(bundle) for trace in testbeds.traces(own))
    testbeds.down(own.folder.parent)
    assert (machines / "precious").read_bytes() == b"the machine's own"
    assert testbeds.traces(own) == ()


def test_a_link_can_be_shaped(state_dir: Path, tools: Toolchain) -> None:
    rng = random.Random()
    record = testbeds.plan(
        state_dir, nodes=2, bandwidth_bytes_per_s=12_500_000, tools=tools, rng=rng, now_s=time.time()
    )
    try:
        record = testbeds.up(record, tools=tools, rng=rng)
    except ActionError as error:
        pytest.skip(f"no token bucket in this kernel: {error}")

    async def scenario() -> float:
        async with _transfer(record, tools) as transfer:
            return (await transfer.open("node-1")).bandwidth_bytes_per_s

    assert 4e6 < asyncio.run(scenario()) < 4e7


def test_two_testbeds_share_the_machine(testbed: Any, own: TestbedRecord) -> None:
    assert own.network != testbed.record.network
    assert {own.id, testbed.record.id} <= set(dict(members()))
    testbeds.down(own.folder.parent)
    assert testbeds.status(testbed.state_dir).healthy
    assert all(int(path.read_text()) == wanted for path, wanted in PIPES.items())
    assert not (Path("/sys/class/net") / port_name(own.nodes[0], "web")).exists()
