"""The worlds that come with the project, by name: `smart-city` (D3.3 section 3.1's example) and grids for benchmarks.

>>> scenario("smart-city").topology.container("auth").slice
'traffic-management'
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from natwork_ray.domain.topology import Container, Link, Node, NodeRole, Slice, Topology
from natwork_ray.emulation.services import MIB, ServiceProfile, draw_profile
from natwork_ray.errors import InputError, UsageError

GIB = 1024 * MIB
GIGABIT = 125e6  # bytes per second


@dataclass(frozen=True)
class Scenario:
    """What a Testbed starts from.

    Attributes:
        topology: nodes in service, links (to spare nodes as well), slices and containers.
        profiles: the constants of each container's service, by container name.
        spare_nodes: nodes that `AddNode` brings into service, in this order.
        start_hour: local time at virtual second 0, for the daily pattern.
    """

    name: str
    topology: Topology
    profiles: Mapping[str, ServiceProfile]
    spare_nodes: tuple[Node, ...] = ()
    start_hour: float = 8.0

    def __post_init__(self) -> None:
        names = [c.name for c in self.topology.containers]
        nodes = {n.name for n in self.topology.nodes}
        if len(set(names)) != len(names) or set(names) != set(self.profiles):
            raise InputError(
                f"scenario {self.name}: containers and profiles differ or repeat", hint="one profile for each container"
            )
        for c in self.topology.containers:
            if c.node not in nodes or not set(c.depends_on) <= set(names):
                raise InputError(
                    f"scenario {self.name}: {c.name} names a node or a container that is not there",
                    hint="compare its node and depends_on with the topology",
                )


def smart_city() -> Scenario:
    """Cameras, sensors and traffic management of a small city: 12 containers on two edge nodes and a core node."""
    nodes = (
        Node(name="edge-1", role=NodeRole.EDGE, cpu_cores=12.0, memory_bytes=16 * GIB),
        Node(name="edge-2", role=NodeRole.EDGE, cpu_cores=12.0, memory_bytes=16 * GIB),
        Node(name="core-1", role=NodeRole.CORE, cpu_cores=14.0, memory_bytes=32 * GIB),
    )
    spare = Node(name="edge-3", role=NodeRole.EDGE, cpu_cores=12.0, memory_bytes=16 * GIB)
    links = (
        Link(a="edge-1", b="edge-2", bandwidth_bytes_per_s=GIGABIT, rtt_s=0.004),
        Link(a="edge-1", b="core-1", bandwidth_bytes_per_s=GIGABIT, rtt_s=0.010),
        Link(a="edge-2", b="core-1", bandwidth_bytes_per_s=GIGABIT, rtt_s=0.012),
        Link(a="edge-3", b="edge-1", bandwidth_bytes_per_s=GIGABIT, rtt_s=0.003),
        Link(a="edge-3", b="edge-2", bandwidth_bytes_per_s=GIGABIT, rtt_s=0.004),
        Link(a="edge-3", b="core-1", bandwidth_bytes_per_s=GIGABIT, rtt_s=0.011),
    )
    slices = (
        Slice(name="cameras", description="surveillance video"),
        Slice(name="sensors", description="environmental sensors"),
        Slice(name="traffic-management", description="traffic lights and control"),
    )
    rows: tuple[tuple[str, str, str, str, int, float, float, tuple[str, ...], ServiceProfile], ...] = (
        # container, network service, slice, node, replicas, cores, MiB, calls
        (
            "camera-gateway", "video-surveillance", "cameras", "edge-1", 2, 1.0, 768, ("video-analytics", "auth"),
            ServiceProfile(
                demand_rps=22, normal_rps=22, calls_per_request=0.8, cpu_s_per_request=0.0375,
                service_time_s=0.06, tail=2.2, demand_cv=0.06, rx_per_request=6.9e5, tx_per_request=3.7e3,
                socket_disk=1.0, rss_bytes=280 * MIB, clients=0.9, wave_amplitude=0.04, daily_amplitude=0.1,
            ),
        ),
        (
            "video-analytics", "video-surveillance", "cameras", "edge-1", 3, 1.5, 1536, ("face-detector",),
            ServiceProfile(
                demand_rps=0, normal_rps=17.6, calls_per_request=0.35, cpu_s_per_request=0.23,
                service_time_s=0.2, tail=2.2, rx_per_request=6.8e5, tx_per_request=4e4, socket_disk=1.0,
                rss_bytes=520 * MIB, rss_per_rps=1.5 * MIB, vsize_ratio=3.4, gc_fraction=0.04,
                dirty_share_per_s=0.03, clients=0.8,
            ),
        ),
        (
            "face-detector", "video-surveillance", "cameras", "edge-2", 2, 1.5, 1280, ("face-recogniser",),
            ServiceProfile(
                demand_rps=0, normal_rps=6.2, calls_per_request=0.07, cpu_s_per_request=0.345,
                service_time_s=0.28, tail=1.7, rx_per_request=6.7e5, tx_per_request=2.2e3, socket_disk=1.0,
                rss_bytes=480 * MIB, vsize_ratio=6.1, gc_fraction=0.03, demand_cv=0.26, clients=0.9,
                cron_period_s=2700, cron_cpu=0.25,
            ),
        ),
        (
            "face-recogniser", "video-surveillance", "cameras", "edge-2", 1, 1.0, 1280, ("timeseries-db",),
            ServiceProfile(
                demand_rps=0, normal_rps=0.44, calls_per_request=0.5, cpu_s_per_request=0.24,
                service_time_s=0.45, tail=1.3, rx_per_request=6.7e5, tx_per_request=4e3,
                rss_bytes=500 * MIB, vsize_ratio=3.0, gc_fraction=0.03, demand_cv=0.5, idle_cpu=0.005,
                clients=0.9,
            ),
        ),
        (
            "sensor-ingest", "environment", "sensors", "edge-1", 2, 0.5, 512, ("mqtt-broker", "auth"),
            ServiceProfile(
                demand_rps=140, normal_rps=140, calls_per_request=1.0, cpu_s_per_request=0.0024,
                service_time_s=0.006, tail=3.0, rx_per_request=900, tx_per_request=300, rss_bytes=140 * MIB,
                demand_cv=0.08, cron_period_s=1800, cron_cpu=0.35, wave_amplitude=0.15, clients=0.2,
            ),
        ),
        (
            "mqtt-broker", "environment", "sensors", "edge-1", 1, 1.0, 512, ("stream-processor",),
            ServiceProfile(
                demand_rps=40, normal_rps=180, calls_per_request=0.5, cpu_s_per_request=0.0009,
                service_time_s=0.003, tail=4.0, rx_per_request=900, tx_per_request=1700, socket_disk=1.0,
                rss_bytes=95 * MIB, gc_fraction=0.01, clients=0.2, vsize_ratio=2.0,
            ),
        ),
        (
            "stream-processor", "environment", "sensors", "core-1", 2, 1.5, 2048, ("timeseries-db",),
            ServiceProfile(
                demand_rps=0, normal_rps=90, calls_per_request=0.6, cpu_s_per_request=0.0205,
                service_time_s=0.03, tail=3.0, rx_per_request=1800, tx_per_request=1200,
                rss_bytes=820 * MIB, gc_fraction=0.14, gc_period_s=420, vsize_ratio=4.5, cron_period_s=3300,
                cron_cpu=0.3, dirty_share_per_s=0.05,
            ),
        ),
        (
            "timeseries-db", "environment", "sensors", "core-1", 1, 3.0, 3072, (),
            ServiceProfile(
                demand_rps=0, normal_rps=72, cpu_s_per_request=0.0125, service_time_s=0.012, tail=4.5,
                rx_per_request=1400, tx_per_request=9000, disk_read_per_request=2.6e4,
                disk_write_per_request=1.1e4, rss_bytes=1150 * MIB, rss_per_rps=1.2 * MIB, vsize_ratio=2.2,
                cron_period_s=2400, cron_cpu=0.28, volume_delta_bytes=24 * MIB, dirty_share_per_s=0.02,
                idle_cpu=0.04,
            ),
        ),
        (
            "dashboard", "environment", "sensors", "core-1", 1, 0.5, 512, ("timeseries-db", "auth"),
            ServiceProfile(
                demand_rps=4, normal_rps=4, calls_per_request=3.0, cpu_s_per_request=0.011,
                service_time_s=0.05, tail=3.5, rx_per_request=1200, tx_per_request=9e4, rss_bytes=170 * MIB,
                demand_cv=0.4, daily_amplitude=0.5, wave_amplitude=0.2, cron_period_s=3000, cron_cpu=0.4,
            ),
        ),
        (
            "traffic-controller", "traffic-lights", "traffic-management", "edge-2", 2, 0.75, 512,
            ("route-optimiser", "auth"),
            ServiceProfile(
                demand_rps=55, normal_rps=55, calls_per_request=0.3, cpu_s_per_request=0.0088,
                service_time_s=0.012, tail=2.5, rx_per_request=1600, tx_per_request=2400,
                rss_bytes=150 * MIB, demand_cv=0.12, wave_amplitude=0.22, wave_period_s=1200,
                daily_amplitude=0.45, clients=0.4,
            ),
        ),
        (
            "route-optimiser", "traffic-lights", "traffic-management", "core-1", 2, 1.0, 1024, ("timeseries-db",),
            ServiceProfile(
                demand_rps=0, normal_rps=16.5, calls_per_request=0.4, cpu_s_per_request=0.097,
                service_time_s=0.09, tail=3.2, rx_per_request=3000, tx_per_request=12000,
                rss_bytes=380 * MIB, gc_fraction=0.09, gc_period_s=800, vsize_ratio=3.8, clients=0.6,
            ),
        ),
        (
            "auth", "traffic-lights", "traffic-management", "edge-2", 2, 0.5, 384, (),
            ServiceProfile(
                demand_rps=6, normal_rps=190, cpu_s_per_request=0.0011, service_time_s=0.004, tail=3.0,
                rx_per_request=700, tx_per_request=900, disk_read_per_request=500, rss_bytes=85 * MIB,
                vsize_ratio=5.0, demand_cv=0.15, base_error=0.006, clients=0.3,
            ),
        ),
    )  # fmt: skip
    containers = tuple(
        Container(
            name=name, service=name, network_service=network_service, slice=slice_, node=node, replicas=replicas,
            cpu_limit_cores=cores, memory_limit_bytes=mib * MIB, depends_on=calls,
        )
        for name, network_service, slice_, node, replicas, cores, mib, calls, _ in rows
    )  # fmt: skip
    topology = Topology(nodes=nodes, links=links, slices=slices, containers=containers)
    return Scenario("smart-city", topology, {row[0]: row[-1] for row in rows}, (spare,))


def grid(n: int, *, seed: int = 0) -> Scenario:
    """`n` containers (1 to 10,000) in network services of up to eight, eight to a node, all services drawn at random.

    For benchmarks and for training: `seed` decides the services, not what happens to them.

    Raises:
        UsageError: `n` out of range.
    """
    if not 1 <= n <= 10_000:
        raise UsageError(f"a grid of {n} containers", hint="1 to 10000")
    rng = np.random.default_rng(np.random.SeedSequence([seed, n]))
    n_nodes = max(2, -(-n // 8))
    nodes = tuple(
        Node(name=f"node-{i}", role=NodeRole.EDGE if i % 2 else NodeRole.CORE, cpu_cores=32.0, memory_bytes=48 * GIB)
        for i in range(n_nodes)
    )
    spare = Node(name=f"node-{n_nodes}", role=NodeRole.EDGE, cpu_cores=32.0, memory_bytes=48 * GIB)
    # A ring with shortcuts to the first node and to the spare one: enough to move to, and not every pair.
    pairs = {tuple(sorted((i, (i + 1) % n_nodes))) for i in range(n_nodes)}
    pairs |= {(0, i) for i in range(1, n_nodes)} | {(i, n_nodes) for i in range(n_nodes)}
    links = tuple(
        Link(
            a=f"node-{a}",
            b=f"node-{b}",
            bandwidth_bytes_per_s=GIGABIT,
            rtt_s=round(float(rng.uniform(0.001, 0.012)), 4),
        )
        for a, b in sorted(pairs)
        if a != b
    )
    containers: list[Container] = []
    profiles: dict[str, ServiceProfile] = {}
    for first in range(0, n, 8):
        size = min(8, n - first)
        arriving = np.zeros(size)
        calls: list[tuple[int, ...]] = [()] * size
        for k in range(size):
            # Two entrances; whoever comes later in the list is called by someone earlier.
            demand = float(np.exp(rng.uniform(np.log(0.5), np.log(150)))) if k < 2 else 0.0
            below = [int(j) for j in range(k + 1, size) if rng.uniform() < 0.35]
            if k + 2 < size and k + 2 not in below:
                below.append(k + 2)
            calls[k] = tuple(sorted(below))
            normal = float(arriving[k]) + demand
            cores = float(rng.choice([0.5, 1.0, 1.5, 2.0]))
            replicas = int(rng.integers(1, 3))
            profile = draw_profile(
                rng,
                demand_rps=demand,
                normal_rps=max(normal, 1e-3),
                cpu_limit_cores=cores * replicas,
                load=float(rng.uniform(0.05, 0.92)),
            )
            name = f"svc-{first + k}"
            arriving[list(calls[k])] += normal * profile.calls_per_request
            limit = (profile.rss_bytes + profile.rss_per_rps * normal / replicas) * float(rng.uniform(1.5, 3.0))
            containers.append(
                Container(
                    name=name,
                    service=name,
                    network_service=f"ns-{first // 8}",
                    slice=f"slice-{first // 8 % 3}",
                    node=f"node-{(first // 8 + (k % 2)) % n_nodes}",
                    replicas=replicas,
                    cpu_limit_cores=cores,
                    memory_limit_bytes=limit,
                    depends_on=tuple(f"svc-{first + j}" for j in calls[k]),
                )
            )
            profiles[name] = profile
    slices = tuple(Slice(name=f"slice-{i}", description="benchmark traffic") for i in range(3))
    topology = Topology(nodes=nodes, links=links, slices=slices, containers=tuple(containers))
    return Scenario(f"grid-{n}", topology, profiles, (spare,))


MAX_GRID = 5000
_GRID = re.compile(r"grid-([1-9][0-9]{0,3})")

SCENARIOS: Mapping[str, Callable[[], Scenario]] = MappingProxyType(
    {
        "smart-city": smart_city,
        "grid-10": lambda: grid(10),
        "grid-100": lambda: grid(100),
        "grid-1000": lambda: grid(1000),
    }
)


def scenario(name: str) -> Scenario:
    """The scenario of that name; `grid-N` makes N containers, 1 to 5000.

    Raises:
        UsageError: no such scenario; the hint names the closest.
    """
    size = _GRID.fullmatch(name)
    if size is not None and 1 <= int(size[1]) <= MAX_GRID:
        return grid(int(size[1]))
    if name not in SCENARIOS:
        close = difflib.get_close_matches(name, SCENARIOS, n=1)
        raise UsageError(
            f"there is no scenario {name!r}",
            hint=f"did you mean {close[0]!r}?" if close else f"one of {', '.join(SCENARIOS)}",
        )
    return SCENARIOS[name]()
