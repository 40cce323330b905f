"""The network of a testbed: one Linux bridge, a namespace per node, an address range that nothing else uses.

The bridge has an address in the root namespace, so that clients reach containers without a namespace of their own. It
does not speak the spanning tree protocol and forwards at once; its MAC address is set, since a bridge otherwise changes
it with its ports. Links can be shaped by a token bucket on each node's end (`tc tbf`): what a node sends is held to the
given rate, which is what a migration from it meets.

Left out: delay and loss (they need netem, which not every kernel has), IPv6.

    >>> free_network(["default via 192.0.2.1", "10.0.0.0/8 dev eth0"], random.Random(1)) is None
    True
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Sequence
from pathlib import Path

from natwork_ray.adapters.machine import Machine
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.errors import ActionError, PreconditionError

NETNS = Path("/run/netns")
# Containers' addresses begin here; below it are the bridge and the nodes.
FIRST_CONTAINER = 50
_RANGE = ipaddress.IPv4Network("10.64.0.0/10")
_TRIES = 2000


def checked(machine: Machine, argv: Sequence[str]) -> str:
    """Run a program that has to succeed.

    Raises:
        ActionError: it did not; the message holds its last words.
    """
    answer = machine.run(argv)
    if answer.status != 0:
        said = answer.text.splitlines()[-1] if answer.text else f"exit status {answer.status}"
        name = " ".join(Path(part).name if i == 0 else part for i, part in enumerate(argv))
        raise ActionError(f"{name}: {said}", hint="natwork doctor says what a testbed needs")
    return answer.text


def free_network(routes: Sequence[str], rng: random.Random) -> ipaddress.IPv4Network | None:
    """A random /24 that overlaps no route (lines of `ip -4 route show table all`); None when all are taken."""
    taken = []
    for line in routes:
        words = line.split()
        # `local 10.0.0.1 dev lo`, `broadcast ...`: the type stands before the destination where it is not unicast.
        for word in words[:2]:
            try:
                taken.append(ipaddress.IPv4Network(word))
                break
            except ValueError:
                continue
    blocks = _RANGE.num_addresses // 256
    for _ in range(_TRIES):
        network = ipaddress.IPv4Network((int(_RANGE.network_address) + 256 * rng.randrange(blocks), 24))
        if not any(network.overlaps(other) for other in taken):
            return network
    return None


def choose_network(machine: Machine, ip: Path, rng: random.Random) -> ipaddress.IPv4Network:
    """A free range of this machine.

    Raises:
        PreconditionError: there is none.
    """
    network = free_network(checked(machine, [str(ip), "-4", "route", "show", "table", "all"]).splitlines(), rng)
    if network is None:
        raise PreconditionError(
            f"no free /24 in {_RANGE}: the machine has routes to all of it", hint="a testbed needs 256 addresses"
        )
    return network


def host_link(layout: NodeLayout) -> str:
    """Name of the node's link in the root namespace."""
    return f"{layout.testbed}n{layout.name.rpartition('-')[2]}"


def make_bridge(machine: Machine, ip: Path, record: TestbedRecord, mac: str) -> None:
    """The bridge, up, with its address in the root namespace."""
    prefix = record.network.partition("/")[2]
    make = ["link", "add", record.bridge, "address", mac, "type", "bridge", "stp_state", "0", "forward_delay", "0",
            "mcast_snooping", "0"]  # fmt: skip
    for words in (
        make,
        ["link", "set", record.bridge, "addrgenmode", "none"],
        ["address", "add", f"{record.gateway}/{prefix}", "dev", record.bridge],
        ["link", "set", record.bridge, "up"],
    ):
        checked(machine, [str(ip), *words])


def make_node(machine: Machine, ip: Path, record: TestbedRecord, layout: NodeLayout) -> None:
    """The node's namespace and its link to the bridge, shaped where the record says so.

    Raises:
        PreconditionError: shaping was asked for and there is no `tc`.
    """
    prefix = record.network.partition("/")[2]
    port, inside = host_link(layout), [str(ip), "-n", layout.netns]
    for argv in (
        [str(ip), "netns", "add", layout.netns],
        [str(ip), "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", layout.netns],
        [str(ip), "link", "set", port, "addrgenmode", "none"],
        [*inside, "link", "set", "eth0", "addrgenmode", "none"],
        [*inside, "link", "set", "lo", "up"],
        [*inside, "address", "add", f"{layout.address}/{prefix}", "dev", "eth0"],
        [*inside, "link", "set", "eth0", "up"],
        [*inside, "route", "add", "default", "via", record.gateway],
        [str(ip), "link", "set", port, "master", record.bridge, "up"],
    ):
        checked(machine, argv)
    if record.bandwidth_bytes_per_s:
        shape(machine, layout, record.bandwidth_bytes_per_s)


def shape(machine: Machine, layout: NodeLayout, bandwidth_bytes_per_s: float) -> None:
    """Hold what the node sends to a rate, with a token bucket. A rate of 0 takes the bucket away.

    Raises:
        PreconditionError: there is no `tc`.
        ActionError: the kernel has no token bucket.
    """
    tc = machine.which("tc")
    if tc is None:
        raise PreconditionError("links cannot be shaped without tc", hint="install iproute2, or leave --bandwidth out")
    if bandwidth_bytes_per_s <= 0:
        machine.run([str(tc), "-n", layout.netns, "qdisc", "delete", "dev", "eth0", "root"])
        return
    rate = int(bandwidth_bytes_per_s)
    # The bucket has to hold what passes between two ticks of the clock, and one large segment.
    burst = max(rate // 100, 131_072)
    bucket = ["root", "tbf", "rate", f"{rate}bps", "burst", str(burst), "latency", "50ms"]
    checked(machine, [str(tc), "-n", layout.netns, "qdisc", "replace", "dev", "eth0", *bucket])
