"""What the kernel is told about ports and token buckets; and, as root in a namespace of its own, that it obeys."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters import network_namespace
from natwork_ray.adapters.netlink import Netlink, Port
from natwork_ray.errors import ActionError

refusals = pytest.importorskip("pyroute2.netlink.exceptions")
_STATUS = Path("/proc/self/status").read_text(encoding="ascii")
_MAY = os.geteuid() == 0 and bool(int(_STATUS.partition("CapEff:")[2].split()[0], 16) >> 21 & 1)  # CAP_SYS_ADMIN
AS_ROOT = pytest.mark.skipif(not _MAY, reason="network namespaces need root")
ADDRESS = ipaddress.IPv4Interface("10.77.3.50/24")


class Answers:
    """A netlink socket that keeps what it is sent and answers with an error number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.sent = b""

    def __call__(self, *_kind: int) -> Answers:
        return self

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def send(self, data: bytes) -> int:
        self.sent = data
        return len(data)

    def recv(self, _size: int) -> bytes:
        return struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -self.number) + bytes(16)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Answers]:
    def answering(number: int) -> Answers:
        answers = Answers(number)
        monkeypatch.setattr("natwork_ray.adapters.netlink.socket.socket", answers)
        return answers

    monkeypatch.setattr(Netlink, "index", lambda _self, _link: 7)
    return answering


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        length, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:length]
        data = data[(length + 3) // 4 * 4 :]
    return found


def test_a_bucket_is_told_as_tc_would(kernel: Callable[[int], Answers]) -> None:
    """linux/rtnetlink.h and linux/pkt_sched.h; the rate table is needless where a link layer is named."""
    answers = kernel(0)
    assert Netlink().bucket("x", overhead_bytes=60_000, burst_bytes=1514, limit_bytes=4 * 2**20)
    sent = answers.sent
    # Length, RTM_NEWQDISC, request + acknowledge + exclusively + create; then family, link, handle 1:, root.
    assert struct.unpack_from("=IHHII", sent) == (len(sent), 36, 0x1 | 0x4 | 0x200 | 0x400, 1, 0)
    assert struct.unpack_from("=BxxxiIII", sent, 16) == (0, 7, 0x10000, 0xFFFFFFFF, 0)
    outer = _attributes(sent[36:])
    assert outer.keys() == {1, 2}
    assert outer[1] == b"tbf\0"
    options = _attributes(outer[2])
    assert options.keys() == {1, 6}
    assert struct.unpack("=I", options[6]) == (1514,)
    assert len(options[1]) == 36  # struct tc_tbf_qopt
    assert struct.unpack_from("=BBHhHI", options[1]) == (0, 1, 60_000, 0, 0, 1)  # tc_ratespec: Ethernet, 1 byte/s
    assert options[1][12:24] == bytes(12)  # no peak rate
    assert struct.unpack_from("=III", options[1], 24) == (4 * 2**20, 0, 0)


def test_widening_changes_the_bucket_that_is_there(kernel: Callable[[int], Answers]) -> None:
    answers = kernel(0)
    Netlink().widen("x", 4 * 2**20)
    assert struct.unpack_from("=IHH", answers.sent)[1:] == (36, 0x5)
    kernel(errno.ENOENT)
    with pytest.raises(ActionError, match="token bucket of x: the kernel refuses: No such file"):
        Netlink().widen("x", 4 * 2**20)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EOPNOTSUPP])
def test_a_kernel_without_buckets_says_so(kernel: Callable[[int], Answers], number: int) -> None:
    kernel(number)
    assert not Netlink().bucket("x", overhead_bytes=1, burst_bytes=1, limit_bytes=1)


def test_other_refusals_are_errors(kernel: Callable[[int], Answers], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(errno.EPERM)
    with pytest.raises(ActionError, match="the kernel refuses: Operation not permitted"):
        Netlink().bucket("x", overhead_bytes=1, burst_bytes=1, limit_bytes=1)

    class Route:
        def link(self, *_words: Any, **_fields: Any) -> None:
            raise refusals.NetlinkError(errno.EBUSY, "Device or resource busy")

        def tc(self, *_words: Any, **_fields: Any) -> None:
            raise refusals.NetlinkError(errno.ENOENT, "No such file or directory")

    netlink = Netlink()
    monkeypatch.setattr(netlink, "_open", Route)
    with pytest.raises(ActionError, match=r"x: the kernel refuses: .*busy"):
        netlink.up("x")
    netlink.unqueue("x")  # it has none: as it should be


def test_a_note_is_short() -> None:
    with pytest.raises(ValueError, match="256 bytes"):
        Netlink().write_note("x", bytes(256))
    assert Netlink().read_note("no-such-link-at-all") == b""
    assert Netlink().frames_sent("no-such-link-at-all") == 0
    assert Netlink().index("no-such-link") == 0


@AS_ROOT
def test_a_port_is_made_held_opened_and_deleted(tmp_path: Path) -> None:
    """In a namespace of the test's own, so that the machine's links are left alone."""
    world, web = tmp_path / "world", tmp_path / "web"
    network_namespace.make(world)

    def play() -> None:
        netlink = Netlink()
        try:
            netlink._open().link("add", ifname="br", kind="bridge")
            assert netlink.port("p") is Port.ABSENT
            netlink.make_port("p", namespace=web, mac="02:00:00:00:00:01", address=ADDRESS)
            assert netlink.port("p") is Port.OFF
            assert netlink.bucket("p", overhead_bytes=60_000, burst_bytes=1514, limit_bytes=4 * 2**20)
            with pytest.raises(ActionError, match="token bucket of p"):
                netlink.bucket("p", overhead_bytes=0, burst_bytes=1514, limit_bytes=4 * 2**20)
            netlink.up("p")
            netlink.join("p", "br", Port.HELD)
            assert netlink.port("p") is Port.HELD
            netlink.join("p", "br", Port.OPEN)
            netlink.own("p", "02:00:00:00:00:01")
            netlink.widen("p", 4 * 2**20)
            assert netlink.port("p") is Port.OPEN
            netlink.unqueue("p")
            netlink.unqueue("p")
            netlink.write_note("p", b"{}")
            netlink.off("p")
            with pytest.raises(ActionError, match="p: the kernel refuses"):
                netlink.make_port("p", namespace=web, mac="02:00:00:00:00:01", address=ADDRESS)
            netlink.delete("p")
            assert netlink.port("p") is Port.ABSENT
            # A route that leads nowhere: what cannot be furnished is told, and what was made is found by its name.
            with pytest.raises(ActionError, match="namespace none"):
                netlink.make_port("q", namespace=tmp_path / "no" / "none", mac="02:00:00:00:00:01", address=ADDRESS)
        finally:
            netlink.close()
            netlink.delete_namespace(web)
            netlink.delete_namespace(web)

    def furnished() -> dict[str, Any]:
        netlink = Netlink()
        try:
            route = netlink._open()
            (link,) = route.get_links(ifname="eth0")
            return {
                "mac": link.get_attr("IFLA_ADDRESS"),
                "up": bool(link["flags"] & 1),
                "addresses": {a.get_attr("IFA_ADDRESS") for a in route.get_addr(index=link["index"])},
                "gateways": {r.get_attr("RTA_GATEWAY") for r in route.get_default_routes()},
            }
        finally:
            netlink.close()

    def look() -> None:
        netlink = Netlink()
        with contextlib.closing(netlink):
            netlink.make_port("r", namespace=web, mac="02:00:00:00:00:01", address=ADDRESS)
            netlink.up("r")

    try:
        network_namespace.inside(world, play)
        assert not web.exists()
        network_namespace.inside(world, look)
        found = network_namespace.inside(web, furnished)
        # No IPv6 address: a port says nothing unasked.
        assert found == {
            "mac": "02:00:00:00:00:01", "up": True, "addresses": {"10.77.3.50"}, "gateways": {"10.77.3.1"},
        }  # fmt: skip
    finally:
        network_namespace.delete(web)
        network_namespace.delete(world)
    assert "p" not in dict(socket.if_nameindex()).values()
