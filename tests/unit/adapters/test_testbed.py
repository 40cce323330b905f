"""A testbed on a machine that is a folder: what is written down, made, found again and removed."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import ipaddress
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters import (
    testbed,
    testbed_containers,
    testbed_network,
    testbed_sshd,
    testbed_state,
    testbed_traces,
)
from natwork_ray.adapters.machine import Answer, Machine
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_state import OwnProcess, TestbedRecord, load, save, started_ticks
from natwork_ray.adapters.workload import IDLE
from natwork_ray.domain.runtime import ContainerState, ContainerStatus
from natwork_ray.domain.values import encode
from natwork_ray.errors import (
    ActionError,
    ConflictError,
    InputError,
    NotFoundError,
    PreconditionError,
    RefusedError,
    StoreError,
    TimedOutError,
    UsageError,
    VerificationError,
)

TOOLS = Toolchain(
    **{n: Path("/bin", n) for n in ("runc", "criu", "rsync", "sshd", "ssh", "ssh_keygen", "ip", "nsenter", "arping")},
    iptables_restore=Path("/bin/iptables-restore"),
)


class Programs:
    """The machine's programs: `ip` keeps namespaces and links as files, sshd writes its process number."""

    def __init__(self, folder: Path) -> None:
        self.ran: list[str] = []
        self.failing = ""
        self.missing: set[str] = set()
        self.uid = 0
        self.netns, self.links = folder / "netns", folder / "links"

    @property
    def machine(self) -> Machine:
        return Machine(run=self.run, which=self.which, uid=lambda: self.uid)

    def which(self, name: str) -> Path | None:
        return None if name in self.missing else Path("/bin", name)

    def run(self, argv: Sequence[str]) -> Answer:
        line = " ".join([Path(argv[0]).name, *argv[1:]])
        self.ran.append(line)
        if self.failing and self.failing in line:
            return Answer(status=1, text="first\nit does not work")
        words = line.split()
        if words[:3] == ["ip", "netns", "add"]:
            (self.netns / words[3]).touch()
        elif words[:3] == ["ip", "netns", "delete"]:
            (self.netns / words[3]).unlink()
        elif words[:3] == ["ip", "link", "add"]:
            (self.links / words[3]).touch()
        elif words[:3] == ["ip", "link", "delete"]:
            (self.links / words[3]).unlink()
        elif "/bin/sshd" in words:
            config = Path(words[words.index("-f") + 1])
            config.with_name("sshd.pid").write_text(f"{os.getpid()}\n")
        return Answer(status=0, text="")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    found = Programs(tmp_path)
    for name in ("netns", "links", "cgroups", "state"):
        (tmp_path / name).mkdir()
    (tmp_path / "cgroups/cpu").mkdir()
    for module in (testbed, testbed_network, testbed_sshd, testbed_traces):
        for name, folder in (("NETNS", "netns"), ("LINKS", "links"), ("CGROUPS", "cgroups")):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / folder)
    monkeypatch.setattr(testbed_sshd, "MAX_SSH_FOLDER", 1000)  # tests' folders have long names
    members: dict[str, Path] = {}
    monkeypatch.setattr(testbed, "join", lambda name, folder: members.update({name: folder}))
    monkeypatch.setattr(testbed, "leave", lambda name: members.pop(name, None))
    monkeypatch.setattr(testbed, "members", lambda: tuple(members.items()))
    return found


def _plan(programs: Programs, state: Path, **options: object) -> TestbedRecord:
    given = {"nodes": 2, "tools": TOOLS, "rng": random.Random(1), "now_s": 5.0, "machine": programs.machine, **options}
    return testbed.plan(state, **given)  # type: ignore[arg-type]


def _up(programs: Programs, state: Path, **options: object) -> TestbedRecord:
    record = _plan(programs, state, **options)
    return testbed.up(record, tools=TOOLS, rng=random.Random(2), machine=programs.machine)


# making and removing


def test_up_makes_nodes_and_down_takes_all_of_it_away(programs: Programs, tmp_path: Path) -> None:
    record = _up(programs, tmp_path / "state", nodes=3)
    assert record.complete
    assert [node.name for node in record.nodes] == ["node-0", "node-1", "node-2"]
    assert len({node.address for node in record.nodes} | {record.gateway}) == 4
    assert load(record.folder) == record == testbed.current(tmp_path / "state")
    assert len(list(programs.netns.iterdir())) == 3
    assert sum("mount -t tmpfs" in line for line in programs.ran) == 3
    standing = testbed.status(tmp_path / "state")
    assert standing.healthy
    assert standing.nodes[0].containers == ()
    assert {trace.kind for trace in testbed.traces(record)} == {"namespace", "link", "folder"}
    assert testbed.traces_of(tmp_path / "state") == testbed.traces(record)
    assert testbed.down(tmp_path / "state", machine=programs.machine) == record.id
    assert testbed.traces(record) == ()
    assert testbed.down(tmp_path / "state", machine=programs.machine) is None
    assert testbed.traces_of(tmp_path / "state") == ()
    with pytest.raises(NotFoundError, match="there is no testbed"):
        testbed.status(tmp_path / "state")


def test_everything_outside_the_folder_carries_the_id(programs: Programs, tmp_path: Path) -> None:
    record = _up(programs, tmp_path / "state")
    for path in (*programs.netns.iterdir(), *programs.links.iterdir()):
        assert path.name.startswith(record.id)
        assert len(path.name) <= 15 or path.parent == programs.netns


@pytest.mark.parametrize("failing", ["type bridge", "mount -t", "netns add", "route add", "sshd -f"])
def test_an_up_that_fails_leaves_nothing(programs: Programs, tmp_path: Path, failing: str) -> None:
    programs.failing = failing
    with pytest.raises(ActionError, match="it does not work"):
        _up(programs, tmp_path / "state")
    programs.failing = ""
    assert not any(programs.netns.iterdir())
    assert not any(programs.links.iterdir())
    assert not (tmp_path / "state/testbed").exists()
    assert _up(programs, tmp_path / "state").complete


def test_what_would_not_go_is_told_and_the_rest_is_gone(programs: Programs, tmp_path: Path) -> None:
    record = _up(programs, tmp_path / "state")
    programs.failing = "netns delete"
    with pytest.raises(ActionError, match="2 things would not go, the first: netns delete"):
        testbed.down(tmp_path / "state", machine=programs.machine)
    assert not record.folder.exists()
    assert {trace.kind for trace in testbed.traces(record)} == {"namespace"}
    programs.failing = ""
    assert testbed.down(tmp_path / "state", machine=programs.machine) == record.id  # the register still knows it
    assert testbed.traces(record) == ()


def test_a_damaged_record_does_not_keep_down_from_its_work(programs: Programs, tmp_path: Path) -> None:
    record = _up(programs, tmp_path / "state")
    (record.folder / "testbed.json").write_text("{")
    assert testbed.down(tmp_path / "state", machine=programs.machine) == record.id
    record.folder.mkdir()
    (record.folder / "testbed.json").write_text("{")
    with pytest.raises(InputError, match="not a valid TestbedRecord"):
        testbed.down(tmp_path / "state", machine=programs.machine)
    (record.folder / "testbed.json").unlink()
    assert testbed.down(tmp_path / "state", machine=programs.machine) is None
    assert not record.folder.exists()


def test_refusals_before_anything_is_made(programs: Programs, tmp_path: Path) -> None:
    state = tmp_path / "state"
    for options, words in (
        ({"nodes": 1}, "nodes = 1"),
        ({"nodes": 17}, "nodes = 17"),
        ({"bandwidth_bytes_per_s": 1.0}, "bandwidth = 1"),
        ({"images_bytes": 5}, "images = 5"),
        ({"images_bytes": 2**60}, "is more than the"),
    ):
        with pytest.raises(UsageError, match=words):
            _plan(programs, state, **options)
    programs.uid = 1000
    with pytest.raises(PreconditionError, match="needs root"):
        _plan(programs, state)
    programs.uid = 0
    assert not any("add" in line for line in programs.ran)
    (state / "testbed").mkdir()
    (state / "testbed/mine").touch()
    with pytest.raises(ConflictError, match="holds no testbed"):
        _plan(programs, state)
    (state / "testbed/mine").unlink()
    (state / "testbed").rmdir()
    record = _up(programs, state)
    with pytest.raises(ConflictError, match=f"testbed {record.id} is there already: node-0, node-1"):
        _plan(programs, state)
    programs.uid = 1000
    with pytest.raises(PreconditionError, match="needs root"):
        testbed.down(state, machine=programs.machine)


def test_missing_programs_are_named(programs: Programs, tmp_path: Path) -> None:
    programs.missing = {"mount"}
    with pytest.raises(PreconditionError, match="no mount"):
        _up(programs, tmp_path / "state")
    programs.missing = {"tc"}
    with pytest.raises(PreconditionError, match="without tc"):
        _up(programs, tmp_path / "state", bandwidth_bytes_per_s=1e6)


def test_a_shaped_link_has_a_bucket(programs: Programs, tmp_path: Path) -> None:
    record = _up(programs, tmp_path / "state", bandwidth_bytes_per_s=1.25e8)
    buckets = [line for line in programs.ran if "tbf" in line]
    assert len(buckets) == 2
    assert "rate 125000000bps burst 1250000" in buckets[0]
    testbed_network.shape(programs.machine, record.nodes[0], 0.0)
    assert "qdisc delete dev eth0 root" in programs.ran[-1]


def test_a_silent_sshd_is_told_with_its_log(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = _up(programs, tmp_path / "state")
    monkeypatch.setattr(testbed_sshd, "_START_S", 0.02)
    (record.nodes[0].ssh / "sshd.log").write_text("Cannot bind\n")
    silent = Machine(run=lambda argv: Answer(status=0, text=""), which=programs.which)
    with pytest.raises(ActionError, match="sshd of node-0 does not listen: Cannot bind"):
        testbed.restart_sshd(record, "node-0", tools=TOOLS, machine=silent)
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()

    def dead(argv: Sequence[str]) -> Answer:
        (record.nodes[0].ssh / "sshd.pid").write_text(f"{gone.pid}\n")
        return Answer(status=0, text="")

    with pytest.raises(ActionError, match="does not listen"):
        testbed.restart_sshd(record, "node-0", tools=TOOLS, machine=Machine(run=dead, which=programs.which))
    again = testbed.restart_sshd(record, "node-0", tools=TOOLS, machine=programs.machine)
    assert len(again.processes) == 2


# SSH


def test_every_node_pins_and_admits_all_others_and_nobody_else(programs: Programs, tmp_path: Path) -> None:
    record = _up(programs, tmp_path / "state", nodes=3)
    for layout in record.nodes:
        pins = (layout.ssh / "known_hosts").read_text().splitlines()
        admitted = (layout.ssh / "authorized_keys").read_text().splitlines()
        others = [other for other in record.nodes if other is not layout]
        assert [pin.split()[0] for pin in pins] == [f"[{other.address}]:2222" for other in others]
        assert [line.split()[-1] for line in admitted] == [other.name for other in others]
        assert all(line.startswith("restrict,port-forwarding,") and record.network in line for line in admitted)
        for name in ("host_ed25519", "client_ed25519", "sshd_config"):
            assert (layout.ssh / name).stat().st_mode & 0o077 == 0
        assert (layout.ssh / "host_ed25519").read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
        server, client = ((layout.ssh / name).read_text() for name in ("sshd_config", "ssh_config"))
        assert "PasswordAuthentication no" in server
        assert f"ListenAddress {layout.address}\n" in server
        assert "StrictHostKeyChecking yes" in client
        assert "StrictHostKeyChecking no" not in client
    keys = {
        line.split()[2] for layout in record.nodes for line in (layout.ssh / "known_hosts").read_text().splitlines()
    }
    assert len(keys) == 3


def test_a_folder_too_long_for_sockets_is_refused(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testbed_sshd, "MAX_SSH_FOLDER", len(str(tmp_path)) + 60)
    for name in ("x" * 60, 'a"b'):
        (tmp_path / name).mkdir()
        with pytest.raises(PreconditionError, match="cannot hold SSH's sockets"):
            _up(programs, tmp_path / name)


@pytest.mark.parametrize(("line", "locked"), [("root:!:1", True), ("root:*:1", False), ("other:!:1", False)])
def test_a_locked_root_needs_pam(tmp_path: Path, line: str, locked: bool) -> None:
    (tmp_path / "shadow").write_text(f"daemon:*:1\n{line}\n")
    assert testbed_sshd.root_is_locked(tmp_path / "shadow") is locked
    assert not testbed_sshd.root_is_locked(tmp_path / "none")


# addresses


@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 255)), max_size=40), st.integers(0, 2**32))
def test_a_free_network_overlaps_no_route(taken: list[tuple[int, int]], seed: int) -> None:
    routes = [f"10.{64 + a}.{b}.0/24 dev eth0" for a, b in taken] + ["default via 192.0.2.1", "local 10.64.0.1 dev lo"]
    network = testbed_network.free_network(routes, random.Random(seed))
    assert network is not None
    for line in routes[:-2]:
        assert not network.overlaps(ipaddress.IPv4Network(line.split()[0]))
    assert ipaddress.IPv4Address("10.64.0.1") not in network


def test_a_machine_without_free_addresses_is_refused(tmp_path: Path) -> None:
    full = Machine(run=lambda argv: Answer(status=0, text="10.0.0.0/8 dev eth0"))
    with pytest.raises(PreconditionError, match="no free /24"):
        testbed_network.choose_network(full, Path("/bin/ip"), random.Random(1))


@given(st.integers(0, 2**32))
def test_new_macs_are_local_and_unicast(seed: int) -> None:
    first = int(testbed.new_mac(random.Random(seed))[:2], 16)
    assert first & 0b11 == 0b10


# the record and the register


def test_a_record_that_others_can_write_is_not_believed(programs: Programs, tmp_path: Path) -> None:
    record = _up(programs, tmp_path / "state")
    path = record.folder / "testbed.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    with pytest.raises(PreconditionError, match="can be written by others"):
        load(record.folder)
    path.chmod(0o600)
    path.write_bytes(b" " * (testbed_state.MAX_RECORD_BYTES + 1))
    with pytest.raises(InputError, match="larger than"):
        load(record.folder)
    path.write_bytes(encode(testbed.replaced(record, folder=Path("/elsewhere"))))
    with pytest.raises(InputError, match="testbed in /elsewhere"):
        load(record.folder)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(PreconditionError, match="cannot read"):
        load(record.folder)
    with pytest.raises(StoreError, match="cannot write"):
        save(testbed.replaced(record, folder=tmp_path / "none"))
    with pytest.raises(NotFoundError, match="no node 'node-9'"):
        record.node("node-9")


@pytest.mark.parametrize("name", ["", "zzrev", "nw", "nw123", "nw1234\n", "nw12345", "../nw12", "nwABCD"])
def test_what_is_no_id_is_never_acted_upon(programs: Programs, tmp_path: Path, name: str) -> None:
    record = _up(programs, tmp_path / "state")
    path = record.folder / "testbed.json"
    path.write_bytes(encode(testbed.replaced(record, id=name)))
    with pytest.raises(InputError, match=re.escape(str(path))):
        load(record.folder)
    for act in (testbed_traces.processes, testbed_traces.end_processes, testbed_traces.links, testbed_traces.cgroups,
                testbed_traces.namespaces, testbed_traces.leftovers):  # fmt: skip
        with pytest.raises(InputError, match="no id of a testbed"):
            act(name)
    with pytest.raises(InputError, match="no id of a testbed"):
        testbed_traces.remove(programs.machine, name, record.folder)
    assert record.folder.is_dir()
    # The register, which is root's alone, still says which one it is.
    assert testbed.down(tmp_path / "state", machine=programs.machine) == record.id


def test_names_that_up_would_not_have_given_are_refused(programs: Programs, tmp_path: Path) -> None:
    record = _up(programs, tmp_path / "state")
    path = record.folder / "testbed.json"
    first, *rest = record.nodes
    for wrong in (
        {"bridge": "docker0"},
        {"nodes": (dataclasses.replace(first, netns="other-node-0"), *rest)},
        {"nodes": (dataclasses.replace(first, testbed="nwffff"), *rest)},
        {"nodes": (dataclasses.replace(first, folder=Path("/etc")), *rest)},
        {"nodes": (dataclasses.replace(first, images=Path("/")), *rest)},
    ):
        path.write_bytes(encode(testbed.replaced(record, **wrong)))
        with pytest.raises(InputError, match="has "):
            load(record.folder)


def test_a_record_of_another_user_is_not_believed(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = _up(programs, tmp_path / "state")
    whole = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result((*whole(fd)[:4], 12345, *whole(fd)[5:10])))
    with pytest.raises(VerificationError, match=r"testbed.json belongs to user 12345"):
        load(record.folder)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sys"
    folder.mkdir()
    for name, text in (("size", "1048576\n"), ("soft", "16384\n"), ("connections", "262144\n")):
        (folder / name).write_text(text)
    monkeypatch.setattr(testbed_state, "PIPES", {folder / "size": 2**30, folder / "soft": 0})
    monkeypatch.setattr(testbed_state, "CONNECTIONS", folder / "connections")
    return folder


def _settings(folder: Path) -> list[int]:
    return [int((folder / name).read_text()) for name in ("size", "soft", "connections")]


def test_the_last_testbed_puts_the_machine_back(settings: Path, tmp_path: Path) -> None:
    places = {"register": tmp_path / "register", "privsep": tmp_path / "sshd"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        testbed_state.join(name, tmp_path / name, **places)
    assert _settings(settings) == [2**30, 0, 16_384]
    assert dict(testbed_state.members(tmp_path / "register")) == {"one": tmp_path / "one", "two": tmp_path / "two"}
    testbed_state.leave("one", **places)
    assert _settings(settings) == [2**30, 0, 16_384]
    assert (tmp_path / "sshd").is_dir()
    testbed_state.leave("two", **places)
    testbed_state.leave("two", **places)
    assert _settings(settings) == [1048576, 16384, 262144]
    assert not (tmp_path / "sshd").exists()
    assert not (tmp_path / "register").exists()


def test_a_testbed_whose_folder_is_gone_holds_nothing_up(settings: Path, tmp_path: Path) -> None:
    places = {"register": tmp_path / "register", "privsep": tmp_path / "sshd"}
    (tmp_path / "sshd").mkdir()  # somebody else's: it stays
    (tmp_path / "one").mkdir()
    testbed_state.join("gone", tmp_path / "gone", **places)
    testbed_state.join("one", tmp_path / "one", **places)
    testbed_state.leave("one", **places)
    assert _settings(settings) == [1048576, 16384, 262144]
    assert (tmp_path / "sshd").is_dir()


def test_a_killed_join_is_in_the_register_and_keeps_what_was_before(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"register": tmp_path / "register", "privsep": tmp_path / "sshd"}
    whole = testbed_state.write_whole

    def killed(path: Path, data: bytes) -> None:
        if path.name == "before.json":
            raise KeyboardInterrupt
        whole(path, data)

    monkeypatch.setattr(testbed_state, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        testbed_state.join("one", tmp_path, **places)
    monkeypatch.setattr(testbed_state, "write_whole", whole)
    assert testbed_state.members(tmp_path / "register") == (("one", tmp_path),)
    assert _settings(settings) == [1048576, 16384, 262144]
    testbed_state.join("two", tmp_path, **places)
    testbed_state.leave("one", **places)
    testbed_state.leave("two", **places)
    assert _settings(settings) == [1048576, 16384, 262144]


def test_whoever_waited_for_a_register_that_went_takes_the_new_one(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one leaves, and removes the lock, while somebody waits for it."""
    register = tmp_path / "register"
    whole = fcntl.flock
    waited: list[int] = []

    def flock(descriptor: int, how: int) -> None:
        whole(descriptor, how)
        if not waited:
            waited.append(descriptor)
            (register / "lock").unlink()
            register.rmdir()

    monkeypatch.setattr(fcntl, "flock", flock)
    testbed_state.join("two", tmp_path, register=register, privsep=tmp_path / "sshd")
    assert waited
    assert testbed_state.members(register) == (("two", tmp_path),)
    assert (register / "lock").exists()


def test_many_who_come_and_go_leave_the_machine_as_it_was(settings: Path, tmp_path: Path) -> None:
    places = {"register": tmp_path / "register", "privsep": tmp_path / "sshd"}

    def come_and_go(name: str) -> None:
        for _ in range(20):
            testbed_state.join(name, tmp_path, **places)
            assert name in dict(testbed_state.members(tmp_path / "register"))
            testbed_state.leave(name, **places)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(come_and_go, f"t{i}") for i in range(4)]:
            done.result(timeout=30)
    assert _settings(settings) == [1048576, 16384, 262144]
    assert not (tmp_path / "register").exists()


def test_a_setting_that_cannot_be_changed_is_told(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings / "soft").unlink()
    (settings / "soft").mkdir()
    monkeypatch.setattr(testbed_state, "PIPES", {settings / "size": 2**30})
    testbed_state.join("one", tmp_path, register=tmp_path / "register", privsep=tmp_path / "sshd")
    monkeypatch.setattr(testbed_state, "PIPES", {settings / "soft": 0})
    with pytest.raises(PreconditionError, match="soft cannot be set to 0"):
        testbed_state.join("two", tmp_path, register=tmp_path / "register", privsep=tmp_path / "sshd")


# finding and ending processes


def test_a_process_is_known_by_number_and_start() -> None:
    me = testbed_state.identify(os.getpid(), "me")
    assert me.started_ticks == started_ticks(os.getpid())
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    assert started_ticks(ended.pid) is None
    with pytest.raises(NotFoundError, match="has ended"):
        testbed_state.identify(ended.pid, "it")


def _sleeper(**environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/sleep", "600"], env=environment)


def test_marked_and_recorded_processes_end_and_others_live(programs: Programs) -> None:
    marked, recorded, other = _sleeper(NATWORK_TESTBED="nw7e57"), _sleeper(), _sleeper(NATWORK_TESTBED="nw7e572")
    try:
        known = testbed_state.identify(recorded.pid, "it")
        stale = OwnProcess(pid=other.pid, started_ticks=1, what="an earlier one of that number")
        found = {process.pid for process in testbed_traces.processes("nw7e57", (known, stale))}
        assert found == {marked.pid, recorded.pid}
        testbed_traces.end_processes("nw7e57", (known, stale))
        assert marked.wait(5) == recorded.wait(5) == -signal.SIGKILL
        testbed_traces.kill(stale)
        testbed_traces.kill(known)
        assert other.poll() is None
    finally:
        for process in (marked, recorded, other):
            process.kill()
            process.wait()


def test_members_of_its_cgroups_are_its_processes_and_are_thawed(programs: Programs, tmp_path: Path) -> None:
    member = _sleeper()
    folder = tmp_path / "cgroups/cpu/nw7e57/node-0"
    folder.mkdir(parents=True)
    for name, text in (("cgroup.procs", f"{member.pid}\n"), ("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
        (folder / name).write_text(text)
    testbed_traces.end_processes("nw7e57")
    assert member.wait(5) == -signal.SIGKILL
    assert (folder / "freezer.state").read_text() == "THAWED"
    assert (folder / "cgroup.freeze").read_text() == "0"


def test_the_caller_is_spared(programs: Programs, tmp_path: Path) -> None:
    folder = tmp_path / "cgroups/nw7e57"
    folder.mkdir()
    (folder / "cgroup.procs").write_text(f"{os.getpid()}\n{os.getppid()}\n")
    assert testbed_traces.processes("nw7e57") == ()


def test_a_process_that_does_not_die_is_told(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    undying = OwnProcess(pid=2**22 + 1, started_ticks=1, what="undying")
    monkeypatch.setattr(testbed_traces, "processes", lambda *_: (undying,))
    monkeypatch.setattr(testbed_traces, "_END_S", 0.0)
    with pytest.raises(ActionError, match="do not die: 4194305 undying"):
        testbed_traces.end_processes("nw7e57")


def test_nothing_is_deleted_below_a_mount(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "has blank" / "testbed"
    (folder / "usr").mkdir(parents=True)
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    line = "36 35 98:0 / {} rw,noatime master:1 - ext4 /dev/root rw\n"
    escaped = str(folder / "usr").replace(" ", "\\040")
    (proc / "self/mountinfo").write_text(line.format("/") + line.format(escaped) + line.format(f"{folder}x"))
    monkeypatch.setattr(testbed_traces, "PROC", proc)
    (tmp_path / "link").symlink_to(folder.parent)
    for named in (folder, tmp_path / "link" / "testbed"):  # however it is named
        assert testbed_traces.mounts(named) == (folder / "usr",)
        (trouble,) = testbed_traces.delete_tree(named)
        assert "is still mounted, so nothing" in trouble
    assert (folder / "usr").is_dir()


def test_a_kernel_cache_that_leads_into_it_goes_and_another_stays(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, folder = tmp_path / "criu.kdat", tmp_path / "testbed"
    folder.mkdir()
    monkeypatch.setattr(testbed_traces, "KERNEL_CACHE", cache)
    cache.symlink_to(tmp_path / "elsewhere")
    testbed_traces.remove(programs.machine, "nw7e57", folder)
    assert cache.is_symlink()
    cache.unlink()
    folder.mkdir()
    cache.symlink_to(folder / "images/criu.kdat")
    assert testbed_traces.Trace(kind="link", name=str(cache)) in testbed_traces.leftovers("nw7e57", folder)
    testbed_traces.remove(programs.machine, "nw7e57", folder)
    assert not cache.is_symlink()


def test_a_cgroup_that_is_busy_is_told(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cgroups/cpu/nw7e57"
    folder.mkdir()
    (folder / "file").touch()
    monkeypatch.setattr(testbed_traces.time, "sleep", lambda _: None)
    with pytest.raises(ActionError, match="Directory not empty"):
        testbed_traces.remove(programs.machine, "nw7e57", tmp_path / "none")


# containers


class Hands:
    """Runtime and bridge of a node in one, that note what they are asked."""

    done: list[str]

    def __init__(self, layout: NodeLayout, tools: Toolchain | None = None) -> None:
        self.layout = layout

    def __getattr__(self, name: str) -> Callable[..., object]:
        async def act(*_: object, **__: object) -> None:
            type(self).done.append(name)
            if name == type(self).failing:
                raise ActionError("it does not start", hint="try")

        return act

    failing = ""

    async def status(self, container: str) -> ContainerStatus:
        running = self.layout.name == "node-0"
        state = ContainerState.RUNNING if running else ContainerState.ABSENT
        return ContainerStatus(container=container, state=state, pid=7 if running else 0)


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> type[Hands]:
    kind = type("FreshHands", (Hands,), {"done": [], "failing": ""})
    monkeypatch.setattr(testbed_containers, "RuncCriu", kind)
    monkeypatch.setattr(testbed_containers, "L2Bridge", kind)
    return kind


def _start(record: TestbedRecord, name: str) -> testbed_containers.Placed:
    spec = testbed_containers.new_spec(record, name, IDLE)
    start = testbed_containers.start(record, "node-0", spec, tools=TOOLS, rng=random.Random(1))
    placed = asyncio.run(start)
    for layout in record.nodes:  # as a migration leaves it: a bundle on both
        layout.bundle(name).mkdir(exist_ok=True)
        (layout.bundle(name) / "spec.json").write_bytes(encode(spec))
    return placed


def test_containers_get_addresses_of_their_own_and_run_before_they_are_reached(
    programs: Programs, tmp_path: Path, hands: type[Hands]
) -> None:
    record = _up(programs, tmp_path / "state")
    web, db = _start(record, "web"), _start(record, "db")
    assert hands.done[:4] == ["prepare", "create_and_start", "attach", "shut"]
    assert (web.state, web.pid, web.node) == (ContainerState.RUNNING, 7, "node-0")
    assert web.spec.address.endswith(".50/24")
    assert db.spec.address.endswith(".51/24")
    placed = asyncio.run(testbed_containers.containers(record, tools=TOOLS))
    assert [(one.spec.name, one.node) for one in placed] == [("db", "node-0"), ("web", "node-0")]
    assert asyncio.run(testbed_containers.find(record, "db", tools=TOOLS)) == placed[0]
    with pytest.raises(NotFoundError, match="no container x runs"):
        asyncio.run(testbed_containers.find(record, "x", tools=TOOLS))
    with pytest.raises(ConflictError, match="there is a container web on node-0"):
        _start(record, "web")
    for name in ("", "Web", "../x", "-x", "x" * 32):
        with pytest.raises(UsageError, match="cannot be a name"):
            _start(record, name)


def test_what_does_not_start_is_taken_away(programs: Programs, tmp_path: Path, hands: type[Hands]) -> None:
    record = _up(programs, tmp_path / "state")
    hands.failing = "create_and_start"
    with pytest.raises(ActionError, match="it does not start"):
        _start(record, "web")
    assert hands.done[-3:] == ["destroy", "remove", "shut"]
    assert not record.nodes[0].bundle("web").exists()


def test_what_does_not_answer_in_time_is_taken_away(
    programs: Programs, tmp_path: Path, hands: type[Hands], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = _up(programs, tmp_path / "state")
    spec = testbed_containers.new_spec(record, "web", IDLE)
    asked: list[str] = []

    async def answers(host: str) -> bool:
        asked.append(host)
        return len(asked) > 3

    async def silent(host: str) -> bool:
        return False

    def start(node: str, within_s: float) -> testbed_containers.Placed:
        return asyncio.run(
            testbed_containers.start(record, node, spec, tools=TOOLS, rng=random.Random(1), serve_within_s=within_s)
        )

    monkeypatch.setattr(testbed_containers, "answers", silent)
    with pytest.raises(TimedOutError, match="did not answer within 0 s"):
        start("node-0", 0.0)
    with pytest.raises(ActionError, match="web ended before it answered"):
        start("node-1", 60.0)
    assert hands.done[-3:] == ["destroy", "remove", "shut"]
    assert not any(layout.bundle("web").exists() for layout in record.nodes)
    monkeypatch.setattr(testbed_containers, "answers", answers)
    assert start("node-0", 60.0).state is ContainerState.RUNNING
    assert set(asked) == {spec.address.partition("/")[0]}


def test_answers_asks_for_the_workload_s_own_reply() -> None:
    async def scenario() -> list[bool]:
        async def workload(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline() and b"0 1 0123456789abcdef\n")
            writer.close()

        async with await asyncio.start_server(workload, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            there = await testbed_containers.answers("127.0.0.1", port)
        return [there, await testbed_containers.answers("127.0.0.1", port)]

    assert asyncio.run(scenario()) == [True, False]


def test_more_than_the_machine_has_is_refused_before_anything_is_made(programs: Programs, tmp_path: Path) -> None:
    record = _up(programs, tmp_path / "state")
    layout = record.nodes[0]
    testbed_containers.require_room(layout, IDLE, volume_bytes=4096)
    with pytest.raises(RefusedError, match=r"holds \d+ bytes of memory, \d+ are available"):
        testbed_containers.require_room(layout, dataclasses.replace(IDLE, memory_bytes=2**60))
    with pytest.raises(RefusedError, match=r"takes \d+ bytes, \d+ are free in"):
        testbed_containers.require_room(layout, IDLE, volume_bytes=2**60)
    for cores in (-1.0, 4097.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="cpu limit"):
            testbed_containers.new_spec(record, "web", IDLE, cpu_limit_cores=cores)
    assert not any(layout.bundles.iterdir())


def test_a_full_network_is_refused(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = _up(programs, tmp_path / "state")
    monkeypatch.setattr(testbed_containers, "FIRST_CONTAINER", 255)
    with pytest.raises(RefusedError, match="are taken"):
        testbed_containers.free_address(record)
