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
        self._promised: dict[str, dict[str, Instruction]] = {}
        self.observe(topology)

    def observe(self, topology: Topology) -> None:
        """Replace the picture by what the orchestrator says."""
        self.topology = topology
        self._containers = {c.name: c for c in topology.containers}
        self._nodes = {n.name: n for n in topology.nodes}
        self._callers: dict[str, list[str]] = {}
        self._on_node: dict[str, list[Container]] = {}
        for container in topology.containers:
            self._on_node.setdefault(container.node, []).append(container)
            self._original.setdefault(container.name, container)
            for callee in container.depends_on:
                self._callers.setdefault(callee, []).append(container.name)

    def begin(self, instruction: Instruction) -> None:
        """Count an issued instruction's resources as taken."""
        self._underway[instruction.key] = instruction
        self._promised.setdefault(instruction.container, {})[instruction.key] = instruction

    def end(self, key: str) -> None:
        """The instruction was reported; from now on only what is observed counts."""
        instruction = self._underway.pop(key, None)
        if instruction is not None:
            promised = self._promised[instruction.container]
            del promised[key]
            if not promised:
                del self._promised[instruction.container]

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
        return name in self._promised

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Whom the container calls, and who calls it, as far as they are in this fleet."""
        callees = (c for c in self._containers[name].depends_on if c in self._containers)
        return (*callees, *self._callers.get(name, ()))

    def calls(self, caller: str, callee: str) -> bool:
        """Whether `caller` reaches `callee`, itself or through others that it calls."""
        seen: set[str] = set()
        waiting = [caller]
        while waiting:
            container = self._containers.get(waiting.pop())
            for name in container.depends_on if container else ():
                if name == callee:
                    return True
                if name not in seen:
                    seen.add(name)
                    waiting.append(name)
        return False

    def free_cores(self, node: str) -> float:
        """CPU cores of the node that no limit claims; none on a node that is not in service."""
        there = self._nodes.get(node)
        return there.cpu_cores - sum(r * cores for r, cores, _ in self._claims_on(node)) if there else 0.0

    def free_memory_bytes(self, node: str) -> float:
        """Memory of the node that no limit claims; none on a node that is not in service."""
        there = self._nodes.get(node)
        return there.memory_bytes - sum(r * memory for r, _, memory in self._claims_on(node)) if there else 0.0

    def _claims_on(self, node: str) -> list[tuple[int, float, float]]:
        """Claims of everything that is on the node, or on its way there."""
        claims = [self._claim(c) for c in self._on_node.get(node, ())]
        arriving = {i.container for i in self._underway.values() if isinstance(i, Migrate) and i.target == node}
        for name in sorted(arriving):
            container = self._containers.get(name)
            if container is not None and container.node != node:
                claims.append(self._claim(container))
        return claims

    def _claim(self, container: Container) -> tuple[int, float, float]:
        """(replicas, cores, memory) that a container claims, the largest that is observed or under way."""
        replicas, cores, memory = container.replicas, container.cpu_limit_cores, container.memory_limit_bytes
        for instruction in self._promised.get(container.name, {}).values():
            if isinstance(instruction, Scale):
                replicas = max(replicas, instruction.replicas)
            elif isinstance(instruction, SetLimits):
                cores = max(cores, instruction.cpu_limit_cores or 0.0)
                memory = max(memory, instruction.memory_limit_bytes or 0.0)
        return replicas, cores, memory
