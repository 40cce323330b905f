"""The twelve metrics of D3.3 Table 1, and windows of them.

Units are SI throughout: bytes, bytes per second, seconds, requests per second. A sample that was not taken is
NaN, never zero: "no latency because no requests" and "no scrape" must not look like "fast".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.values import value
from natwork_ray.errors import InputError


class Metric(StrEnum):
    """D3.3 Table 1, in its order; the value is the name used in files, HTTP and plots."""

    DISK_READ = "disk_read_bytes_per_s"
    DISK_WRITE = "disk_write_bytes_per_s"
    MEMORY_RSS = "memory_rss_bytes"
    MEMORY_VSIZE = "memory_vsize_bytes"
    CPU = "cpu_utilization"  # fraction of the container's CPU limit, 0 to 1
    NETWORK_RX = "network_rx_bytes_per_s"
    NETWORK_TX = "network_tx_bytes_per_s"
    LATENCY_P50 = "latency_p50_s"
    LATENCY_P90 = "latency_p90_s"
    LATENCY_P99 = "latency_p99_s"
    THROUGHPUT = "request_throughput_per_s"  # successful requests
    ERRORS = "error_rate_per_s"  # failed requests


METRICS: tuple[Metric, ...] = tuple(Metric)
N_METRICS = len(METRICS)


@dataclass(frozen=True, eq=False)
class TelemetryWindow:
    """The last T samples of N containers.

    Attributes:
        containers: N names.
        services: N names; the service whose learnt profile applies to each container.
        end_s: time of the last sample, seconds on the backend's clock.
        step_s: seconds between samples.
        values: float32 (N, T, 12) in the order of `METRICS`; NaN where nothing was measured.
    """

    containers: tuple[str, ...]
    services: tuple[str, ...]
    end_s: float
    step_s: float
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        n = len(self.containers)
        if len(self.services) != n or self.values.ndim != 3 or self.values.shape[::2] != (n, N_METRICS):
            raise InputError(
                f"window of {n} containers and {len(self.services)} services has values of shape {self.values.shape}",
                hint=f"values must be (containers, samples, {N_METRICS})",
            )

    @property
    def length(self) -> int:
        """T, the number of samples per container."""
        return int(self.values.shape[1])

    def missing(self) -> NDArray[np.bool_]:
        """(N,) true where the newest sample is missing altogether, so that no verdict can rest on it."""
        return np.asarray(np.isnan(self.values[:, -1, :]).all(axis=1))


@value
class NodeUsage:
    """Aggregates of one node (D3.3 section 4.2: node-level utilisation)."""

    node: str
    at_s: float
    containers: int
    cpu_cores_used: float
    cpu_fraction: float
    memory_bytes_used: float
    memory_fraction: float
    network_rx_bytes_per_s: float
    network_tx_bytes_per_s: float


@value
class FlowShare:
    """One source's part in a container's traffic: the evidence a firewall rule needs.

    `request_share` and `failed_share` are fractions (0 to 1) of the container's requests and of its failed ones.
    """

    source: str
    request_share: float
    failed_share: float
