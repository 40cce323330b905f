"""What the loop knows of the world: who runs where, what is free, and what was promised but not yet seen.

The orchestrator's word is final: each `observe` replaces the picture. Between two observations, instructions that were
issued but not yet reported are counted as if they had happened, so that two decisions of one turn cannot promise the
same core twice.
"""

from __future__ import annotations

from natwork_ray.domain.actions import Instruction, Migrate, Scale, SetLimits
from natwork_ray.domain.topology import Container, Node, Topology
from natwork_ray.errors import NotFoundError


class Fleet:
    """Topology with reservations."""

    def __init__(self, topology: Topology) -> None:
        self._original = {c.name: c for c in topology.containers}
        self._underway: dict[str, Instruction] = {}
        self.observe(topology)

    def observe(self, topology: Topology) -> None:
        """Replace the picture by what the orchestrator says."""
        self.topology = topology
        self._containers = {c.name: c for c in topology.containers}
        self._nodes = {n.name: n for n in topology.nodes}
        self._callers: dict[str, list[str]] = {}
        for container in topology.containers:
            self._original.setdefault(container.name, container)
            for callee in container.depends_on:
                self._callers.setdefault(callee, []).append(container.name)

    def begin(self, instruction: Instruction) -> None:
        """Count an issued instruction's resources as taken."""
        self._underway[instruction.key] = instruction

    def end(self, key: str) -> None:
        """The instruction was reported; from now on only what is observed counts."""
        self._underway.pop(key, None)

    def container(self, name: str) -> Container:
        """The container as observed.

        Raises:
            NotFoundError: no such container.
        """
        try:
            return self._containers[name]
        except KeyError:
            raise NotFoundError(f"there is no container {name!r}", hint="`natwork status` lists them") from None

    def original(self, name: str) -> Container:
        """The container as it was when the loop first saw it: what `relax` returns to."""
        return self._original[name]

    def node(self, name: str) -> Node:
        """The node of that name.

        Raises:
            NotFoundError: no such node.
        """
        try:
            return self._nodes[name]
        except KeyError:
            raise NotFoundError(f"there is no node {name!r}", hint="`natwork status` lists them") from None

    def nodes(self) -> tuple[Node, ...]:
        """All nodes in service."""
        return self.topology.nodes

    def busy(self, name: str) -> bool:
        """Whether an instruction for this container is under way."""
        return any(i.container == name for i in self._underway.values())

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Whom the container calls, and who calls it."""
        return (*self._containers[name].depends_on, *self._callers.get(name, ()))

    def free_cores(self, node: str) -> float:
        """CPU cores of the node that no limit claims."""
        used = sum(r * limit for c in self._containers.values() for n, r, limit, _ in self._claims(c) if n == node)
        return self.node(node).cpu_cores - used

    def free_memory_bytes(self, node: str) -> float:
        """Memory of the node that no limit claims."""
        used = sum(r * memory for c in self._containers.values() for n, r, _, memory in self._claims(c) if n == node)
        return self.node(node).memory_bytes - used

    def _claims(self, container: Container) -> list[tuple[str, int, float, float]]:
        """(node, replicas, cores, memory) that a container claims, the largest that is observed or under way."""
        replicas, cores, memory = container.replicas, container.cpu_limit_cores, container.memory_limit_bytes
        targets = []
        for instruction in self._underway.values():
            if instruction.container != container.name:
                continue
            if isinstance(instruction, Scale):
                replicas = max(replicas, instruction.replicas)
            elif isinstance(instruction, SetLimits):
                cores = max(cores, instruction.cpu_limit_cores or 0.0)
                memory = max(memory, instruction.memory_limit_bytes or 0.0)
            elif isinstance(instruction, Migrate):
                targets.append(instruction.target)
        return [(node, replicas, cores, memory) for node in (container.node, *targets)]
