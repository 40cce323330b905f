"""What the doors may ask about migrations of the emulated world: how one would go. They take virtual time only."""

from __future__ import annotations

from natwork_ray.domain.migrations import ContainerLoad, MigrationOutlook, MigrationProgress
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import ActionError, NotFoundError
from natwork_ray.limi.choosing import MethodChooser, outlook
from natwork_ray.limi.durations import typical_inputs


class EmulatedAgents:
    """`LimiAgents` of an emulated world."""

    def __init__(self, testbed: Testbed, chooser: MethodChooser, weight: float) -> None:
        self._testbed, self._chooser, self._weight = testbed, chooser, weight

    async def outlook(self, container: str, *, source: str, target: str, weight: float | None) -> MigrationOutlook:
        """See `LimiAgents`. All four methods work everywhere."""
        return outlook(
            container,
            source=source,
            target=target,
            backend=Backend.EMULATED,
            load=measured_load(self._testbed, container, target),
            methods=tuple(MigrationMethod),
            chooser=self._chooser,
            weight=self._weight if weight is None else weight,
        )

    async def progress(self, key: str, *, source: str) -> MigrationProgress | None:
        """None: an emulated migration's whole record is known when it begins."""
        return None


def measured_load(testbed: Testbed, container: str, target: str) -> ContainerLoad:
    """The newest sample of a container and the link to the target.

    No metric tells the dirty rate, the working set or the volume: these are the typical ones of its memory.

    Raises:
        NotFoundError: no such container.
        ActionError: no link to the target.
    """
    topology = testbed.topology()
    found = topology.container(container)
    if found is None:
        raise NotFoundError(f"there is no container {container!r}", hint="the topology lists those that exist")
    link = topology.link(found.node, target)
    if link is None:
        raise ActionError(f"no link between {found.node} and {target}", hint="choose a target with a direct link")
    window = testbed.window(end_s=testbed.now_s, length=1)
    sample = dict(zip(METRICS, window.values[window.containers.index(container), -1].tolist(), strict=True))

    def of(metric: Metric, instead: float = 0.0) -> float:
        return sample[metric] if sample[metric] == sample[metric] else instead  # NaN: not measured

    usual = typical_inputs(
        rss_bytes=of(Metric.MEMORY_RSS, found.memory_limit_bytes),
        replicas=found.replicas,
        bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
    )
    limit = found.cpu_limit_cores * found.replicas
    return ContainerLoad(
        memory_bytes=usual.dump_bytes,
        dirty_bytes_per_s=usual.dirty_bytes_per_s,
        working_set_bytes=usual.working_set_bytes,
        cpu_cores=of(Metric.CPU) * limit,
        cpu_limit_cores=limit,
        volume_bytes=usual.volume_delta_bytes,
        volume_delta_bytes=usual.volume_delta_bytes,
        volume_write_bytes_per_s=of(Metric.DISK_WRITE),
        network_rx_bytes_per_s=of(Metric.NETWORK_RX),
        network_tx_bytes_per_s=of(Metric.NETWORK_TX),
        bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
        rtt_s=link.rtt_s,
        observed_s=testbed.step_s,
    )
