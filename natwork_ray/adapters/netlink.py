"""The few things that a bridge's ports are asked and told, by netlink (pyroute2, extra `testbed`).

A third of a millisecond each, where a program such as `ip` takes two to be started. Belongs to the thread that uses it
first. Needs CAP_NET_ADMIN and CAP_NET_RAW.
"""

from __future__ import annotations

import errno
import socket
from enum import StrEnum
from pathlib import Path
from typing import Any

from natwork_ray.adapters.testbed_network import NETNS
from natwork_ray.errors import PreconditionError

_LINKS = Path("/sys/class/net")
_MAX_NOTE = 255  # the kernel's bound for an alias
# NUD_PERMANENT would make an entry the bridge's own address; NUD_NOARP is what `static` means to a bridge.
_NUD_NOARP, _NTF_MASTER = 0x40, 0x04
_HANDLE, _ROOT = 0x10000, 0xFFFFFFFF  # 1: and root
_WIDE_BYTES_PER_S = 4 * 10**9
HANDLE_TEXT = "1:"


class Port(StrEnum):
    """Where a link stands. `held`: on the bridge, but broadcasts do not go to it."""

    ABSENT = "absent"
    OFF = "off"
    HELD = "held"
    OPEN = "open"


class Netlink:
    """Links of the root namespace."""

    def __init__(self) -> None:
        self._sockets: tuple[Any, socket.socket] | None = None

    def _open(self) -> tuple[Any, socket.socket]:
        if self._sockets is None:
            try:
                from pyroute2 import IPRoute  # type: ignore[import-untyped]
            except ImportError as error:
                raise PreconditionError(
                    "the bridge needs pyroute2", hint="pip install -c constraints.txt -e '.[testbed]'"
                ) from error
            # The second is kept open: to close one costs more time than a whole move may take.
            self._sockets = (IPRoute(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        return self._sockets

    def close(self) -> None:
        """Close the sockets; they open again when needed."""
        if self._sockets is not None:
            for one in self._sockets:
                one.close()
            self._sockets = None

    def index(self, link: str) -> int:
        """Number of a link; 0 when there is none."""
        try:
            return socket.if_nametoindex(link)
        except OSError:
            return 0

    def make_pair(self, link: str, *, netns: str, mac: str) -> None:
        """A pair of links: this one here, `eth0` with the MAC in a namespace."""
        peer = {"ifname": "eth0", "address": mac, "net_ns_fd": str(NETNS / netns)}
        self._open()[0].link("add", ifname=link, kind="veth", peer=peer)

    def delete(self, link: str) -> None:
        """Delete a link and its other end."""
        self._open()[0].link("del", index=self.index(link))

    def off(self, link: str) -> None:
        """Take a link off its bridge, and down."""
        self._open()[0].link("set", index=self.index(link), master=0, state="down")

    def up(self, link: str) -> None:
        """Switch a link on."""
        self._open()[0].link("set", index=self.index(link), state="up")

    def join(self, link: str, bridge: str, port: Port) -> None:
        """Put a link on a bridge, as an open port or as a held one."""
        netlink, index, whole = self._open()[0], self.index(link), int(port is Port.OPEN)
        netlink.link("set", index=index, master=self.index(bridge), state="up")
        netlink.brport("set", index=index, learning=whole, bcast_flood=whole, mcast_flood=whole, unicast_flood=1)

    def own(self, link: str, mac: str) -> None:
        """From now on the bridge sends frames for this MAC to this port."""
        self._open()[0].fdb("replace", ifindex=self.index(link), lladdr=mac, state=_NUD_NOARP, flags=_NTF_MASTER)

    def port(self, link: str) -> Port:
        """Where the link stands."""
        index = self.index(link)
        if not index:
            return Port.ABSENT
        found = self._open()[0].get_links(index)[0]
        if not found.get_attr("IFLA_MASTER"):
            return Port.OFF
        flood = found.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA", "IFLA_BRPORT_BCAST_FLOOD")
        return Port.OPEN if flood else Port.HELD

    def write_note(self, link: str, note: bytes) -> None:
        """Keep up to 255 bytes with a link (its alias), for as long as it lives."""
        if len(note) > _MAX_NOTE:
            raise ValueError(f"a note of {len(note)} bytes")
        self._open()[0].link("set", index=self.index(link), IFLA_IFALIAS=note.decode())

    def read_note(self, link: str) -> bytes:
        """What was kept; empty when nothing was, or there is no link."""
        try:
            return (_LINKS / link / "ifalias").read_bytes().strip()
        except OSError:
            return b""

    def widen(self, link: str, limit_bytes: int) -> None:
        """Fill a link's token bucket (handle 1:) and let it run full; its queue stays."""
        wide = {"rate": _WIDE_BYTES_PER_S, "burst": 2**20, "limit": limit_bytes}
        self._open()[0].tc("change", "tbf", index=self.index(link), handle=_HANDLE, **wide)

    def unqueue(self, link: str) -> None:
        """Take a link's queueing discipline away, if it has one."""
        from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

        try:
            self._open()[0].tc("del", index=self.index(link), parent=_ROOT)
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.EINVAL):
                raise

    def frames_sent(self, link: str) -> int:
        """How many frames have left a link; 0 when there is none."""
        try:
            return int((_LINKS / link / "statistics/tx_packets").read_text(encoding="ascii"))
        except OSError:
            return 0

    def send(self, link: str, frame: bytes) -> None:
        """Send an Ethernet frame out of a link."""
        self._open()[1].sendto(frame, (link, 0))
