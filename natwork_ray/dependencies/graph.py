"""Who calls whom: the dependency graph between microservices (D3.3 section 6.3, "interactions between microservices").

A graph comes from what is configured (`from_topology`), from measured flows (`from_flows`), or, where neither is there,
from telemetry of normal operation (`natwork_ray.dependencies.inference`). Each call says where it comes from, and
graphs can be joined; what is configured is believed over what was measured, and that over what was inferred.

An edge points from caller to callee: demand travels along it, trouble travels against it. An inferred edge is a
correlation without a direction, so it is kept both ways at half the weight.

    >>> graph = from_topology(topology)
    >>> graph.callees("gateway")
    {'orders': 1.0}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from natwork_ray.domain.telemetry import FlowShare
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Origin(StrEnum):
    """How a call is known, the most reliable first."""

    CONFIGURED = "configured"
    FLOWS = "flows"
    INFERRED = "inferred"


_RELIABILITY = {Origin.CONFIGURED: 0, Origin.FLOWS: 1, Origin.INFERRED: 2}


@value
class Call:
    """One edge. `weight` (0 to 1) is how much of the callee's trouble the caller may inherit."""

    caller: str
    callee: str
    weight: float = 1.0
    origin: Origin = Origin.CONFIGURED

    def __post_init__(self) -> None:
        if not 0.0 < self.weight <= 1.0 or self.caller == self.callee:
            raise InputError(
                f"call {self.caller} -> {self.callee} of weight {self.weight}",
                hint="a container calls another one, with a weight above 0 and up to 1",
            )


@value
class DependencyGraph:
    """Containers and the calls between them; at most one call for each ordered pair."""

    containers: tuple[str, ...]
    calls: tuple[Call, ...] = ()

    def __post_init__(self) -> None:
        known = set(self.containers)
        pairs = [(c.caller, c.callee) for c in self.calls]
        strangers = sorted({name for pair in pairs for name in pair} - known)
        if len(known) != len(self.containers) or len(set(pairs)) != len(pairs) or strangers:
            raise InputError(
                f"dependency graph of {len(self.containers)} containers: names or calls twice, strangers: {strangers}",
                hint="name each container once, and each call once, between containers that are named",
            )

    def callees(self, name: str) -> dict[str, float]:
        """Whom `name` calls, with the weights."""
        return {c.callee: c.weight for c in self.calls if c.caller == name}

    def callers(self, name: str) -> dict[str, float]:
        """Who calls `name`, with the weights."""
        return {c.caller: c.weight for c in self.calls if c.callee == name}

    def matrix(self, containers: Sequence[str]) -> NDArray[np.float64]:
        """(N, N) weights, row calls column, for these containers; calls of others are left out."""
        position = {name: i for i, name in enumerate(containers)}
        weights = np.zeros((len(containers), len(containers)))
        for call in self.calls:
            if call.caller in position and call.callee in position:
                weights[position[call.caller], position[call.callee]] = call.weight
        return weights

    def joined(self, other: DependencyGraph) -> DependencyGraph:
        """Both graphs in one; where both know a call, the more reliable origin is kept."""
        calls = {(c.caller, c.callee): c for c in sorted(other.calls, key=_trust)}
        for call in self.calls:
            there = calls.get((call.caller, call.callee))
            if there is None or _trust(call) <= _trust(there):
                calls[call.caller, call.callee] = call
        names = dict.fromkeys((*self.containers, *other.containers))
        return DependencyGraph(containers=tuple(names), calls=tuple(calls.values()))


def _trust(call: Call) -> int:
    return _RELIABILITY[call.origin]


def from_topology(topology: Topology) -> DependencyGraph:
    """The calls that the orchestrator knows of (`Container.depends_on`); targets that do not exist are left out."""
    names = {c.name for c in topology.containers}
    calls = tuple(
        Call(caller=c.name, callee=callee)
        for c in topology.containers
        for callee in dict.fromkeys(c.depends_on)
        if callee in names and callee != c.name
    )
    return DependencyGraph(containers=tuple(c.name for c in topology.containers), calls=calls)


def from_calls(containers: Sequence[str], calls: Mapping[str, Sequence[str]]) -> DependencyGraph:
    """From a table of caller to callees, as an application publishes it; containers that are not there are left out."""
    there = set(containers)
    return DependencyGraph(
        containers=tuple(containers),
        calls=tuple(
            Call(caller=caller, callee=callee)
            for caller, callees in calls.items()
            for callee in callees
            if caller in there and callee in there
        ),
    )


def from_flows(
    flows: Mapping[str, Sequence[FlowShare]], *, addresses: Mapping[str, str], least_share: float = 0.01
) -> DependencyGraph:
    """From who sends requests to whom.

    Args:
        flows: per container, its traffic by source, as `TelemetrySource.flows` gives it.
        addresses: source (as flows name it) -> container that owns it. Other sources are users, not containers.
        least_share: a source below this share of a container's requests is a health check or noise, no dependency.

    Raises:
        InputError: `least_share` not between 0 and 1.
    """
    if not 0.0 <= least_share < 1.0:
        raise InputError(f"least_share = {least_share}", hint="a fraction of a container's requests, 0 to below 1")
    shares: dict[tuple[str, str], float] = {}
    for callee, sources in flows.items():
        for flow in sources:
            caller = addresses.get(flow.source)
            if caller is not None and caller != callee:
                shares[caller, callee] = shares.get((caller, callee), 0.0) + flow.request_share
    names = dict.fromkeys((*flows, *(caller for caller, _ in shares)))
    # The weight says how sure the call is, not how busy: a callee that serves many callers slows each of them.
    calls = tuple(
        Call(caller=a, callee=b, origin=Origin.FLOWS) for (a, b), share in shares.items() if share > least_share
    )
    return DependencyGraph(containers=tuple(names), calls=calls)


# Call graphs as the benchmark applications document them; their recordings do not hold one.
ONLINE_BOUTIQUE: Mapping[str, tuple[str, ...]] = {
    "frontend": (
        "adservice", "cartservice", "checkoutservice", "currencyservice", "productcatalogservice",
        "recommendationservice", "shippingservice",
    ),
    "checkoutservice": (
        "cartservice", "currencyservice", "emailservice", "paymentservice", "productcatalogservice", "shippingservice",
    ),
    "recommendationservice": ("productcatalogservice",),
}  # fmt: skip
SOCK_SHOP: Mapping[str, tuple[str, ...]] = {
    "front-end": ("carts", "catalogue", "orders", "user"),
    "carts": ("carts-db",),
    "catalogue": ("catalogue-db",),
    "orders": ("carts", "orders-db", "payment", "shipping", "user"),
    "queue-master": ("rabbitmq",),
    "shipping": ("rabbitmq",),
    "user": ("user-db",),
}
