"""The few things that a bridge's ports are asked and told, by netlink (pyroute2, extra `testbed`).

A third of a millisecond each, where a program such as `ip` takes two to be started, and ten on a busy machine. Belongs
to the thread that uses it first. Needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW.

Token buckets are told in a message of our own (linux/pkt_sched.h): pyroute2 cannot say how many bytes a bucket holds
where they take longer than the four minutes that its unit of time can tell.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

from natwork_ray.adapters import network_namespace
from natwork_ray.errors import ActionError, PreconditionError

_LINKS = Path("/sys/class/net")
_MAX_NOTE = 255  # the kernel's bound for an alias
# NUD_PERMANENT would make an entry the bridge's own address; NUD_NOARP is what `static` means to a bridge.
_NUD_NOARP, _NTF_MASTER = 0x40, 0x04
_HANDLE, _ROOT = 0x10000, 0xFFFFFFFF  # 1: and root
_WIDE_BYTES_PER_S, _WIDE_BURST_BYTES = 4 * 10**9, 2**20
_LOOPBACK = 1
# Told to a link: no IPv6 address of its own, so that a port says nothing unasked.
_SILENT = {"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", 1]]}]]}
_RTM_NEWQDISC, _ETHERNET = 36, 1
_REQUEST, _NEW = 0x05, 0x600  # with an answer; create, exclusively
_KIND, _OPTIONS, _PARAMETERS, _BURST = 1, 2, 1, 6
_NO_BUCKETS = (errno.ENOENT, errno.EOPNOTSUPP)


class Port(StrEnum):
    """Where a link stands. `held`: on the bridge, but broadcasts do not go to it."""

    ABSENT = "absent"
    OFF = "off"
    HELD = "held"
    OPEN = "open"


class Netlink:
    """Links of the root namespace."""

    def __init__(self) -> None:
        self._route: Any = None
        # Kept open once opened: to close one costs more time than a whole move may take.
        self._frames: socket.socket | None = None

    def _open(self) -> Any:
        if self._route is None:
            try:
                from pyroute2 import IPRoute  # type: ignore[import-untyped]
            except ImportError as error:
                raise PreconditionError(
                    "the bridge needs pyroute2", hint="pip install -c constraints.txt -e '.[testbed]'"
                ) from error
            self._route = IPRoute()
        return self._route

    def close(self) -> None:
        """Close the sockets; they open again when needed."""
        for one in (self._route, self._frames):
            if one is not None:
                one.close()
        self._route = self._frames = None

    def index(self, link: str) -> int:
        """Number of a link; 0 when there is none."""
        try:
            return socket.if_nametoindex(link)
        except OSError:
            return 0

    def make_port(self, link: str, *, namespace: Path, mac: str, address: ipaddress.IPv4Interface) -> None:
        """A pair of links: this one here, and in a namespace, which is made where it is missing, `eth0` with MAC and
        address, and with a default route by the network's first address.

        Raises:
            ActionError: the kernel refused; what was made so far is left.
        """
        try:
            network_namespace.make(namespace)
            peer = {"ifname": "eth0", "address": mac, "net_ns_fd": str(namespace)}
            self._tell(lambda netlink: netlink.link("add", ifname=link, kind="veth", peer=peer), link)
            self._tell(lambda netlink: netlink.link("set", index=self.index(link), IFLA_AF_SPEC=_SILENT), link)
            network_namespace.inside(namespace, lambda: self._furnish(namespace.name, address))
        except OSError as error:
            raise ActionError(f"namespace {namespace.name}: {error}", hint="natwork doctor") from error

    def _furnish(self, name: str, address: ipaddress.IPv4Interface) -> None:
        """In the namespace: everything up, with the address."""
        within = Netlink()
        index, prefix = within.index("eth0"), address.network.prefixlen
        try:
            for work in (
                lambda netlink: netlink.link("set", index=index, IFLA_AF_SPEC=_SILENT),
                lambda netlink: netlink.link("set", index=_LOOPBACK, state="up"),
                lambda netlink: netlink.addr("add", index=index, address=str(address.ip), prefixlen=prefix),
                lambda netlink: netlink.link("set", index=index, state="up"),
                lambda netlink: netlink.route("add", dst="default", gateway=str(address.network[1])),
            ):
                within._tell(work, f"eth0 in {name}")
        finally:
            within.close()

    def delete_namespace(self, namespace: Path) -> None:
        """Take a namespace's name away; harmless when there is none.

        Raises:
            ActionError: the kernel refused.
        """
        try:
            network_namespace.delete(namespace)
        except OSError as error:
            raise ActionError(f"namespace {namespace.name}: {error}", hint="natwork doctor") from error

    def delete(self, link: str) -> None:
        """Delete a link and its other end."""
        self._tell(lambda netlink: netlink.link("del", index=self.index(link)), link)

    def off(self, link: str) -> None:
        """Take a link off its bridge, and down."""
        self._tell(lambda netlink: netlink.link("set", index=self.index(link), master=0, state="down"), link)

    def up(self, link: str) -> None:
        """Switch a link on."""
        self._tell(lambda netlink: netlink.link("set", index=self.index(link), state="up"), link)

    def join(self, link: str, bridge: str, port: Port) -> None:
        """Put a link on a bridge, as an open port or as a held one."""
        index, whole = self.index(link), int(port is Port.OPEN)
        flags = {"learning": whole, "bcast_flood": whole, "mcast_flood": whole, "unicast_flood": 1}
        self._tell(lambda netlink: netlink.link("set", index=index, master=self.index(bridge), state="up"), link)
        self._tell(lambda netlink: netlink.brport("set", index=index, **flags), link)

    def own(self, link: str, mac: str) -> None:
        """From now on the bridge sends frames for this MAC to this port."""
        entry = {"ifindex": self.index(link), "lladdr": mac, "state": _NUD_NOARP, "flags": _NTF_MASTER}
        self._tell(lambda netlink: netlink.fdb("replace", **entry), link)

    def port(self, link: str) -> Port:
        """Where the link stands."""
        index = self.index(link)
        if not index:
            return Port.ABSENT
        found = self._tell(lambda netlink: netlink.get_links(index), link)[0]
        if not found.get_attr("IFLA_MASTER"):
            return Port.OFF
        flood = found.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA", "IFLA_BRPORT_BCAST_FLOOD")
        return Port.OPEN if flood else Port.HELD

    def write_note(self, link: str, note: bytes) -> None:
        """Keep up to 255 bytes with a link (its alias), for as long as it lives."""
        if len(note) > _MAX_NOTE:
            raise ValueError(f"a note of {len(note)} bytes")
        self._tell(lambda netlink: netlink.link("set", index=self.index(link), IFLA_IFALIAS=note.decode()), link)

    def read_note(self, link: str) -> bytes:
        """What was kept; empty when nothing was, or there is no link."""
        try:
            return (_LINKS / link / "ifalias").read_bytes().strip()
        except OSError:
            return b""

    def bucket(self, link: str, *, overhead_bytes: int, burst_bytes: int, limit_bytes: int) -> bool:
        """Give a link that has no queueing discipline a token bucket of one byte per second (handle 1:), full with
        `burst_bytes` and the overhead, which every frame costs besides; False when the kernel has no token buckets.

        Raises:
            ActionError: the kernel refused for another reason.
        """
        refused = _bucket(self.index(link), _NEW, 1, overhead_bytes, burst_bytes, limit_bytes)
        if refused and refused not in _NO_BUCKETS:
            raise _refusal(f"token bucket of {link}", os.strerror(refused))
        return not refused

    def widen(self, link: str, limit_bytes: int) -> None:
        """Fill a link's token bucket and let it run full; its queue stays.

        Raises:
            ActionError: the kernel refused; for example, there is no bucket.
        """
        refused = _bucket(self.index(link), 0, _WIDE_BYTES_PER_S, 0, _WIDE_BURST_BYTES, limit_bytes)
        if refused:
            raise _refusal(f"token bucket of {link}", os.strerror(refused))

    def unqueue(self, link: str) -> None:
        """Take a link's queueing discipline away, if it has one."""
        index, none = self.index(link), (errno.ENOENT, errno.EINVAL)
        self._tell(lambda netlink: netlink.tc("del", index=index, parent=_ROOT), link, harmless=none)

    def frames_sent(self, link: str) -> int:
        """How many frames have left a link; 0 when there is none."""
        try:
            return int((_LINKS / link / "statistics/tx_packets").read_text(encoding="ascii"))
        except OSError:
            return 0

    def send(self, link: str, frame: bytes) -> None:
        """Send an Ethernet frame out of a link."""
        if self._frames is None:
            self._frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._frames.sendto(frame, (link, 0))

    def _tell(self, work: Callable[[Any], Any], link: str, *, harmless: tuple[int, ...] = ()) -> Any:
        """What the kernel answers, None to a refusal that is harmless.

        Raises:
            ActionError: it refused.
        """
        netlink = self._open()
        from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

        try:
            return work(netlink)
        except NetlinkError as error:
            if error.code in harmless:
                return None
            raise _refusal(link, str(error)) from error


def _refusal(what: str, why: str) -> ActionError:
    return ActionError(f"{what}: the kernel refuses: {why}", hint="natwork doctor says what a testbed needs")


def _bucket(index: int, flags: int, rate_bytes_per_s: int, overhead: int, burst: int, limit: int) -> int:
    """Make or change a token bucket; the kernel's error number, 0 for none."""
    rate = struct.pack("=BBHhHI", 0, _ETHERNET, overhead, 0, 0, rate_bytes_per_s)
    parameters = rate + bytes(len(rate)) + struct.pack("=III", limit, 0, 0)
    options = _attribute(_PARAMETERS, parameters) + _attribute(_BURST, struct.pack("=I", burst))
    body = struct.pack("=BxxxiIII", 0, index, _HANDLE, _ROOT, 0)
    body += _attribute(_KIND, b"tbf\0") + _attribute(_OPTIONS, options)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(body), _RTM_NEWQDISC, _REQUEST | flags, 1, 0) + body)
        return -int(struct.unpack_from("=i", netlink.recv(65_536), 16)[0])


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
