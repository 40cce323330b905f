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
    FlowAlert,
    MeshRetry,
    Migrate,
    Restart,
    Scale,
    SetLimits,
)
from natwork_ray.domain.auditing import AuditRecord
from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.domain.model_versions import ModelVersion
from natwork_ray.domain.runtime import (
    ContainerSpec,
    ContainerStatus,
    DumpReport,
    PageServer,
    PathReport,
    Revival,
    RuntimeAbilities,
    SendReport,
)
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


class Migrator(Protocol):
    """Who moves containers as a whole: the LiMi agents on a testbed, or the emulation."""

    async def migrate(self, instruction: Migrate) -> ActionOutcome:
        """Move the container; at any failure it runs on exactly one node."""
        ...


class ContainerControl(Protocol):
    """What a node can change about a running container in place."""

    async def set_limits(self, instruction: SetLimits) -> ActionOutcome:
        """Change CPU and memory limits in place."""
        ...

    async def restart(self, instruction: Restart) -> ActionOutcome:
        """Restart in place."""
        ...


class NodeActions(Migrator, ContainerControl, Protocol):
    """All that the loop asks of the node on which a container runs."""


class ContainerRuntime(Protocol):
    """One node's container runtime as live migration needs it (runC with CRIU, or the emulation).

    `key` is the migration's key; images belong to a key and a name (`pre-1`, `pre-2`, ..., `final`). Every verb can be
    called again after a failure or a crash and then completes or repeats itself without harm. A verb that fails
    raises and leaves the container as it was, unless its docstring says otherwise.
    """

    async def abilities(self) -> RuntimeAbilities:
        """What this node's kernel and CRIU can do: asked, not guessed."""
        ...

    async def status(self, container: str) -> ContainerStatus:
        """Whether the container exists here, and runs."""
        ...

    async def load(self, container: str, *, observe_s: float) -> ContainerLoad:
        """Measure the container for `observe_s` seconds; the fields about the path are left 0 (see ImageTransfer)."""
        ...

    async def describe(self, container: str) -> ContainerSpec:
        """What another node needs to know to take the container over."""
        ...

    async def prepare(self, spec: ContainerSpec, *, key: str) -> None:
        """Target: make everything that a restore needs (bundle, folders), so that none of it costs downtime."""
        ...

    async def pre_dump(self, container: str, *, key: str, images: str, parent: str | None) -> DumpReport:
        """Source: a checkpoint of memory while the container goes on running (`parent`: the round before)."""
        ...

    async def freeze(self, container: str) -> None:
        """Source: stop all its processes. From here on nobody is served."""
        ...

    async def thaw(self, container: str) -> None:
        """Source: undo `freeze`; harmless when it was not frozen."""
        ...

    async def dump(self, container: str, *, key: str, images: str, parent: str | None, lazy: bool) -> DumpReport:
        """Source: the checkpoint after which the container does not run here; its frozen processes may stay until
        `destroy` or `revive`. With `lazy`, memory stays and is served to the target (`DumpReport.page_server_port`)
        until `await_pages_served`.
        """
        ...

    async def await_pages_served(self, container: str, *, key: str) -> float:
        """Source: wait until every lazy page is out; bytes served."""
        ...

    async def restore(self, container: str, *, key: str, images: str, page_server: PageServer | None) -> None:
        """Target: let the container run from images that were verified; `page_server` for lazy pages."""
        ...

    async def await_pages_fetched(self, container: str, *, key: str) -> float:
        """Target: wait until every lazy page has arrived; bytes fetched."""
        ...

    async def revive(self, container: str, *, key: str) -> Revival:
        """Source, rolling back: the container runs here again, as well as can be: still running, thawed, restored from
        its own images, or restarted from its bundle.
        """
        ...

    async def destroy(self, container: str, *, key: str) -> None:
        """End and forget the container on this node, with all that it left (processes, cgroups, bundle state)."""
        ...

    async def clean(self, container: str, *, key: str) -> None:
        """Remove what the migration left on this node (images, daemons it started); the container is not touched."""
        ...


class ImageTransfer(Protocol):
    """The encrypted way from one node to the others (rsync through SSH, or the emulation). Held by the source.

    What arrives is verified by digest before anybody may restore it.
    """

    async def open(self, target: str) -> PathReport:
        """Have the way ready (one master connection kept open) and measure it."""
        ...

    async def send_images(self, container: str, *, target: str, key: str, images: str, basis: str | None) -> SendReport:
        """Send one set of images; `basis` names an earlier set on the target that differences are taken against.

        Raises:
            VerificationError: what arrived differs from what was sent, also after it was sent again whole.
        """
        ...

    async def send_volume(self, container: str, *, target: str, key: str) -> SendReport:
        """Send the difference of the writable file system; verified as images are."""
        ...

    async def open_page_tunnel(self, *, target: str, key: str, port: int) -> PageServer:
        """Make the source's page server reachable from the target, through the same encryption."""
        ...

    async def close(self, *, target: str, key: str) -> None:
        """End tunnels of the migration; harmless when there are none."""
        ...


class AddressBridge(Protocol):
    """Where a container's IP and MAC are: the layer 2 bridge of D3.3 section 2.1. One node's view."""

    async def prepare(self, spec: ContainerSpec, *, key: str) -> None:
        """Target: the container's network namespace, with its address, but not on the bridge yet."""
        ...

    async def detach(self, container: str) -> None:
        """Source: take the address off the bridge; undone by `attach`."""
        ...

    async def attach(self, container: str) -> None:
        """Put the address on the bridge here and announce it (gratuitous ARP)."""
        ...

    async def attached(self, container: str) -> bool:
        """Whether this node has the container's address on the bridge."""
        ...

    async def remove(self, container: str) -> None:
        """Delete the container's network namespace here; harmless when there is none."""
        ...


class MigrationJournal(Protocol):
    """What a node remembers of the migrations it takes part in; survives the death of its agent."""

    def append(self, key: str, event: bytes) -> None:
        """Durable when it returns.

        Raises:
            StoreError: the disk refused; nothing was written.
        """
        ...

    def read(self, key: str) -> tuple[bytes, ...]:
        """Everything of one migration, in order; empty when it is not known. A torn last line is left out."""
        ...

    def open_keys(self) -> tuple[str, ...]:
        """Migrations that were begun and not closed."""
        ...

    def close(self, key: str, record: bytes) -> None:
        """File the final record and forget the events."""
        ...

    def records(self) -> tuple[bytes, ...]:
        """Final records, oldest first."""
        ...


class Firewall(Protocol):
    """Packet filter on a node."""

    async def block(self, instruction: BlockSource) -> ActionOutcome:
        """Drop traffic from a source to a container until the rule expires."""
        ...


class SdnController(Protocol):
    """Who programs the network's switches (Open vSwitch, a controller's REST interface, or the emulation)."""

    async def alert(self, alert: FlowAlert) -> ActionOutcome:
        """Treat the traffic of the alert's sources to its container as advised, until the alert expires.

        Raises:
            ActionError, PreconditionError: refused; nothing was changed.
            ConflictError: the key was used for another alert.
            TimedOutError: nobody knows whether it happened; delivering it again settles that.
        """
        ...

    async def withdraw(self, key: str) -> ActionOutcome:
        """Take away what the alert of that key put in place, and nothing else; harmless when there is nothing."""
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


class VersionedModelStore(ModelStore, Protocol):
    """A ModelStore that keeps versions, by the digest of their bytes."""

    def publish(self, name: str, data: bytes) -> ModelVersion:
        """Keep a version without using it. The same bytes published again are the same version."""
        ...

    def versions(self, name: str) -> tuple[ModelVersion, ...]:
        """The versions kept, newest first."""
        ...

    def version(self, name: str, sha256: str) -> bytes:
        """The bytes of one version.

        Raises:
            NotFoundError: it is not kept.
            StoreError: its bytes are no longer those of its digest.
        """
        ...

    def use(self, name: str, sha256: str) -> None:
        """Make a kept version the one that `load` gives.

        Raises:
            NotFoundError: it is not kept.
        """
        ...
