"""A container's IP and MAC move at a layer 2 bridge, with its TCP sessions (D3.3 section 2.1).

On every node the container has a network namespace of its own with the same address and the same MAC; one of them is
the address's owner: its link is an ordinary port of the bridge, with a static forwarding entry for the MAC. The MAC
does not change, so neighbours' ARP tables stay right; the gratuitous ARP tells switches beyond the bridge, if any.

Between `detach` on the source and `attach` on the target nobody owns the address. A packet lost then costs its sender
a retransmission time-out, 0.2 s at the first loss and doubling; a packet that reached the target's kernel before the
restored socket would be answered with a reset. So the target's port is *held* from `prepare` on: frames that nobody
owns are flooded to it by the bridge and wait in its queue, a token bucket of one byte per second that is overdrawn from
the start; `attach` opens it. What the restored processes send goes out at once. Broadcasts do not go to a held port, so
that a stranger's ARP question gets one answer, from the owner.

Where the kernel has no token bucket, the port joins the bridge at `attach` only, and the senders' time-outs decide.

No program is started: namespaces, links and queues go through netlink (`natwork_ray.adapters.netlink`), some ten
milliseconds in all for `prepare`, which lies on the path of every migration.

    bridge = L2Bridge(node)
    await bridge.prepare(spec, key="m1")
    await bridge.attach("web")
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import re
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from natwork_ray.adapters.netlink import Netlink, Port
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_network import NETNS
from natwork_ray.domain.runtime import ContainerSpec
from natwork_ray.domain.values import decode, encode, value
from natwork_ray.errors import ActionError, InputError, NotFoundError, UsageError

T = TypeVar("T")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_FRAME = 1514
_LIMIT_BYTES = 4 * 2**20
# Counted onto every frame: after one frame the next may pass in 60,000 s.
_OVERDRAFT = 60_000
_PATIENCE = 2000  # milliseconds
_ETHERTYPE = b"\x88\xb5"  # IEEE 802: for local experiments; no kernel listens to it


@value
class PortNote:
    """What the kernel keeps for us in the link's alias, so that an agent that was killed finds it again."""

    container: str
    address: str
    mac: str


def port_name(layout: NodeLayout, container: str) -> str:
    """The container's link in the root namespace: at most 15 characters, different on every node."""
    mark = hashlib.blake2s(f"{layout.name}/{container}".encode(), digest_size=4).hexdigest()
    return f"{layout.testbed}c{mark}"


def gratuitous_arp(address: str, mac: str) -> bytes:
    """The Ethernet frame that announces an address: an ARP request of its owner for itself (RFC 5227, section 3)."""
    own, ip = bytes.fromhex(mac.replace(":", "")), ipaddress.IPv4Interface(address).ip.packed
    arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, own, ip, bytes(6), ip)
    return b"\xff" * 6 + own + b"\x08\x06" + arp


class L2Bridge:
    """AddressBridge of one node of a testbed. `shut` ends its thread."""

    def __init__(self, layout: NodeLayout, *, netlink: Netlink | None = None) -> None:
        self._layout = layout
        self._netlink = netlink or Netlink()
        # One thread: netlink sockets belong to theirs, and operations on one port come one after the other.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="l2-bridge")

    async def prepare(self, spec: ContainerSpec, *, key: str) -> None:
        """The container's namespace with its address and MAC; its port held. An owned address stays owned.

        Raises:
            UsageError: address or MAC make no sense.
            ActionError: the namespace or the link could not be made.
        """
        _check(spec)
        await self._run(self._prepare, spec)

    async def detach(self, container: str) -> None:
        """Take the port off the bridge. Harmless when it is not on it, or not there."""
        await self._run(self._detach, container)

    async def attach(self, container: str) -> None:
        """Own the address: ordinary port, static forwarding entry, held frames let through, ownership announced.

        Raises:
            NotFoundError: the container has no namespace here.
            ActionError: there is no bridge.
        """
        await self._run(self._attach, container)

    async def attached(self, container: str) -> bool:
        """Whether this node owns the container's address."""
        return await self._run(self._netlink.port, port_name(self._layout, container)) is Port.OPEN

    async def remove(self, container: str) -> None:
        """Delete the container's namespace and port here; harmless when there is none."""
        await self._run(self._remove, container)

    async def shut(self) -> None:
        """Close the netlink socket and end the thread; the network stays as it is."""
        await self._run(self._netlink.close)
        self._worker.shutdown()

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        # Not cancelled half-way: what has begun is finished by the thread.
        return await asyncio.get_running_loop().run_in_executor(self._worker, work, *arguments)

    def _prepare(self, spec: ContainerSpec) -> None:
        port = port_name(self._layout, spec.name)
        note = PortNote(container=spec.name, address=spec.address, mac=spec.mac)
        stands = self._netlink.port(port)
        if stands is Port.ABSENT or self._note(spec.name) != note:
            if stands is not Port.ABSENT:
                self._remove(spec.name)  # half made, or of a former container of that name
            address = ipaddress.IPv4Interface(spec.address)
            self._netlink.make_port(port, namespace=self._namespace(spec.name), mac=spec.mac, address=address)
            self._hold(port)
            # Last: a port with a note is whole.
            self._netlink.write_note(port, encode(note))
        elif stands is not Port.OPEN:
            self._netlink.off(port)
            self._netlink.unqueue(port)  # a bucket that was widened
            self._hold(port)

    def _hold(self, port: str) -> None:
        if self._netlink.bucket(port, overhead_bytes=_OVERDRAFT, burst_bytes=_FRAME, limit_bytes=_LIMIT_BYTES):
            self._netlink.up(port)
            self._overdraw(port)
            self._netlink.join(port, self._layout.bridge, Port.HELD)
        # Else the kernel has no token buckets, and the port stays off.

    def _overdraw(self, port: str) -> None:
        # A link that was just switched on drops what it is given, until a thread of the kernel has heard of it.
        before = self._netlink.frames_sent(port)
        for _ in range(_PATIENCE):
            self._netlink.send(port, _filler(_FRAME))
            if self._netlink.frames_sent(port) > before:
                return
            time.sleep(0.001)
        raise ActionError(f"{port} sends nothing", hint="natwork testbed status")

    def _detach(self, container: str) -> None:
        port = port_name(self._layout, container)
        if self._netlink.index(port):
            self._netlink.off(port)

    def _attach(self, container: str) -> None:
        port, note = port_name(self._layout, container), self._note(container)
        if note is None:
            raise NotFoundError(f"{container} has no address on {self._layout.name}", hint="prepare it first")
        if not self._netlink.index(self._layout.bridge):
            raise ActionError(f"there is no bridge {self._layout.bridge}", hint="natwork testbed status")
        held = self._netlink.port(port) is Port.HELD
        if not held:
            self._netlink.unqueue(port)  # a bucket of an earlier time would hold for ever
        self._netlink.join(port, self._layout.bridge, Port.OPEN)
        self._netlink.own(port, note.mac)
        if held:
            # The change keeps the queue and fills the bucket; the next frame takes all that waits along.
            self._netlink.widen(port, _LIMIT_BYTES)
            self._netlink.send(port, _filler(60))
        # Through the bridge to all its ports; the bridge itself knows already.
        self._netlink.send(self._layout.bridge, gratuitous_arp(note.address, note.mac))

    def _note(self, container: str) -> PortNote | None:
        try:
            note: PortNote = decode(PortNote, self._netlink.read_note(port_name(self._layout, container)))
        except InputError:
            return None
        return note if note.container == container else None

    def _remove(self, container: str) -> None:
        port = port_name(self._layout, container)
        if self._netlink.index(port):
            self._netlink.delete(port)
        self._netlink.delete_namespace(self._namespace(container))

    def _namespace(self, container: str) -> Path:
        return NETNS / self._layout.container_netns(container)


def _filler(size: int) -> bytes:
    """A frame that no kernel listens to."""
    return b"\x02" + bytes(11) + _ETHERTYPE + bytes(size - 14)


def _check(spec: ContainerSpec) -> None:
    if not _MAC.fullmatch(spec.mac) or int(spec.mac[:2], 16) & 1:
        raise UsageError(f"{spec.name}: mac = {spec.mac!r} is no unicast MAC address", hint="such as 02:00:00:00:00:01")
    try:
        address = ipaddress.IPv4Interface(spec.address)
    except ValueError as error:
        raise UsageError(f"{spec.name}: address = {spec.address!r}: {error}", hint="such as 10.77.3.50/24") from error
    if address.network.prefixlen > 30:
        raise UsageError(f"{spec.name}: address = {spec.address!r} has no prefix length", hint="such as 10.77.3.50/24")
