"""What an emulated migration laboratory is made of: nodes, links (`domain.topology.Link`), and loaded containers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.errors import UsageError
from natwork_ray.limi.phase_times import MIB

GIB = 1024 * MIB


@dataclass(frozen=True, kw_only=True)
class ContainerProfile:
    """The truth about a container's load; what a migration measures of it beforehand has noise.

    Attributes:
        memory_bytes: resident memory of all its processes.
        dirty_bytes_per_s: rate at which distinct pages are written, until `working_set_bytes` have been.
        volume_bytes, volume_delta_bytes: writable file system, and the part that no other node has at second 0.
        volume_write_bytes_per_s: how fast that part grows while the container runs.
        cpu_cores, cpu_limit_cores: use and limit (0: no limit).
        request_rate, service_rate: requests per second that arrive, and that it could serve; 0: nobody asks.
        network_rx_bytes_per_s, network_tx_bytes_per_s: clients' traffic, which shares the node's links.
    """

    memory_bytes: float
    dirty_bytes_per_s: float = 0.0
    working_set_bytes: float = 0.0
    volume_bytes: float = 0.0
    volume_delta_bytes: float = 0.0
    volume_write_bytes_per_s: float = 0.0
    cpu_cores: float = 0.0
    cpu_limit_cores: float = 0.0
    request_rate: float = 0.0
    service_rate: float = 0.0
    network_rx_bytes_per_s: float = 0.0
    network_tx_bytes_per_s: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            number = getattr(self, field.name)
            if not (math.isfinite(number) and number >= 0):
                raise UsageError(f"container profile {field.name} = {number}", hint="finite and not negative")
        if self.working_set_bytes > self.memory_bytes or self.volume_delta_bytes > self.volume_bytes:
            raise UsageError(
                f"a working set of {self.working_set_bytes} bytes in {self.memory_bytes}, a difference of "
                f"{self.volume_delta_bytes} in a volume of {self.volume_bytes}",
                hint="the part is at most as large as the whole",
            )

    @classmethod
    def of(cls, load: ContainerLoad, *, request_rate: float = 0.0, service_rate: float = 0.0) -> ContainerProfile:
        """A container that really is as `load` says."""
        return cls(
            memory_bytes=load.memory_bytes,
            dirty_bytes_per_s=load.dirty_bytes_per_s,
            working_set_bytes=min(load.working_set_bytes, load.memory_bytes),
            volume_bytes=load.volume_bytes,
            volume_delta_bytes=min(load.volume_delta_bytes, load.volume_bytes),
            volume_write_bytes_per_s=load.volume_write_bytes_per_s,
            cpu_cores=load.cpu_cores,
            cpu_limit_cores=load.cpu_limit_cores,
            request_rate=request_rate,
            service_rate=service_rate,
            network_rx_bytes_per_s=load.network_rx_bytes_per_s,
            network_tx_bytes_per_s=load.network_tx_bytes_per_s,
        )


@dataclass(frozen=True, kw_only=True)
class LabNode:
    """A node. `disk_bytes` is what checkpoints may take."""

    name: str
    cpu_cores: float = 16.0
    memory_bytes: float = 64 * GIB
    disk_bytes: float = 64 * GIB


@dataclass(frozen=True, kw_only=True)
class LabContainer:
    """A container, running on `node` when the laboratory opens. `cpu_limit_cores` of 0 claims what it uses."""

    name: str
    node: str
    profile: ContainerProfile
    service: str = ""
    depends_on: tuple[str, ...] = ()

    @property
    def claims(self) -> tuple[float, float]:
        """CPU cores and bytes of memory that a node has to have for it."""
        return self.profile.cpu_limit_cores or self.profile.cpu_cores, self.profile.memory_bytes
