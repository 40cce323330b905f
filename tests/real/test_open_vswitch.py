"""A real Open vSwitch with real traffic: an alert stops the suspects and nobody else, and ends when it says.

Every test has its own addresses; the network namespaces are its own too.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters.network_namespace import inside
from natwork_ray.adapters.open_vswitch import OpenVSwitch, SwitchSettings
from natwork_ray.adapters.subprocesses import SubprocessRunner
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.flow_alerts import FlowAdvice, FlowAlert, SuspectSource
from natwork_ray.errors import ActionError, ConflictError, PreconditionError


def _ip(*words: str) -> None:
    done = subprocess.run(["/usr/sbin/ip", *words], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, (words, done.stderr)


WEB, OTHER = 7001, 7002
SO_NO_CHECK = 11  # a veth leaves checksums to hardware that a switch in userspace does not have


def _udp(space: str, address: str = "", port: int = 0) -> socket.socket:
    def work() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        made.bind((address, port))
        return made

    return inside(Path("/run/netns") / space, work)


@dataclass(frozen=True)
class Wire:
    """Three hosts on the switch: a suspect, a user and the server."""

    switch: Any
    tag: str
    net: str
    clients: dict[int, socket.socket] = field(default_factory=dict)
    servers: dict[int, socket.socket] = field(default_factory=dict)

    def host(self, number: int) -> str:
        return f"{self.net}.{number}"

    def namespace(self, number: int) -> str:
        return f"nw-{self.tag}-{number}"

    def replies(self, number: int, *, count: int = 1, port: int = WEB) -> int:
        """How many of `count` datagrams, one each 20 ms, from a host reach the server's port."""
        server = self.servers[port]
        server.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:  # late ones of an earlier count
                server.recv(64)
        for _ in range(count):
            self.clients[number].sendto(b"natwork", (self.host(3), port))
            time.sleep(0.02)
        server.settimeout(0.3)
        arrived = 0
        with contextlib.suppress(TimeoutError):
            while arrived < count:
                server.recv(64)
                arrived += 1
        return arrived

    def reaches(self, number: int, port: int = WEB) -> bool:
        return self.replies(number, port=port) == 1

    def comes_through(self, number: int, port: int = WEB) -> bool:
        """As `reaches`, once the switch has noticed: its caches follow the rules after some milliseconds."""
        return any(self.reaches(number, port) for _ in range(10))

    def is_stopped(self, number: int, port: int = WEB) -> bool:
        """The opposite of `comes_through`."""
        return any(not self.reaches(number, port) for _ in range(10))


@pytest.fixture(scope="module")
def wire(open_vswitch: Any) -> Iterator[Wire]:
    wire = Wire(open_vswitch, secrets.token_hex(3), f"10.{secrets.randbelow(200) + 20}.7")
    made: list[int] = []
    try:
        for n in (1, 2, 3, 4):  # 4 is the mirror port's far end
            port, space = f"nw{wire.tag}{n}", wire.namespace(n)
            _ip("netns", "add", space)
            made.append(n)
            _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("-n", space, "addr", "add", f"{wire.host(n)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("link", "set", port, "up")
            open_vswitch.vsctl("add-port", open_vswitch.bridge, port)
        wire.clients.update({n: _udp(wire.namespace(n), wire.host(n)) for n in (1, 2)})
        wire.servers.update({port: _udp(wire.namespace(3), wire.host(3), port) for port in (WEB, OTHER)})
        deadline = time.monotonic() + 10
        while not (wire.reaches(1) and wire.reaches(2)):
            assert time.monotonic() < deadline, "the switch does not forward"
        yield wire
    finally:
        for opened in (*wire.clients.values(), *wire.servers.values()):
            opened.close()
        for n in made:
            open_vswitch.vsctl("--if-exists", "del-port", open_vswitch.bridge, f"nw{wire.tag}{n}")
            _ip("netns", "delete", wire.namespace(n))


def _controller(switch: Any, **more: Any) -> OpenVSwitch:
    settings = SwitchSettings(database=switch.database, management=switch.management, **more)
    return OpenVSwitch(switch.bridge, runner=SubprocessRunner(), now_s=time.time, settings=settings)


def _alert(wire: Wire, *, advice: FlowAdvice = FlowAdvice.DROP, life_s: float = 60.0, **more: Any) -> FlowAlert:
    suspect = SuspectSource(source=f"{wire.host(1)}/32", request_share=0.8, failed_share=0.2)
    return FlowAlert(
        key=f"d-{secrets.token_hex(4)}/0", container="web", at_s=time.time(), kind=AnomalyKind.TRAFFIC_SPIKE,
        likelihood=0.97, sources=(suspect,), advice=advice, expires_at_s=time.time() + life_s,
        destinations=(wire.host(3),), **more,
    )  # fmt: skip


def test_a_dropped_source_stops_and_the_others_pass_until_it_is_withdrawn(wire: Wire) -> None:
    controller, alert = _controller(wire.switch), _alert(wire)
    outcome = asyncio.run(controller.alert(alert))
    assert outcome.done
    assert wire.is_stopped(1)
    assert wire.comes_through(2)
    # Another process, which has no memory of the first, gives the first outcome and adds nothing.
    again = _controller(wire.switch)
    assert asyncio.run(again.alert(alert)) == outcome
    assert asyncio.run(again.installed(alert.key)) == 1
    asyncio.run(again.withdraw(alert.key))
    assert wire.comes_through(1)
    assert asyncio.run(again.installed(alert.key)) == 0
    assert asyncio.run(controller.alert(alert)) == outcome  # a late repetition does not bring the rules back
    assert wire.comes_through(1)


def test_the_switch_lets_a_source_through_again_when_the_alert_expires(wire: Wire) -> None:
    controller, alert = _controller(wire.switch), _alert(wire, life_s=2.0)
    asyncio.run(controller.alert(alert))
    assert wire.is_stopped(1)
    deadline = time.monotonic() + 10
    while not wire.reaches(1):
        assert time.monotonic() < deadline, "the rule outlived its alert"
    assert time.time() >= alert.expires_at_s - 0.5


def test_one_alert_is_withdrawn_and_the_other_stays(wire: Wire) -> None:
    controller = _controller(wire.switch)
    everything, web = _alert(wire), _alert(wire, ports=(WEB,))
    asyncio.run(controller.alert(web))
    assert wire.is_stopped(1, WEB)
    assert wire.comes_through(1, OTHER)
    asyncio.run(controller.alert(everything))
    assert wire.is_stopped(1, OTHER)
    assert asyncio.run(controller.installed(web.key)) == 2  # TCP and UDP
    asyncio.run(controller.withdraw(web.key))
    assert wire.is_stopped(1, WEB)
    asyncio.run(controller.withdraw(everything.key))
    assert wire.comes_through(1)


def test_a_limited_source_is_slowed_down(wire: Wire) -> None:
    controller, alert = _controller(wire.switch, rate_packets_per_s=5), _alert(wire, advice=FlowAdvice.RATE_LIMIT)
    asyncio.run(controller.alert(alert))
    slow, free = wire.replies(1, count=60), wire.replies(2, count=60)
    asyncio.run(controller.withdraw(alert.key))
    assert free == 60
    assert slow <= 30
    assert "meter=" not in wire.switch.ofctl("dump-meters")


def test_inspected_packets_arrive_at_the_mirror_too(wire: Wire) -> None:
    mirror = f"nw{wire.tag}4"
    controller, alert = _controller(wire.switch, mirror_port=mirror), _alert(wire, advice=FlowAdvice.INSPECT)
    asyncio.run(controller.alert(alert))
    assert wire.replies(1, count=20) == 20
    said = wire.switch.ofctl("dump-ports", mirror)
    asyncio.run(controller.withdraw(alert.key))
    sent = int(said.partition("tx pkts=")[2].partition(",")[0])
    assert sent >= 20, said


def test_what_the_switch_refuses_leaves_nothing(wire: Wire) -> None:
    controller, alert = _controller(wire.switch, mirror_port="no-such-port"), _alert(wire, advice=FlowAdvice.INSPECT)
    with pytest.raises(ActionError):
        asyncio.run(controller.alert(alert))
    assert asyncio.run(controller.installed(alert.key)) == 0
    drop = _alert(wire)
    asyncio.run(controller.alert(drop))
    other = FlowAlert(**{**vars(drop), "reason": "another"})
    with pytest.raises(ConflictError):
        asyncio.run(controller.alert(other))
    asyncio.run(controller.withdraw(drop.key))


def test_a_bridge_that_is_not_there_is_a_precondition(open_vswitch: Any, wire: Wire) -> None:
    absent = OpenVSwitch(
        "nobridge", runner=SubprocessRunner(), now_s=time.time, settings=SwitchSettings(database=open_vswitch.database)
    )
    with pytest.raises(PreconditionError):
        asyncio.run(absent.alert(_alert(wire)))
