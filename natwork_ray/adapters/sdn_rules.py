"""From a flow alert to the rules that a switch understands: one source, one destination, perhaps one port.

Pure, and shared by everyone who programs switches. Refused before anything is touched: what is no network, what would
cut the container off from everybody, what has expired, what has no destination, and what would fill a flow table.

    flow_rules(alert, now_s=time.time(), destinations=("10.0.0.5",))[0].source    # IPv4Network('203.0.113.0/24')
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from natwork_ray.domain.flow_alerts import MAX_PORTS, MAX_SOURCES, FlowAlert
from natwork_ray.domain.values import encode
from natwork_ray.errors import ActionError, PreconditionError

MAX_RULES = 512
MAX_LIFETIME_S = 65_535  # OpenFlow's hard timeout has 16 bits
_MIN_PREFIX = {4: 8, 6: 16}  # a wider source is half the world, and no suspect
_MARK = 0x4E52 << 48  # "NR": whose rules these are is seen in every dump

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class FlowRule:
    """Traffic from `source` to `destination`, all of it or what goes to one port."""

    source: Network
    destination: Address
    protocol: Literal["tcp", "udp"] | None = None
    port: int | None = None


def flow_rules(alert: FlowAlert, *, now_s: float, destinations: Sequence[str]) -> tuple[FlowRule, ...]:
    """The rules of an alert. `destinations` stand in where the alert names none.

    Raises:
        ActionError: no usable source, destination or port, too many of them, or a life that is over or too long.
        PreconditionError: nobody knows the container's addresses.
    """
    lifetime_s(alert, now_s=now_s)
    if not 1 <= len(alert.sources) <= MAX_SOURCES or len(alert.ports) > MAX_PORTS:
        raise ActionError(
            f"an alert with {len(alert.sources)} sources and {len(alert.ports)} ports",
            hint=f"1 to {MAX_SOURCES} sources, at most {MAX_PORTS} ports",
        )
    sources = dict.fromkeys(_network(suspect.source, alert.container) for suspect in alert.sources)
    named = alert.destinations or tuple(destinations)
    if not named:
        raise PreconditionError(
            f"nobody knows the addresses of {alert.container}, and a rule without one would hit its neighbours",
            hint="name them in the alert's destinations",
        )
    targets = dict.fromkeys(_address(text) for text in named)
    rules = tuple(
        FlowRule(source, target, protocol, port)
        for source in sources
        for target in targets
        if source.version == target.version
        for protocol, port in _ends(alert.ports)
    )
    if not 1 <= len(rules) <= MAX_RULES:
        raise ActionError(
            f"the alert {alert.key} would take {len(rules)} rules",
            hint=f"1 to {MAX_RULES}: sources and destinations of the same IP version, and fewer of them",
        )
    return rules


def lifetime_s(alert: FlowAlert, *, now_s: float) -> int:
    """Whole seconds that the alert has still to live, rounded up.

    Raises:
        ActionError: none, or more than a rule can have.
    """
    left = alert.expires_at_s - now_s
    if not (math.isfinite(left) and 0 < left <= MAX_LIFETIME_S):
        raise ActionError(
            f"the alert {alert.key} expires in {left:.0f} s", hint=f"a rule lives for up to {MAX_LIFETIME_S} s"
        )
    return math.ceil(left)


def cookie(key: str) -> int:
    """64 bits that name the rules of one key: the upper 16 say whose they are, the others come from the key."""
    return _MARK | int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big")


def digest(alert: FlowAlert) -> str:
    """Tells a repeated alert from another one under the same key."""
    return hashlib.sha256(encode(alert)).hexdigest()


def _network(text: str, container: str) -> Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ActionError(f"source {text!r} is no network: {error}", hint="for example 203.0.113.0/24") from error
    if network.prefixlen < _MIN_PREFIX[network.version]:
        raise ActionError(
            f"rules against {text} would cut {container} off from much of the world", hint="name the suspects only"
        )
    return network


def _address(text: str) -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise ActionError(f"destination {text!r} is no address: {error}", hint="for example 10.0.0.5") from error


def _ends(ports: Sequence[int]) -> tuple[tuple[Literal["tcp", "udp"] | None, int | None], ...]:
    if not ports:
        return ((None, None),)
    for port in ports:
        if not 1 <= port <= 65_535:
            raise ActionError(f"port {port} does not exist", hint="1 to 65535")
    protocols: tuple[Literal["tcp", "udp"], ...] = ("tcp", "udp")
    return tuple((protocol, port) for port in dict.fromkeys(ports) for protocol in protocols)
