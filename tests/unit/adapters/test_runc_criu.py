"""The runtime's verbs with a fake who-starts-programs: what is started, in which order, and what is left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from natwork_ray.adapters import container_network, criu_source, criu_target, runc_calls, runc_criu
from natwork_ray.adapters.criu_difference import Reduced
from natwork_ray.adapters.criu_source import pipes_must_be_large
from natwork_ray.adapters.runc_calls import NodeTools, runc_line
from natwork_ray.adapters.runc_criu import RuncCriu
from natwork_ray.adapters.subprocesses import Finished
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_state import started_ticks
from natwork_ray.domain.actions import MigrationMethod, Restart, SetLimits
from natwork_ray.domain.runtime import ContainerSpec, ContainerState, PageServer, Revival, RuntimeAbilities
from natwork_ray.errors import ActionError, ConflictError, NotFoundError, PreconditionError, TimedOutError, UsageError

SPEC = ContainerSpec(
    name="web", image="workload", address="10.77.3.50/24", mac="02:00:00:00:00:01", command=("/usr/bin/sleep", "9")
)
TOOLS = Toolchain(
    runc=Path("/opt/runc"), criu=Path("/opt/criu"), rsync=Path("/x/rsync"), sshd=Path("/x/sshd"), ssh=Path("/x/ssh"),
    ssh_keygen=Path("/x/ssh-keygen"), ip=Path("/x/ip"), nsenter=Path("/x/nsenter"), arping=Path("/x/arping"),
    iptables_restore=Path("/x/iptables-restore"),
)  # fmt: skip


def in_a_loop(test: Callable[..., Coroutine[object, object, None]]) -> Callable[..., None]:
    """Run a coroutine as a test, in an event loop of its own."""

    @functools.wraps(test)
    def run(*given: object, **named: object) -> None:
        asyncio.run(test(*given, **named))

    return run


CAN = RuntimeAbilities(methods=tuple(MigrationMethod), dirty_tracking=False)


@dataclass
class FakeChild:
    """A program that goes on until `end` is called."""

    pid: int = 2**22 + 1  # above the kernel's largest
    status: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    killed: int = 0

    async def wait(self) -> int:
        await self.over.wait()
        return self.status

    async def kill(self, *, alone: bool = False) -> None:
        self.killed += 1
        self.status = self.status or -9
        self.over.set()


@dataclass
class FakeRunner:
    """Starts nothing; `acts` say what a program does, by a word of its argument vector."""

    acts: dict[str, Callable[[list[str]], int]] = field(default_factory=dict)
    ready: bool = True
    calls: list[list[str]] = field(default_factory=list)
    fed: list[bytes] = field(default_factory=list)
    envs: list[Mapping[str, str]] = field(default_factory=list)
    children: list[FakeChild] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def words(self) -> list[str]:
        """The first word of each call that has an act, in order."""
        return [next((word for word in call if word in VERBS), call[-1]) for call in self.calls]

    def _act(self, argv: list[str]) -> int:
        for word, act in self.acts.items():
            if word in argv:
                return act(argv)
        return 0

    async def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float, stdin: bytes = b"", quiet: bool = False,
        alone: bool = False,
    ) -> Finished:  # fmt: skip
        self.calls.append(list(argv))
        self.fed.append(stdin)
        self.envs.append(env)
        await asyncio.sleep(0)
        text = SAVED if any(part.endswith("iptables-save") for part in argv) else ""
        return Finished(status=self._act(list(argv)), text=text)

    async def _begin(self, child: FakeChild, argv: list[str], telling: int) -> None:
        for _ in range(5):  # after what is started beside it
            await asyncio.sleep(0)
        child.status = self._act(argv)
        if self.ready:
            os.write(telling, b"\0")
        else:
            child.over.set()
        os.close(telling)

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str], said: Path, pass_fds: tuple[int, ...] = ()
    ) -> FakeChild:
        self.calls.append(list(argv))
        self.fed.append(b"")
        self.envs.append(env)
        child = FakeChild()
        self.tasks.append(asyncio.create_task(self._begin(child, list(argv), os.dup(pass_fds[0]))))
        self.children.append(child)
        return child


VERBS = ("checkpoint", "restore", "run", "update", "lazy-pages", "iptables-save", "--noflush", "umount")
SAVED = "*filter\n:INPUT ACCEPT [0:0]\n:NATWORK - [0:0]\n-A INPUT -j NATWORK\n-A NATWORK -j DROP\nCOMMIT\n"


def option(argv: list[str], name: str) -> Path:
    return Path(argv[argv.index(name) + 1])


@dataclass
class Bench:
    """A runtime on a folder, with fake programs, a fake cgroup file system and fake namespaces."""

    layout: NodeLayout
    runner: FakeRunner
    runtime: RuncCriu
    cgroups: Path
    netns: Path

    def runs(self, pid: int | None = None) -> int:
        """Let the container run, as the test's own process; the exit status of what started it."""
        pid = pid or os.getpid()
        state = self.layout.runc_root / "web"
        state.mkdir(parents=True, exist_ok=True)
        document = {"init_process_pid": pid, "init_process_start": started_ticks(pid)}
        (state / "state.json").write_text(json.dumps(document))
        self.freezer.parent.mkdir(parents=True, exist_ok=True)
        self.freezer.write_text("THAWED\n")
        return 0

    def dies(self) -> None:
        (self.layout.runc_root / "web" / "state.json").unlink(missing_ok=True)

    @property
    def freezer(self) -> Path:
        return self.cgroups / "freezer" / "nwtest" / "node-0" / "web" / "freezer.state"

    def checkpoint(self, argv: list[str]) -> int:
        folder, work = option(argv, "--image-path"), option(argv, "--work-path")
        (folder / "inventory.img").write_bytes(b"i" * 10)
        (folder / "pages-1.img").write_bytes(b"p" * 8192)
        (work / "dump.log").write_text(
            "(0.1) Pagemap generated: 4 pages (3 lazy) 0 holes\nDumping finished successfully\n"
        )
        return 0

    def restore(self, argv: list[str]) -> int:
        (option(argv, "--work-path") / "restore.log").write_text("Restore finished successfully. Tasks resumed.\n")
        self.runs()
        return 0

    def images(self, key: str = "m1", images: str = "final") -> Path:
        folder = self.layout.image_set(key, images)
        folder.mkdir(parents=True)
        (folder / "inventory.img").write_bytes(b"i")
        return folder


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    layout = NodeLayout(
        testbed="nwtest", name="node-0", folder=tmp_path / "node", images=tmp_path / "images", netns="nwtest-node-0",
        address="10.77.3.2", ssh_port=2201, bridge="nwtestbr",
    )  # fmt: skip
    for folder in (layout.folder, layout.images, layout.runc_root, tmp_path / "netns"):
        folder.mkdir()
    netns = tmp_path / "netns" / "nwtest-node-0-web"
    netns.touch()
    monkeypatch.setattr(container_network, "NETNS", tmp_path / "netns")
    monkeypatch.setattr(criu_source, "free_port", lambda _netns: 4711)
    monkeypatch.setattr(criu_source, "pipes_must_be_large", lambda: None)
    monkeypatch.setattr(criu_source, "end_repair", lambda _pids: 0)
    monkeypatch.setattr(runc_criu, "share_cache", lambda *_: True)
    monkeypatch.setattr(runc_criu, "SURVIVED_S", 0.001)
    runner, cgroups = FakeRunner(), tmp_path / "cgroup"
    (cgroups / "freezer").mkdir(parents=True)
    runtime = RuncCriu(layout, TOOLS, runner=runner, cgroups=cgroups, ask=lambda: CAN, now_s=iter(range(100)).__next__)
    made = Bench(layout, runner, runtime, cgroups, netns)
    runner.acts.update(checkpoint=made.checkpoint, restore=made.restore)
    return made


async def prepared(bench: Bench) -> None:
    await bench.runtime.prepare(SPEC, key="m1")
    bench.runs()
    bench.runner.calls.clear()
    bench.runner.fed.clear()


# The container's own life.


@in_a_loop
async def test_a_container_is_started_from_its_bundle_with_its_streams_away(bench: Bench) -> None:
    bench.runner.acts["run"] = lambda _argv: bench.runs()
    await bench.runtime.create_and_start(SPEC)
    call = next(call for call in bench.runner.calls if "run" in call)
    assert call[:3] == ["/opt/runc", "--root", str(bench.layout.runc_root)]
    assert option(call, "--bundle") == bench.layout.bundle("web")
    assert (await bench.runtime.status("web")).state is ContainerState.RUNNING
    assert await bench.runtime.describe("web") == SPEC
    with pytest.raises(ConflictError, match="runs on node-0 already"):
        await bench.runtime.create_and_start(SPEC)


@in_a_loop
async def test_what_is_started_can_be_found_again_and_finds_criu(bench: Bench) -> None:
    await prepared(bench)
    await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=False)
    env = next(env for env, call in zip(bench.runner.envs[-len(bench.runner.calls) :], bench.runner.calls, strict=True) if "checkpoint" in call)  # fmt: skip  # noqa: E501
    assert env["NATWORK_MIGRATION"] == "nwtest/node-0/web/m1/"
    assert env["NATWORK_TESTBED"] == "nwtest"
    assert env["PATH"].startswith("/opt:")


@in_a_loop
async def test_without_its_network_namespace_nothing_is_started(bench: Bench) -> None:
    bench.netns.unlink()
    with pytest.raises(NotFoundError, match="network namespace"):
        await bench.runtime.create_and_start(SPEC)
    assert bench.runner.calls == []


@in_a_loop
async def test_a_failure_quotes_what_runc_said(bench: Bench) -> None:
    def fail(argv: list[str]) -> int:
        option(argv, "--log").write_text(
            '{"level":"warning","msg":"w"}\n{"level":"error","msg":"no such file: sleep"}\n'
        )
        return 1

    bench.runner.acts["run"] = fail
    with pytest.raises(ActionError, match="start of web: no such file: sleep"):
        await bench.runtime.create_and_start(SPEC)


@in_a_loop
async def test_states_of_a_container(bench: Bench) -> None:
    assert (await bench.runtime.status("web")).state is ContainerState.ABSENT
    await bench.runtime.prepare(SPEC, key="m1")
    assert (await bench.runtime.status("web")).state is ContainerState.STOPPED
    bench.runs()
    status = await bench.runtime.status("web")
    assert (status.state, status.pid) == (ContainerState.RUNNING, os.getpid())
    await bench.runtime.freeze("web")
    assert (await bench.runtime.status("web")).state is ContainerState.FROZEN
    await bench.runtime.thaw("web")
    assert (await bench.runtime.status("web")).state is ContainerState.RUNNING
    (bench.layout.runc_root / "web" / "state.json").write_text("{}")
    with pytest.raises(Exception, match="not what runC writes"):
        await bench.runtime.status("web")


@in_a_loop
async def test_a_process_number_that_passed_to_another_is_not_the_container(bench: Bench) -> None:
    bench.runs()
    document = {"init_process_pid": os.getpid(), "init_process_start": 1}
    (bench.layout.runc_root / "web" / "state.json").write_text(json.dumps(document))
    assert (await bench.runtime.status("web")).pid == 0


@in_a_loop
async def test_abilities_are_asked_once(bench: Bench, tmp_path: Path) -> None:
    asked: list[int] = []

    def ask() -> RuntimeAbilities:
        asked.append(1)
        return CAN

    runtime = RuncCriu(bench.layout, TOOLS, runner=bench.runner, ask=ask)
    assert await runtime.abilities() == await runtime.abilities() == CAN
    assert asked == [1]


# Dumps.


@in_a_loop
async def test_a_dump_closes_the_network_and_leaves_the_processes_frozen(bench: Bench) -> None:
    await prepared(bench)
    await bench.runtime.freeze("web")
    report = await bench.runtime.dump("web", key="m1", images="final", parent="pre-1", lazy=False)
    assert (report.size_bytes, report.pages_bytes, report.page_server_port) == (8202.0, 8192.0, 0)
    call = next(call for call in bench.runner.calls if "checkpoint" in call)
    assert {"--leave-running", "--tcp-established"} <= set(call)
    assert "--parent-path" not in call  # without dirty tracking there is no parent
    assert any(b"-A NATWORK -j DROP" in fed for fed in bench.runner.fed)
    assert (await bench.runtime.status("web")).state is ContainerState.FROZEN
    assert "network-lock skip" in (bench.layout.bundle("web") / "criu.conf").read_text()


@in_a_loop
async def test_a_dump_freezes_what_nobody_has_frozen(bench: Bench) -> None:
    await prepared(bench)
    await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=False)
    assert bench.freezer.read_text() == "FROZEN"


@in_a_loop
async def test_a_dump_before_the_network_was_closed_is_made_again(bench: Bench) -> None:
    await prepared(bench)
    order: list[str] = []

    def slow(argv: list[str]) -> int:
        # CRIU's log is there before the packet filter answers.
        work = bench.layout.folder / "criu" / "m1" / "final"
        if not order:
            (work / "dump.log").write_text("early")
        order.append("close")
        return 0

    def dump(argv: list[str]) -> int:
        order.append("dump")
        return bench.checkpoint(argv)

    bench.runner.acts = {**bench.runner.acts, "--noflush": slow, "checkpoint": dump}
    await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=False)
    assert order.count("dump") == 2
    assert order[-1] == "dump"


@in_a_loop
async def test_a_dump_that_the_container_ran_on_after_does_not_count(bench: Bench) -> None:
    await prepared(bench)

    def thaws(argv: list[str]) -> int:
        bench.freezer.write_text("THAWED")
        return bench.checkpoint(argv)

    bench.runner.acts["checkpoint"] = thaws
    with pytest.raises(ActionError, match="ran on after its dump"):
        await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=False)


@in_a_loop
async def test_a_dump_that_fails_says_why_and_leaves_the_container_standing_still(bench: Bench) -> None:
    await prepared(bench)

    def full(argv: list[str]) -> int:
        log = (
            "(0.1) Error (criu/image.c:1): Can't write: No space left on device\nError (criu/x.c:2): Dumping FAILED.\n"
        )
        (option(argv, "--work-path") / "dump.log").write_text(log)
        bench.freezer.write_text("THAWED")  # as after the death of CRIU
        return 1

    bench.runner.acts["checkpoint"] = full
    with pytest.raises(ActionError, match="dump of web: Can't write: No space left on device") as caught:
        await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=False)
    assert "full" in caught.value.hint
    assert (await bench.runtime.status("web")).state is ContainerState.FROZEN


@in_a_loop
async def test_a_dump_of_what_does_not_run_is_refused(bench: Bench) -> None:
    for verb in (
        bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=False),
        bench.runtime.pre_dump("web", key="m1", images="pre-1", parent=None),
        bench.runtime.freeze("web"),
        bench.runtime.load("web", observe_s=0.1),
    ):
        with pytest.raises(ConflictError, match="does not run"):
            await verb
    assert bench.runner.calls == []


@in_a_loop
async def test_a_dump_can_be_repeated(bench: Bench) -> None:
    await prepared(bench)
    for _ in range(2):
        (bench.layout.image_set("m1", "final")).mkdir(parents=True, exist_ok=True)
        (bench.layout.image_set("m1", "final") / "old.img").write_bytes(b"old")
        await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=False)
        assert not (bench.layout.image_set("m1", "final") / "old.img").exists()


@in_a_loop
async def test_a_round_of_pre_copy_leaves_connections_alone_and_the_container_running(bench: Bench) -> None:
    await prepared(bench)
    told: list[str] = []

    def look(argv: list[str]) -> int:
        told.append((bench.layout.bundle("web") / "criu.conf").read_text())
        bench.freezer.write_text("FROZEN")
        return bench.checkpoint(argv)

    bench.runner.acts["checkpoint"] = look
    report = await bench.runtime.pre_dump("web", key="m1", images="pre-1", parent=None)
    call = bench.runner.calls[-1]
    assert "--leave-running" in call
    assert "--tcp-established" not in call
    assert "tcp-close" in told[0]
    assert "action-script" in told[0]
    assert report.pages_bytes == 8192
    assert (await bench.runtime.status("web")).state is ContainerState.RUNNING
    assert "action-script" not in (bench.layout.bundle("web") / "criu.conf").read_text()


@in_a_loop
async def test_with_dirty_tracking_criu_dumps_differences(bench: Bench) -> None:
    bench.runtime._ask = lambda: RuntimeAbilities(methods=tuple(MigrationMethod), dirty_tracking=True)
    await prepared(bench)
    await bench.runtime.pre_dump("web", key="m1", images="pre-1", parent=None)
    assert "--pre-dump" in bench.runner.calls[-1]
    assert "--parent-path" not in bench.runner.calls[-1]
    await bench.runtime.pre_dump("web", key="m1", images="pre-2", parent="pre-1")
    assert option(bench.runner.calls[-1], "--parent-path") == Path("../pre-1")
    await bench.runtime.dump("web", key="m1", images="final", parent="pre-2", lazy=False)
    call = next(call for call in reversed(bench.runner.calls) if "checkpoint" in call)
    assert option(call, "--parent-path") == Path("../pre-2")
    assert "--pre-dump" not in call


@in_a_loop
async def test_a_round_that_fails_lets_the_container_go_on(bench: Bench) -> None:
    await prepared(bench)
    bench.runner.acts["checkpoint"] = lambda _argv: bench.freezer.write_text("FROZEN") and 1
    with pytest.raises(ActionError, match="dump of web: exit status 1"):
        await bench.runtime.pre_dump("web", key="m1", images="pre-1", parent=None)
    assert (await bench.runtime.status("web")).state is ContainerState.RUNNING


# Post-copy.


@in_a_loop
async def test_a_lazy_dump_serves_from_the_nodes_namespace_and_freezes_again(bench: Bench) -> None:
    await prepared(bench)
    bench.runner.acts["checkpoint"] = lambda argv: bench.freezer.write_text("THAWED") and bench.checkpoint(argv)
    report = await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=True)
    assert report.page_server_port == 4711
    call = next(call for call in bench.runner.calls if "checkpoint" in call)
    assert call[0] == "/x/nsenter"
    assert call[1].endswith("nwtest-node-0")
    assert option(call, "--page-server") == Path("127.0.0.1:4711")
    assert bench.freezer.read_text() == "FROZEN"
    served = asyncio.create_task(bench.runtime.await_pages_served("web", key="m1"))
    await asyncio.sleep(0)
    assert not served.done()
    bench.runner.children[0].over.set()
    assert await served == 3 * 4096


@in_a_loop
async def test_a_page_server_that_breaks_off_is_told(bench: Bench) -> None:
    await prepared(bench)

    def breaks(argv: list[str]) -> int:
        bench.checkpoint(argv)
        (option(argv, "--work-path") / "dump.log").write_text("Error (criu/page-pipe.c:418): page-pipe: tee: no\n")
        return 1

    bench.runner.acts["checkpoint"] = breaks
    await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=True)
    bench.runner.children[0].over.set()
    with pytest.raises(ActionError, match="page server of web: page-pipe: tee: no"):
        await bench.runtime.await_pages_served("web", key="m1")


@in_a_loop
async def test_another_agent_learns_what_became_of_the_page_server(bench: Bench) -> None:
    await prepared(bench)
    await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=True)
    heir = RuncCriu(bench.layout, TOOLS, runner=bench.runner, cgroups=bench.cgroups, ask=lambda: CAN)
    (bench.layout.folder / "criu" / "m1" / "final" / "page-server.json").write_text(
        '{"pid": 4194305, "started_ticks": 7, "what": "page server"}'
    )
    assert await heir.await_pages_served("web", key="m1") == 3 * 4096


@in_a_loop
async def test_a_lazy_dump_that_never_gets_ready_says_why(bench: Bench) -> None:
    await prepared(bench)
    bench.runner.ready = False

    def early(argv: list[str]) -> int:
        option(argv, "--log").write_text('{"level":"error","msg":"criu is missing features"}')
        return 1

    bench.runner.acts["checkpoint"] = early
    with pytest.raises(ActionError, match="lazy dump of web: criu is missing features"):
        await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=True)
    assert (await bench.runtime.status("web")).state is ContainerState.FROZEN


# Hybrid.


@in_a_loop
async def test_a_lazy_dump_after_a_round_serves_only_the_difference(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await prepared(bench)
    seen: list[object] = []
    monkeypatch.setattr(criu_source, "numbers_inside", lambda pids: {1: 4711})

    def compared(processes: dict[int, int], parent: Path, **_: int) -> dict[int, list[tuple[int, int]]]:
        seen.append((processes, parent))
        return {1: [(0, 8192)]}

    def reduced(folder: Path, parent: str, processes: dict[int, int], same: object, **_: int) -> Reduced:
        assert (folder / "pages-1.img").exists()  # CRIU has written it
        seen.append((folder, parent, processes, same))
        return Reduced(inherited_bytes=8192, lazy_bytes=4096)

    monkeypatch.setattr(criu_source, "unchanged", compared)
    monkeypatch.setattr(criu_source, "reduce", reduced)
    await bench.runtime.dump("web", key="m1", images="final", parent="pre-1", lazy=True)
    assert seen == [
        ({1: 4711}, bench.layout.image_set("m1", "pre-1")),
        (bench.layout.image_set("m1", "final"), "pre-1", {1: 4711}, {1: [(0, 8192)]}),
    ]
    bench.runner.children[0].over.set()
    assert await bench.runtime.await_pages_served("web", key="m1") == 4096


@in_a_loop
async def test_where_criu_tracks_pages_the_difference_is_its_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    can = RuntimeAbilities(methods=tuple(MigrationMethod), dirty_tracking=True)
    bench.runtime = RuncCriu(bench.layout, TOOLS, runner=bench.runner, cgroups=bench.cgroups, ask=lambda: can)
    await prepared(bench)
    monkeypatch.setattr(criu_source, "unchanged", lambda *_, **__: pytest.fail("compared"))
    await bench.runtime.dump("web", key="m1", images="final", parent="pre-1", lazy=True)
    call = next(call for call in bench.runner.calls if "checkpoint" in call)
    assert option(call, "--parent-path") == Path("../pre-1")


@pytest.mark.parametrize("breaks", ["unchanged", "reduce"])
@in_a_loop
async def test_a_difference_that_fails_ends_the_page_server(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    await prepared(bench)

    def fails(*_: object, **__: object) -> None:
        raise ActionError("no page at 0x1000", hint="roll back")

    monkeypatch.setattr(criu_source, "numbers_inside", lambda pids: {})
    for name in ("unchanged", "reduce"):
        monkeypatch.setattr(criu_source, name, fails if name == breaks else lambda *_, **__: {})
    with pytest.raises(ActionError, match="no page at 0x1000"):
        await bench.runtime.dump("web", key="m1", images="final", parent="pre-1", lazy=True)
    assert bench.runner.children[0].killed
    assert (await bench.runtime.status("web")).state is ContainerState.FROZEN
    assert await bench.runtime.revive("web", key="m1") is Revival.THAWED


@in_a_loop
async def test_pages_that_nobody_serves_or_fetches_are_not_awaited(bench: Bench) -> None:
    for verb in (bench.runtime.await_pages_served, bench.runtime.await_pages_fetched):
        with pytest.raises(NotFoundError, match="no pages of web"):
            await verb("web", key="m1")


def test_small_pipes_are_refused_before_anything_happens(tmp_path: Path) -> None:
    size, soft, status = tmp_path / "size", tmp_path / "soft", tmp_path / "status"
    size.write_text("1048576\n")
    soft.write_text("16384\n")
    status.write_text("Name: x\nCapEff:\t000001fffeffffff\n")
    with pytest.raises(PreconditionError, match="1048576") as caught:
        pipes_must_be_large((size, soft), status)
    assert "fs.pipe-max-size" in caught.value.hint
    size.write_text("1073741824\n")
    with pytest.raises(PreconditionError):
        pipes_must_be_large((size, soft), status)
    soft.write_text("0\n")
    pipes_must_be_large((size, soft), status)
    soft.write_text("16384\n")
    status.write_text("CapEff:\t000001ffffffffff\n")
    pipes_must_be_large((size, soft), status)


# Restores.


@in_a_loop
async def test_a_restore_runs_from_images_in_the_bundle(bench: Bench) -> None:
    await bench.runtime.prepare(SPEC, key="m1")
    folder = bench.images()
    await bench.runtime.restore("web", key="m1", images="final", page_server=None)
    call = bench.runner.calls[-1]
    assert option(call, "--image-path") == folder
    assert option(call, "--bundle") == bench.layout.bundle("web")
    assert {"--detach", "--tcp-established"} <= set(call)
    assert (await bench.runtime.status("web")).state is ContainerState.RUNNING
    before = len(bench.runner.calls)
    await bench.runtime.restore("web", key="m1", images="final", page_server=None)
    assert len(bench.runner.calls) == before  # done is done


@in_a_loop
async def test_a_restore_wants_images_a_bundle_and_room(bench: Bench) -> None:
    with pytest.raises(NotFoundError, match="no checkpoint"):
        await bench.runtime.restore("web", key="m1", images="final", page_server=None)
    bench.images()
    with pytest.raises(NotFoundError, match="bundle"):
        await bench.runtime.restore("web", key="m1", images="final", page_server=None)
    await bench.runtime.prepare(SPEC, key="m1")
    bench.runs()
    with pytest.raises(ConflictError, match="runs on node-0 already"):
        await bench.runtime.restore("web", key="m1", images="final", page_server=None)
    with pytest.raises(ConflictError, match="runs on node-0 already"):
        await bench.runtime.prepare(SPEC, key="m2")


@in_a_loop
async def test_a_restore_that_fails_leaves_nothing_and_can_be_repeated(bench: Bench) -> None:
    await bench.runtime.prepare(SPEC, key="m1")
    bench.images()

    def fail(argv: list[str]) -> int:
        (bench.layout.runc_root / "web").mkdir(exist_ok=True)
        (option(argv, "--work-path") / "restore.log").write_text("Error (criu/cr-restore.c:1): Can't fork for 1\n")
        return 1

    bench.runner.acts["restore"] = fail
    with pytest.raises(ActionError, match="restore of web: Can't fork for 1"):
        await bench.runtime.restore("web", key="m1", images="final", page_server=None)
    assert not (bench.layout.runc_root / "web").exists()
    assert (await bench.runtime.status("web")).state is ContainerState.STOPPED
    bench.runner.acts["restore"] = bench.restore
    await bench.runtime.restore("web", key="m1", images="final", page_server=None)
    assert (await bench.runtime.status("web")).state is ContainerState.RUNNING


SERVER = PageServer(host="127.0.0.1", port=5005)
FETCHED = "(0.1) pr1-1 Read 7f0000000000 3 pages\n(0.2) page-xfer: Disconnect from the page server\n"


async def lazily(bench: Bench) -> FakeChild:
    await bench.runtime.prepare(SPEC, key="m1")
    bench.images()
    await bench.runtime.restore("web", key="m1", images="final", page_server=SERVER)
    return bench.runner.children[-1]


def lazy_log(bench: Bench) -> Path:
    return bench.layout.folder / "criu" / "m1" / "restore-final" / "lazy-pages.log"


@in_a_loop
async def test_a_lazy_restore_starts_the_page_client_first(bench: Bench) -> None:
    child = await lazily(bench)
    daemon, restore = bench.runner.calls[-2:]
    assert daemon[3:5] == ["/opt/criu", "lazy-pages"]
    assert daemon[0] == "/x/nsenter"
    assert option(daemon, "--port") == Path("5005")
    assert "--lazy-pages" in restore
    assert option(daemon, "--work-dir") == option(restore, "--work-path")
    lazy_log(bench).write_text(FETCHED)
    child.over.set()
    assert await bench.runtime.await_pages_fetched("web", key="m1") == 3 * 4096
    assert (await bench.runtime.status("web")).state is ContainerState.RUNNING


@pytest.mark.parametrize(
    "log", ["", "Error (criu/page-xfer.c:1): page-xfer: Remote side closed connection\n" + FETCHED]
)
@in_a_loop
async def test_a_container_without_all_its_pages_is_stopped_at_once(bench: Bench, log: str) -> None:
    child = await lazily(bench)
    lazy_log(bench).write_text(log)
    child.over.set()
    with pytest.raises(ActionError, match="lazy pages of web"):
        await bench.runtime.await_pages_fetched("web", key="m1")
    assert (await bench.runtime.status("web")).state is ContainerState.FROZEN


@in_a_loop
async def test_a_page_client_that_dies_ends_the_restore(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.runtime.prepare(SPEC, key="m1")
    bench.images()
    hangs = asyncio.Event()
    ended: list[bool] = []
    normal = bench.runner.run

    async def run(argv: Sequence[str], **how: object) -> Finished:
        if "restore" in argv:
            bench.runner.children[-1].over.set()
            bench.runner.children[-1].status = 1
            try:
                await hangs.wait()
            finally:
                ended.append(True)
        return await normal(argv, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.runner, "run", run)
    with pytest.raises(ActionError, match="lazy pages of web: it ended before its work was done"):
        await bench.runtime.restore("web", key="m1", images="final", page_server=SERVER)
    assert ended == [True]


@in_a_loop
async def test_another_agent_learns_what_became_of_the_page_client(bench: Bench) -> None:
    await lazily(bench)
    lazy_log(bench).write_text(FETCHED)
    heir = RuncCriu(bench.layout, TOOLS, runner=bench.runner, cgroups=bench.cgroups, ask=lambda: CAN)
    assert await heir.await_pages_fetched("web", key="m1") == 3 * 4096


# Going back.


@in_a_loop
async def test_the_ladder_still_running_and_thawed(bench: Bench) -> None:
    await prepared(bench)
    assert await bench.runtime.revive("web", key="m1") is Revival.STILL_RUNNING
    await bench.runtime.freeze("web")
    await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=False)
    bench.runner.calls.clear()
    bench.runner.fed.clear()
    assert await bench.runtime.revive("web", key="m1") is Revival.THAWED
    assert (await bench.runtime.status("web")).state is ContainerState.RUNNING
    assert any(b"-X NATWORK" in fed for fed in bench.runner.fed)


@in_a_loop
async def test_the_ladder_restored(bench: Bench) -> None:
    await prepared(bench)
    await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=False)
    bench.dies()
    bench.freezer.unlink()
    assert await bench.runtime.revive("web", key="m1") is Revival.RESTORED
    assert (await bench.runtime.status("web")).state is ContainerState.RUNNING


@pytest.mark.parametrize("lazy", [True, False])
@in_a_loop
async def test_the_ladder_restarted(bench: Bench, lazy: bool) -> None:
    await prepared(bench)
    await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=lazy)
    bench.dies()
    bench.freezer.unlink()
    bench.runner.acts["restore"] = lambda _argv: 1
    bench.runner.acts["run"] = lambda _argv: bench.runs()
    assert await bench.runtime.revive("web", key="m1") is Revival.RESTARTED
    words = bench.runner.words()
    assert ("restore" in words) is not lazy  # images without their pages are not restored from
    assert words[-1] == "run"


@in_a_loop
async def test_a_process_that_dies_when_it_is_thawed_was_not_thawed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await prepared(bench)

    async def dies(_pid: int) -> bool:
        bench.dies()
        bench.freezer.unlink()
        return False

    monkeypatch.setattr(runc_criu, "_survives", dies)
    bench.runner.acts["run"] = lambda _argv: bench.runs()
    assert await bench.runtime.revive("web", key="m1") is Revival.RESTARTED


@in_a_loop
async def test_what_was_never_here_is_not_revived(bench: Bench) -> None:
    with pytest.raises(NotFoundError, match="no container"):
        await bench.runtime.revive("web", key="m1")


@in_a_loop
async def test_revive_ends_the_page_server(bench: Bench) -> None:
    await prepared(bench)
    await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=True)
    assert await bench.runtime.revive("web", key="m1") is Revival.THAWED
    assert bench.runner.children[0].killed == 1


# Cleaning up.


@in_a_loop
async def test_destroy_and_clean_leave_nothing(bench: Bench) -> None:
    await prepared(bench)
    await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=False)
    bench.dies()
    bench.freezer.unlink()
    await bench.runtime.destroy("web", key="m1")
    await bench.runtime.clean("web", key="m1")
    assert (await bench.runtime.status("web")).state is ContainerState.ABSENT
    assert not bench.layout.bundle("web").exists()
    assert list(bench.layout.images.iterdir()) == []
    assert list((bench.layout.folder / "criu").iterdir()) == []
    assert not bench.freezer.parent.exists()
    await bench.runtime.destroy("web", key="m1")
    await bench.runtime.clean("web", key="m1")


@in_a_loop
async def test_nothing_is_deleted_below_a_mount(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await prepared(bench)
    usr = bench.layout.rootfs("web") / "usr"
    (usr / "precious").write_bytes(b"of the machine")
    monkeypatch.setattr(runc_calls, "mounts", lambda folder: (usr,) if folder in usr.parents or folder == usr else ())
    monkeypatch.setattr(criu_target, "mounts", lambda _folder: ())
    bench.dies()
    bench.freezer.unlink()
    with pytest.raises(ActionError, match="stays mounted"):
        await bench.runtime.destroy("web", key="m1")
    assert ["umount", "--lazy", str(usr)] in bench.runner.calls
    with pytest.raises(ActionError, match="is mounted"):
        NodeTools(bench.layout, TOOLS, bench.runner).delete(bench.layout.bundle("web"))
    assert (usr / "precious").exists()


# Control.


@in_a_loop
async def test_limits_are_changed_in_place_and_move_along(bench: Bench) -> None:
    await prepared(bench)
    wish = SetLimits(key="d1", container="web", cpu_limit_cores=0.25, memory_limit_bytes=2**26)
    outcome = await bench.runtime.set_limits(wish)
    assert outcome.done
    assert outcome.downtime_s == 0.0
    call = bench.runner.calls[-1]
    assert option(call, "--cpu-quota") == Path("25000")
    assert option(call, "--memory") == Path(str(2**26))
    spec = await bench.runtime.describe("web")
    assert (spec.cpu_limit_cores, spec.memory_limit_bytes) == (0.25, 2**26)
    assert await bench.runtime.set_limits(wish) == outcome
    assert len(bench.runner.calls) == 1  # the second delivery of a key acts on nothing


@in_a_loop
async def test_limits_that_are_none_stay_and_zero_lifts_them(bench: Bench) -> None:
    await prepared(bench)
    await bench.runtime.set_limits(SetLimits(key="d1", container="web"))
    assert bench.runner.calls == []
    await bench.runtime.set_limits(SetLimits(key="d2", container="web", cpu_limit_cores=0.0, memory_limit_bytes=0.0))
    assert option(bench.runner.calls[-1], "--cpu-quota") == Path("-1")
    assert option(bench.runner.calls[-1], "--memory") == Path("-1")
    with pytest.raises(UsageError):
        await bench.runtime.set_limits(SetLimits(key="d3", container="web", cpu_limit_cores=-1.0))


@in_a_loop
async def test_a_restart_begins_anew_and_counts_as_downtime(bench: Bench) -> None:
    await prepared(bench)
    bench.dies()
    bench.freezer.unlink()
    bench.runner.acts["run"] = lambda _argv: bench.runs()
    outcome = await bench.runtime.restart(Restart(key="d1", container="web"))
    assert outcome.downtime_s == 1.0
    assert bench.runner.words()[-1] == "run"
    with pytest.raises(NotFoundError):
        await bench.runtime.restart(Restart(key="d2", container="other"))


@in_a_loop
async def test_a_disk_that_refuses_is_told(bench: Bench) -> None:
    node = NodeTools(bench.layout, TOOLS, bench.runner)
    (bench.layout.folder / "file").write_bytes(b"")
    with pytest.raises(ActionError):
        node.fresh(bench.layout.folder / "file" / "below")
    with pytest.raises(ActionError):
        node.note(bench.layout.folder / "none" / "note", SPEC)


def test_what_runc_says_is_its_last_error() -> None:
    log = '{"level":"error","msg":"first"}\nnot json\n{"level":"error","msg":"last"}\n{"level":"info","msg":"x"}\n'
    assert runc_line(log) == "last"
    assert runc_line("[]\n") == ""


@in_a_loop
async def test_a_late_answer_is_a_time_out_and_the_program_is_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await prepared(bench)
    bench.runner.ready = False

    async def never(_reading: int, *, timeout_s: float) -> bool:
        raise TimedOutError("no sign of readiness", hint="x")

    monkeypatch.setattr(runc_calls, "told_ready", never)
    with pytest.raises(TimedOutError):
        await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=True)
    assert bench.runner.children[0].killed == 1


@in_a_loop
async def test_a_cancelled_wait_for_pages_can_be_taken_up_again(bench: Bench) -> None:
    await prepared(bench)
    await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=True)
    waiting = asyncio.create_task(bench.runtime.await_pages_served("web", key="m1"))
    await asyncio.sleep(0)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    bench.runner.children[0].over.set()
    assert await bench.runtime.await_pages_served("web", key="m1") == 3 * 4096


# Looking after CRIU.


def process(folder: Path, pid: int, name: str, state: str, parent: int) -> None:
    (folder / str(pid)).mkdir()
    (folder / str(pid) / "stat").write_text(f"{pid} ({name}) {state} {parent} 0 0\n")


def test_a_criu_that_is_dead_is_a_zombie_of_its_runc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runc_calls, "PROC", tmp_path)
    (tmp_path / "self").mkdir()
    (tmp_path / "9").mkdir()
    process(tmp_path, 10, "runc", "S", 1)
    process(tmp_path, 11, "criu", "S", 10)
    process(tmp_path, 12, "criu", "Z", 99)
    process(tmp_path, 13, "sh (criu) x", "Z", 10)
    assert not runc_calls.dead_criu([10])
    process(tmp_path, 14, "criu", "Z", 10)
    assert runc_calls.dead_criu([10])
    assert not runc_calls.dead_criu([])


@in_a_loop
async def test_a_runc_that_waits_for_a_dead_criu_is_not_awaited(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.runtime.prepare(SPEC, key="m1")
    bench.images()
    monkeypatch.setattr(runc_calls, "LOOK_S", 0.001)
    monkeypatch.setattr(runc_calls, "dead_criu", lambda _parents: True)
    normal = bench.runner.run

    async def run(argv: Sequence[str], **how: object) -> Finished:
        if "restore" in argv:
            await asyncio.sleep(60)
        return await normal(argv, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.runner, "run", run)
    with pytest.raises(ActionError, match="restore of web: killed by signal 9"):
        await bench.runtime.restore("web", key="m1", images="final", page_server=None)


@in_a_loop
async def test_a_dump_whose_criu_is_dead_is_not_awaited(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await prepared(bench)
    monkeypatch.setattr(runc_calls, "LOOK_S", 0.001)
    monkeypatch.setattr(runc_calls, "dead_criu", lambda _parents: True)

    async def never(_reading: int, *, timeout_s: float) -> bool:
        await asyncio.sleep(60)
        return True

    monkeypatch.setattr(runc_calls, "told_ready", never)
    with pytest.raises(ActionError, match="lazy dump of web"):
        await bench.runtime.dump("web", key="m1", images="final", parent=None, lazy=True)
    assert bench.runner.children[0].killed
