"""What belongs to one container on its node: cgroup, network namespace, sockets, load."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters import container_cgroup, container_load, container_network
from natwork_ray.adapters.container_cgroup import ContainerCgroup
from natwork_ray.adapters.container_load import PAGE, compare, disk_bytes, fingerprints, held_pages, look, measure
from natwork_ray.adapters.container_network import ContainerNetwork, free_port, removal
from natwork_ray.adapters.subprocesses import Finished
from natwork_ray.adapters.tcp_repair import end_repair
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.errors import ActionError, ConflictError, NotFoundError, UsageError

TOOLS = Toolchain(**{name: Path("/x", name) for name in Toolchain.__dataclass_fields__})


def cgroup_v1(tmp_path: Path) -> ContainerCgroup:
    for controller in ("freezer", "cpuacct", "blkio"):
        (tmp_path / controller / "nw" / "web").mkdir(parents=True)
    (tmp_path / "freezer" / "nw" / "web" / "freezer.state").write_text("THAWED\n")
    return ContainerCgroup("/nw/web", tmp_path)


def cgroup_v2(tmp_path: Path) -> ContainerCgroup:
    (tmp_path / "nw" / "web").mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (tmp_path / "nw" / "web" / "cgroup.freeze").write_text("0\n")
    (tmp_path / "nw" / "web" / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    return ContainerCgroup("/nw/web", tmp_path)


class TestCgroup:
    """Both versions of the kernel's interface."""

    def test_freezing_and_thawing_in_version_1(self, tmp_path: Path) -> None:
        cgroup = cgroup_v1(tmp_path)
        assert cgroup.state() == "thawed"
        assert not cgroup.thaw()
        asyncio.run(cgroup.freeze())
        assert cgroup.state() == "frozen"
        assert cgroup.thaw()
        assert cgroup.state() == "thawed"

    def test_version_2_is_frozen_when_its_events_say_so(self, tmp_path: Path) -> None:
        cgroup = cgroup_v2(tmp_path)
        assert cgroup.state() == "thawed"
        (tmp_path / "nw/web/cgroup.freeze").write_text("1\n")
        assert cgroup.state() == "freezing"
        (tmp_path / "nw/web/cgroup.events").write_text("populated 1\nfrozen 1\n")
        asyncio.run(cgroup.freeze())
        assert cgroup.state() == "frozen"
        assert cgroup.thaw()

    def test_what_will_not_stand_still_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(container_cgroup, "FREEZE_S", 0.0)
        cgroup = cgroup_v2(tmp_path)
        with pytest.raises(ActionError, match="still freezing"):
            asyncio.run(cgroup.freeze())
        assert cgroup.state() == "thawed"

    def test_what_is_not_there_is_absent_and_cannot_be_frozen(self, tmp_path: Path) -> None:
        cgroup = ContainerCgroup("/nw/none", tmp_path)
        assert cgroup.state() == "absent"
        assert cgroup.members() == ()
        assert not cgroup.thaw()
        with pytest.raises(ConflictError, match="cannot be frozen"):
            asyncio.run(cgroup.freeze())
        asyncio.run(cgroup.kill())
        asyncio.run(cgroup.remove())

    def test_members_are_found_in_every_hierarchy_and_below(self, tmp_path: Path) -> None:
        cgroup = cgroup_v1(tmp_path)
        (tmp_path / "freezer/nw/web/cgroup.procs").write_text("12\n0\n")
        (tmp_path / "cpuacct/nw/web/below").mkdir()
        (tmp_path / "cpuacct/nw/web/below/cgroup.procs").write_text("7\n")
        assert cgroup.members() == (7, 12)

    def test_a_member_that_does_not_die_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(container_cgroup, "KILL_S", 0.0)
        cgroup = cgroup_v1(tmp_path)
        (tmp_path / "freezer/nw/web/cgroup.procs").write_text(f"{2**22 + 1}\n")
        with pytest.raises(ActionError, match="does not die"):
            asyncio.run(cgroup.kill())
        with pytest.raises(ActionError, match="cgroup"):
            asyncio.run(cgroup.remove())

    def test_empty_folders_go_deepest_first(self, tmp_path: Path) -> None:
        cgroup = cgroup_v1(tmp_path)
        (tmp_path / "freezer/nw/web/freezer.state").unlink()
        (tmp_path / "cpuacct/nw/web/below").mkdir()
        asyncio.run(cgroup.remove())
        assert not any((tmp_path / name / "nw/web").exists() for name in ("freezer", "cpuacct", "blkio"))

    def test_counters(self, tmp_path: Path) -> None:
        old, new = cgroup_v1(tmp_path / "1"), cgroup_v2(tmp_path / "2")
        assert (old.cpu_s(), old.written_bytes(), new.cpu_s(), new.written_bytes()) == (0.0, None, 0.0, None)
        (tmp_path / "1/cpuacct/nw/web/cpuacct.usage").write_text("2500000000\n")
        told = "8:0 Read 7\n8:0 Write 4096\n9:0 Write 1\nTotal 4104\n"
        (tmp_path / "1/blkio/nw/web/blkio.throttle.io_service_bytes").write_text(told)
        (tmp_path / "2/nw/web/cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
        (tmp_path / "2/nw/web/io.stat").write_text("8:0 rbytes=7 wbytes=4096\n9:0 rbytes=0 wbytes=1\n")
        assert old.cpu_s() == new.cpu_s() == 2.5
        assert old.written_bytes() == new.written_bytes() == 4097.0


class Filter:
    """A packet filter that keeps its table as text."""

    def __init__(self, saved: str = "", status: int = 0) -> None:
        self.saved, self.status = saved, status
        self.calls: list[tuple[str, bytes]] = []

    async def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float, stdin: bytes = b"", quiet: bool = False,
        alone: bool = False,
    ) -> Finished:  # fmt: skip
        self.calls.append((Path(argv[3]).name, stdin))
        return Finished(status=self.status, text=self.saved if not self.status else "line 1\nit refused")


class TestNetwork:
    """The lock of a container's namespace."""

    @pytest.fixture(autouse=True)
    def _namespace(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(container_network, "NETNS", tmp_path)
        (tmp_path / "web").touch()

    def network(self, told: Filter, netns: str = "web") -> ContainerNetwork:
        return ContainerNetwork(netns, TOOLS, told, {})  # type: ignore[arg-type]

    def test_closing_drops_and_opening_takes_exactly_that_away(self) -> None:
        told = Filter()
        asyncio.run(self.network(told).close())
        assert told.calls[0][0] == "iptables_restore"
        assert b"-A NATWORK -j DROP" in told.calls[0][1]
        own = "-A INPUT -s 1.2.3.4/32 -j DROP"
        told.saved = f"*filter\n:INPUT ACCEPT [0:0]\n:NATWORK - [0:0]\n{own}\n-A INPUT -j NATWORK\nCOMMIT"
        asyncio.run(self.network(told).open())
        assert [name for name, _ in told.calls[1:]] == ["iptables-save", "iptables_restore"]
        assert told.calls[-1][1] == b"*filter\n-D INPUT -j NATWORK\n-F NATWORK\n-X NATWORK\nCOMMIT\n"

    def test_a_closed_twice_and_a_criu_that_was_killed_are_undone_as_well(self) -> None:
        saved = (
            "*filter\n:INPUT ACCEPT [0:0]\n:CRIU - [0:0]\n:NATWORK - [0:0]\n-A INPUT -j CRIU\n-A INPUT -j NATWORK\n"
            "-A INPUT -j NATWORK\n-A CRIU -m mark --mark 0xc114 -j ACCEPT\n-A CRIU -j DROP\nCOMMIT\n"
        )
        assert removal(saved).splitlines()[1:4] == ["-D INPUT -j CRIU", "-D INPUT -j NATWORK", "-D INPUT -j NATWORK"]
        assert removal(saved).endswith("-F NATWORK\n-X NATWORK\n-F CRIU\n-X CRIU\nCOMMIT\n")

    def test_an_open_or_absent_network_is_left_alone(self) -> None:
        told = Filter("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n")
        asyncio.run(self.network(told).open())
        assert len(told.calls) == 1
        asyncio.run(self.network(told, "none").open())
        assert len(told.calls) == 1
        with pytest.raises(NotFoundError, match="no network namespace none"):
            asyncio.run(self.network(told, "none").close())

    def test_a_filter_that_refuses_is_quoted(self) -> None:
        told = Filter(status=1)
        with pytest.raises(ActionError, match="iptables-restore in web: it refused"):
            asyncio.run(self.network(told).close())
        with pytest.raises(ActionError, match="iptables-save in web: it refused"):
            asyncio.run(self.network(told).open())

    def test_a_port_in_no_namespace_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ActionError, match="no port in none"):
            free_port(tmp_path / "none")
        with pytest.raises(ActionError, match="no port in web"):
            free_port(tmp_path / "web")  # a file that is no namespace

    @pytest.mark.skipif(os.geteuid() != 0, reason="entering a network namespace needs root")
    def test_a_port_is_free_in_its_namespace(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", free_port(Path("/proc/self/ns/net"))))


class TestRepair:
    """Sockets that a killed CRIU left in repair mode."""

    def test_sockets_at_work_are_left_alone(self) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)),
            socket.socket(socket.AF_UNIX),
            socket.socket(type=socket.SOCK_DGRAM),
        ):
            assert end_repair((os.getpid(), 2**22 + 1)) == 0

    @pytest.mark.skipif(os.geteuid() != 0, reason="repair mode needs root")
    def test_repair_mode_is_ended(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
            peer, _ = server.accept()
            with peer:
                try:
                    peer.setsockopt(socket.IPPROTO_TCP, 19, 1)
                except PermissionError:
                    pytest.skip("no CAP_NET_ADMIN")
                client.sendall(b"request")
                with pytest.raises(PermissionError):
                    peer.recv(16)  # what costs a container its connection
                assert end_repair((os.getpid(),)) == 1
                assert peer.recv(16) == b"request"
                peer.sendall(b"answer")
                assert client.recv(16) == b"answer"


class TestLoad:
    """Which pages were written, and what else is counted."""

    @given(st.integers(0, 511), st.integers(1, 2**64 - 1))
    def test_a_change_of_any_word_changes_the_fingerprint(self, at: int, by: int) -> None:
        page = np.arange(512, dtype=np.uint64).reshape(1, 512)
        changed = page.copy()
        changed[0, at] ^= np.uint64(by)
        assert fingerprints(page)[0] != fingerprints(changed)[0]

    def test_written_and_distinct_pages(self) -> None:
        looks = [
            {(1, 0): 10, (1, 1): 20, (1, 2): 30},
            {(1, 0): 11, (1, 1): 20, (1, 2): 30},
            {(1, 0): 12, (1, 1): 20, (1, 3): 40},
        ]
        assert compare(looks, every=1) == (3 * PAGE, 2 * PAGE)
        assert compare(looks, every=4) == (12 * PAGE, 8 * PAGE)
        assert compare(looks[:1], every=1) == (0.0, 0.0)

    def test_this_process_holds_pages_and_writes_are_seen(self) -> None:
        memory = np.zeros(64 * 512, dtype=np.uint64)
        memory += np.uint64(1)
        # Threads and libraries of the test runner write too: what is asked is whether these pages are among them.
        first = (memory.ctypes.data + PAGE - 1) // PAGE
        before, held = look((os.getpid(),), every=1)
        assert held >= len(before) > 64
        memory[:: 2 * 512] += np.uint64(1)
        after, _ = look((os.getpid(),), every=1)
        changed = {page for (pid, page), mark in after.items() if before.get((pid, page)) != mark}
        assert len(changed & set(range(first - 1, first + 64))) >= 31
        assert len(held_pages(os.getpid())) > 64

    def test_a_process_that_has_ended_holds_nothing(self) -> None:
        assert len(held_pages(2**22 + 1)) == 0
        assert look((2**22 + 1,), every=1) == ({}, 0)
        assert container_load.traffic_bytes(2**22 + 1) == (0, 0)

    def test_disk_counts_blocks_once_and_follows_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"x" * 8192)
        os.link(tmp_path / "a", tmp_path / "b")
        (tmp_path / "c").symlink_to("/usr")
        assert 8192 <= disk_bytes(tmp_path) <= 4 * 8192
        assert disk_bytes(tmp_path / "none") == 0.0

    def test_a_measurement_of_a_process(self, tmp_path: Path) -> None:
        # A small one: the test runner's own memory takes seconds to look at five times.
        program = "held = b'x' * 2**21; print('ready', flush=True); input()"
        cgroup = cgroup_v1(tmp_path / "cgroup")
        (tmp_path / "root").mkdir()
        (tmp_path / "root/file").write_bytes(b"x" * 4096)
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            found = asyncio.run(measure((child.pid,), cgroup, tmp_path / "root", observe_s=0.02, cpu_limit_cores=1.5))
            child.communicate(b"\n")
        assert 2**21 < found.memory_bytes < 2**26
        assert 0 <= found.working_set_bytes <= found.memory_bytes
        assert found.volume_bytes == found.volume_delta_bytes >= 4096
        assert (found.cpu_limit_cores, found.bandwidth_bytes_per_s, found.rtt_s) == (1.5, 0.0, 0.0)
        assert found.observed_s >= 0.02

    def test_what_cannot_be_observed(self, tmp_path: Path) -> None:
        cgroup = cgroup_v1(tmp_path)
        with pytest.raises(UsageError, match="observe_s"):
            asyncio.run(measure((1,), cgroup, tmp_path, observe_s=0.0, cpu_limit_cores=0.0))
        with pytest.raises(ConflictError, match="no process"):
            asyncio.run(measure((), cgroup, tmp_path, observe_s=0.1, cpu_limit_cores=0.0))


def test_the_kernel_knows_the_call_for_descriptors() -> None:
    assert ctypes.CDLL(None, use_errno=True).syscall(438, -1, 0, 0) == -1
    assert ctypes.get_errno() != 38  # ENOSYS
