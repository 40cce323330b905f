"""The testbed behind the ports: seven thin objects that share one Testbed. Everything they return is `EMULATED`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from natwork_ray.domain.telemetry import FlowShare, NodeUsage, TelemetryWindow
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import NatworkError


class EmulatedClock:
    """`Clock`: the virtual one."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed

    def now_s(self) -> float:
        """The virtual clock."""
        return self._testbed.now_s


class EmulatedTelemetry:
    """`TelemetrySource`."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed

    async def window(self, *, end_s: float, length: int) -> TelemetryWindow:
        """See `Testbed.window`."""
        return self._testbed.window(end_s=end_s, length=length)

    async def node_usage(self, *, at_s: float) -> tuple[NodeUsage, ...]:
        """See `Testbed.node_usage`."""
        return self._testbed.node_usage(at_s)

    async def flows(self, containers: Sequence[str], *, at_s: float) -> Mapping[str, tuple[FlowShare, ...]]:
        """See `Testbed.flows`."""
        return self._testbed.flows(containers, at_s)


class EmulatedRuntime:
    """`NodeActions`."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed

    async def migrate(self, instruction: Migrate) -> ActionOutcome:
        """Begin a live migration."""
        return self._testbed.apply(instruction)

    async def set_limits(self, instruction: SetLimits) -> ActionOutcome:
        """Change limits in place."""
        return self._testbed.apply(instruction)

    async def restart(self, instruction: Restart) -> ActionOutcome:
        """Restart in place."""
        return self._testbed.apply(instruction)


class EmulatedOrchestrator:
    """`Orchestrator`."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed

    async def topology(self) -> Topology:
        """What runs where, now."""
        return self._testbed.topology()

    async def scale(self, instruction: Scale) -> ActionOutcome:
        """Set the number of replicas."""
        return self._testbed.apply(instruction)

    async def add_node(self, instruction: AddNode) -> ActionOutcome:
        """Boot the next spare node."""
        return self._testbed.apply(instruction)

    async def mesh_retry(self, instruction: MeshRetry) -> ActionOutcome:
        """Switch retries."""
        return self._testbed.apply(instruction)


class EmulatedServiceHands:
    """`ServiceHands`: the world conducts a service's schedule itself, in its own time, when it is accepted."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed

    async def move_together(self, instructions: Sequence[Migrate], topology: Topology) -> tuple[ActionOutcome, ...]:
        """Begin a service's migrations; what cannot be is a failed outcome of each."""
        try:
            return self._testbed.apply_together(instructions)
        except NatworkError as error:
            now_s = self._testbed.now_s
            return tuple(
                ActionOutcome(
                    key=i.key,
                    done=False,
                    started_at_s=now_s,
                    finished_at_s=now_s,
                    downtime_s=0.0,
                    backend=Backend.EMULATED,
                    detail=f"{i.container} stayed on {i.source}",
                    error=str(error),
                )
                for i in instructions
            )


class EmulatedFirewall:
    """`Firewall`."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed

    async def block(self, instruction: BlockSource) -> ActionOutcome:
        """Drop a source."""
        return self._testbed.apply(instruction)


class EmulatedSdn:
    """`SdnController`: sources are told apart as by the firewall; see `Block` for what the advice means."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed

    async def alert(self, alert: FlowAlert) -> ActionOutcome:
        """Drop, slow down or only look at the sources."""
        return self._testbed.apply(alert)

    async def withdraw(self, key: str) -> ActionOutcome:
        """End the rules of an alert."""
        return self._testbed.withdraw(key)
