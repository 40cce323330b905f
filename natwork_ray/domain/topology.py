"""Nodes, links, slices, network services and the containers (CNFs) that make them."""

from __future__ import annotations

from enum import StrEnum

from natwork_ray.domain.values import value


class NodeRole(StrEnum):
    """Where in the edge-to-cloud continuum a node stands."""

    EDGE = "edge"
    CORE = "core"
    CLOUD = "cloud"


@value
class Node:
    """A machine that runs containers."""

    name: str
    role: NodeRole
    cpu_cores: float
    memory_bytes: float


@value
class Link:
    """A connection between two nodes; symmetric."""

    a: str
    b: str
    bandwidth_bytes_per_s: float
    rtt_s: float


@value
class Slice:
    """A network slice and the share of traffic it may see."""

    name: str
    description: str


@value
class Container:
    """One CNF as the orchestrator sees it: a service's replicas seen as one unit of placement.

    `depends_on` names the containers it calls; a slow one slows its callers.
    """

    name: str
    service: str
    network_service: str
    slice: str
    node: str
    replicas: int
    cpu_limit_cores: float
    memory_limit_bytes: float
    depends_on: tuple[str, ...] = ()


@value
class Topology:
    """What exists and where it runs at one moment."""

    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    slices: tuple[Slice, ...]
    containers: tuple[Container, ...]

    def container(self, name: str) -> Container | None:
        """The container of that name, or None."""
        return next((c for c in self.containers if c.name == name), None)

    def node(self, name: str) -> Node | None:
        """The node of that name, or None."""
        return next((n for n in self.nodes if n.name == name), None)

    def link(self, a: str, b: str) -> Link | None:
        """The link between two nodes, whichever way round, or None."""
        return next((k for k in self.links if {k.a, k.b} == {a, b}), None)
