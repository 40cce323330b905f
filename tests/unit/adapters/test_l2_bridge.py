"""Who owns an address, what is held, and what the bridge is told; on a kernel that is a table."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters import l2_bridge
from natwork_ray.adapters.l2_bridge import L2Bridge, gratuitous_arp, port_name
from natwork_ray.adapters.netlink import Netlink, Port
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.domain.runtime import ContainerSpec
from natwork_ray.errors import ActionError, NotFoundError, UsageError

SPEC = ContainerSpec(name="web", image="i", address="10.77.3.50/24", mac="02:00:00:00:00:01", command=("sleep",))


def _layout(folder: Path, name: str = "node-0") -> NodeLayout:
    return NodeLayout(
        testbed="nw1234", name=name, folder=folder, images=folder / "images", netns=f"nw1234-{name}",
        address="10.77.3.2", ssh_port=2222, bridge="nw1234br",
    )  # fmt: skip


class Kernel(Netlink):
    """Links, where they stand, and what was said to them."""

    def __init__(self) -> None:
        self.links: dict[str, Port] = {"nw1234br": Port.OPEN}
        self.notes: dict[str, bytes] = {}
        self.owners: dict[str, str] = {}
        self.said: list[str] = []
        self.frames: dict[str, list[bytes]] = {}
        self.deaf = 2  # frames that a link drops after it was switched on
        self.buckets = True
        self.refusing = False

    def index(self, link: str) -> int:
        return list(self.links).index(link) + 1 if link in self.links else 0

    def make_port(self, link: str, *, namespace: Path, mac: str, address: ipaddress.IPv4Interface) -> None:
        assert (mac, str(address)) == (SPEC.mac, SPEC.address)
        namespace.touch()
        self.links[link] = Port.OFF
        if self.refusing:
            raise ActionError("eth0: the kernel refuses: no", hint="natwork doctor")

    def delete_namespace(self, namespace: Path) -> None:
        namespace.unlink(missing_ok=True)

    def delete(self, link: str) -> None:
        del self.links[link]
        self.notes.pop(link, None)

    def off(self, link: str) -> None:
        self.links[link] = Port.OFF
        self.owners = {mac: port for mac, port in self.owners.items() if port != link}

    def up(self, link: str) -> None:
        self.said.append("up")

    def join(self, link: str, bridge: str, port: Port) -> None:
        assert bridge == "nw1234br"
        self.links[link] = port

    def own(self, link: str, mac: str) -> None:
        self.owners[mac] = link

    def port(self, link: str) -> Port:
        return self.links.get(link, Port.ABSENT)

    def write_note(self, link: str, note: bytes) -> None:
        assert len(note) <= 255
        self.notes[link] = note

    def read_note(self, link: str) -> bytes:
        return self.notes.get(link, b"")

    def bucket(self, link: str, *, overhead_bytes: int, burst_bytes: int, limit_bytes: int) -> bool:
        assert (overhead_bytes, burst_bytes) == (60_000, 1514)
        assert limit_bytes == 4 * 2**20
        self.said.append("bucket")
        return self.buckets

    def widen(self, link: str, limit_bytes: int) -> None:
        self.said.append("widen")

    def unqueue(self, link: str) -> None:
        self.said.append("unqueue")

    def frames_sent(self, link: str) -> int:
        return max(len(self.frames.get(link, [])) - self.deaf, 0)

    def send(self, link: str, frame: bytes) -> None:
        self.frames.setdefault(link, []).append(frame)

    def close(self) -> None:
        self.said.append("close")


@pytest.fixture(autouse=True)
def _namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(l2_bridge, "NETNS", tmp_path)


def _play(tmp_path: Path, act: Callable[[L2Bridge, Kernel], Coroutine[Any, Any, None]]) -> None:
    async def scenario() -> None:
        kernel = Kernel()
        bridge = L2Bridge(_layout(tmp_path), netlink=kernel)
        try:
            await act(bridge, kernel)
        finally:
            await bridge.shut()
        assert kernel.said[-1] == "close"

    asyncio.run(scenario())


PORT = port_name(_layout(Path("/x")), "web")


def test_a_prepared_port_is_held_and_overdrawn_before_it_joins(tmp_path: Path) -> None:
    async def act(bridge: L2Bridge, kernel: Kernel) -> None:
        await bridge.prepare(SPEC, key="k")
        assert kernel.links[PORT] is Port.HELD
        assert not await bridge.attached("web")
        assert len(kernel.frames[PORT]) == kernel.deaf + 1  # until one of them left
        assert {len(frame) for frame in kernel.frames[PORT]} == {1514}
        assert kernel.said == ["bucket", "up"]  # it is new: nothing to be taken off first

    _play(tmp_path, act)


def test_attach_owns_lets_through_and_announces(tmp_path: Path) -> None:
    async def act(bridge: L2Bridge, kernel: Kernel) -> None:
        await bridge.prepare(SPEC, key="k")
        await bridge.attach("web")
        assert await bridge.attached("web")
        assert kernel.owners == {SPEC.mac: PORT}
        assert kernel.said[-1] == "widen"
        assert kernel.frames["nw1234br"] == [gratuitous_arp(SPEC.address, SPEC.mac)]
        await bridge.prepare(SPEC, key="k")  # an owner stays one
        assert await bridge.attached("web")
        await bridge.detach("web")
        assert not await bridge.attached("web")
        assert kernel.owners == {}
        await bridge.attach("web")
        # Its queue of an earlier time is gone: it would hold for ever.
        assert kernel.said[-1] == "unqueue"
        await bridge.detach("web")
        await bridge.prepare(SPEC, key="k")
        assert kernel.said[-3:] == ["unqueue", "bucket", "up"]
        assert kernel.links[PORT] is Port.HELD

    _play(tmp_path, act)


def test_without_a_token_bucket_the_port_joins_at_attach(tmp_path: Path) -> None:
    async def act(bridge: L2Bridge, kernel: Kernel) -> None:
        kernel.buckets = False
        await bridge.prepare(SPEC, key="k")
        assert kernel.links[PORT] is Port.OFF
        await bridge.attach("web")
        assert await bridge.attached("web")

    _play(tmp_path, act)


def test_a_half_made_port_is_made_again(tmp_path: Path) -> None:
    async def act(bridge: L2Bridge, kernel: Kernel) -> None:
        kernel.refusing = True
        with pytest.raises(ActionError, match="the kernel refuses: no"):
            await bridge.prepare(SPEC, key="k")
        with pytest.raises(NotFoundError, match="web has no address on node-0"):
            await bridge.attach("web")
        kernel.refusing = False
        await bridge.prepare(SPEC, key="k")
        await bridge.attach("web")
        assert await bridge.attached("web")

    _play(tmp_path, act)


def test_a_strange_note_is_not_believed(tmp_path: Path) -> None:
    async def act(bridge: L2Bridge, kernel: Kernel) -> None:
        await bridge.prepare(SPEC, key="k")
        kernel.notes[PORT] = kernel.notes[PORT].replace(b'"web"', b'"db"')
        with pytest.raises(NotFoundError):
            await bridge.attach("web")

    _play(tmp_path, act)


def test_remove_is_harmless_twice(tmp_path: Path) -> None:
    async def act(bridge: L2Bridge, kernel: Kernel) -> None:
        await bridge.prepare(SPEC, key="k")
        for _ in range(2):
            await bridge.remove("web")
            assert PORT not in kernel.links
            assert not (tmp_path / "nw1234-node-0-web").exists()
        await bridge.detach("web")
        assert not await bridge.attached("web")

    _play(tmp_path, act)


def test_a_missing_bridge_and_a_silent_link_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(l2_bridge, "_PATIENCE", 2)

    async def act(bridge: L2Bridge, kernel: Kernel) -> None:
        kernel.deaf = 99
        with pytest.raises(ActionError, match="sends nothing"):
            await bridge.prepare(SPEC, key="k")
        kernel.deaf = 0
        await bridge.prepare(SPEC, key="k")
        del kernel.links["nw1234br"]
        with pytest.raises(ActionError, match="there is no bridge nw1234br"):
            await bridge.attach("web")

    _play(tmp_path, act)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("mac", "03:00:00:00:00:01"),
        ("mac", "02-00"),
        ("mac", "02:00:00:00:00:0G"),
        ("address", "10.0.0.1"),
        ("address", "x/24"),
        ("address", "10.0.0.1/33"),
    ],
)
def test_what_is_no_address_is_refused(tmp_path: Path, field: str, text: str) -> None:
    async def act(bridge: L2Bridge, kernel: Kernel) -> None:
        with pytest.raises(UsageError, match=field):
            await bridge.prepare(ContainerSpec(**{**vars(SPEC), field: text}), key="k")
        assert list(kernel.links) == ["nw1234br"]

    _play(tmp_path, act)


def test_the_announcement_is_an_arp_request_of_the_owner_for_itself() -> None:
    """RFC 5227, section 3, written out by hand."""
    wanted = (
        "ffffffffffff" "020000000001" "0806"  # to all, from the owner, ARP
        "0001" "0800" "06" "04" "0001"  # Ethernet, IPv4, lengths, request
        "020000000001" "0a4d0332"  # sender
        "000000000000" "0a4d0332"  # target
    )  # fmt: skip
    assert gratuitous_arp("10.77.3.50/24", "02:00:00:00:00:01").hex() == wanted


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=60), st.integers(0, 15))
def test_names_of_ports_fit_and_differ_by_node(container: str, node: int) -> None:
    name = port_name(_layout(Path("/x"), f"node-{node}"), container)
    assert len(name) <= 15
    assert name.startswith("nw1234")
    assert name != port_name(_layout(Path("/x"), f"node-{node + 1}"), container)
