"""The ports: what the loop needs from the world, as Protocols.

Each has at least one real adapter or emulation, and all implementations of a port pass the same tests in
tests/contract. Verbs that reach another machine are coroutines. Implementations choose nothing: the composition root
(`natwork_ray.backends`) does.

Idempotency: an instruction carries a key. Carrying out a key a second time returns the first outcome, with one effect
on the world.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from natwork_ray.domain.actions import (
    ActionOutcome,
    AddNode,
    BlockSource,
    MeshRetry,
    Migrate,
    Restart,
    Scale,
    SetLimits,
)
from natwork_ray.domain.auditing import AuditRecord
from natwork_ray.domain.telemetry import FlowShare, NodeUsage, TelemetryWindow
from natwork_ray.domain.topology import Topology


class Clock(Protocol):
    """Seconds on the backend's clock: wall time on real backends, virtual time in the emulation."""

    def now_s(self) -> float:
        """The present moment."""
        ...


class TelemetrySource(Protocol):
    """Where samples come from (Prometheus, recorded files, the emulated testbed)."""

    async def window(self, *, end_s: float, length: int) -> TelemetryWindow:
        """The last `length` samples up to and including `end_s`, NaN where nothing was measured.

        Raises:
            InputError: `end_s` lies outside what the source has, or `length` is not positive.
        """
        ...

    async def node_usage(self, *, at_s: float) -> tuple[NodeUsage, ...]:
        """Aggregates per node at one moment; empty where the source has none."""
        ...

    async def flows(self, containers: Sequence[str], *, at_s: float) -> Mapping[str, tuple[FlowShare, ...]]:
        """Traffic shares by source for each named container, largest first; empty where not measured."""
        ...


class ContainerRuntime(Protocol):
    """What a node can do to its containers."""

    async def migrate(self, instruction: Migrate) -> ActionOutcome:
        """Move the container; at any failure it runs on exactly one node."""
        ...

    async def set_limits(self, instruction: SetLimits) -> ActionOutcome:
        """Change CPU and memory limits in place."""
        ...

    async def restart(self, instruction: Restart) -> ActionOutcome:
        """Restart in place."""
        ...


class Firewall(Protocol):
    """Packet filter on a node."""

    async def block(self, instruction: BlockSource) -> ActionOutcome:
        """Drop traffic from a source to a container until the rule expires."""
        ...


class Orchestrator(Protocol):
    """What the cluster's orchestrator can do (Kubernetes, or the emulation)."""

    async def topology(self) -> Topology:
        """What runs where, now."""
        ...

    async def scale(self, instruction: Scale) -> ActionOutcome:
        """Set the number of replicas."""
        ...

    async def add_node(self, instruction: AddNode) -> ActionOutcome:
        """Bring a spare node into service."""
        ...

    async def mesh_retry(self, instruction: MeshRetry) -> ActionOutcome:
        """Switch the service mesh's retries and balancing for a container."""
        ...


class Journal(Protocol):
    """The durable store of the control actor: events and audit entries, committed together or not at all."""

    def events(self) -> Iterator[tuple[str, bytes]]:
        """Every committed (event id, JSON) in the order of commitment."""
        ...

    def has_event(self, event_id: str) -> bool:
        """Whether an event of that id was committed."""
        ...

    def commit(self, events: Sequence[tuple[str, bytes]], records: Sequence[AuditRecord]) -> None:
        """Append events and audit records in one durable transaction, and sign the new head of the log.

        Raises:
            ConflictError: an event id is there already; nothing was written.
            StoreError: the disk refused; nothing was written.
        """
        ...

    def close(self) -> None:
        """Release the files. Nothing is lost when this is never called."""
        ...


class ModelStore(Protocol):
    """Trained models by name. The bytes are safetensors, never pickles."""

    def load(self, name: str) -> bytes:
        """The newest model of that name.

        Raises:
            NotFoundError: no such model.
        """
        ...

    def save(self, name: str, data: bytes) -> None:
        """Store a model under a name, atomically replacing an older one."""
        ...
