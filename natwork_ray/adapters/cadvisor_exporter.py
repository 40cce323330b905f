"""Containers' resource use in cAdvisor's names, for a Prometheus server to scrape (D3.3 sections 2.1 and 6.1).

What a LiMi agent sees of its containers, or `natwork exporter` of any cgroup or process: read afresh at each scrape,
from the kernel's cgroup files (version 1 or 2) and /proc. Queries written for the kubelet's cAdvisor work unchanged.

Rules kept:

- what the kernel does not count is absent, never 0; a container that has ended is absent, so that Prometheus marks its
  series as stale;
- no sample has a time of its own, so that staleness works (cAdvisor's have);
- a process without a cgroup of its own has no limits, and no network unless it has a network namespace of its own;
- D3.3's virtual memory has no name in cAdvisor: `natwork_container_virtual_memory_bytes` is the sum of the address
  spaces (VmSize) of a container's processes. Shared mappings count once per process, as in D3.3's VSize.

Left out: per-CPU times, huge pages, file system usage, everything about images.

    exporter = ContainerExporter(lambda: [Exported(name="web", cgroup="/nw3f9a/node-0/web")])
    with serving(exporter, host="127.0.0.1", port=0) as address: ...
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from natwork_ray.adapters.cadvisor_cgroup import CgroupCounts, read_cgroup
from natwork_ray.adapters.cadvisor_processes import (
    InterfaceCounts,
    ProcessCounts,
    family_of,
    first_of,
    interfaces,
    look,
    own_network,
)
from natwork_ray.adapters.container_cgroup import CGROUPS, ContainerCgroup
from natwork_ray.domain.values import value
from natwork_ray.errors import NatworkError, PreconditionError, UsageError

_log = logging.getLogger(__name__)

LABELS = ("container", "name", "id", "namespace", "pod", "node", "service")


@value
class Exported:
    """Something to export: a cgroup, or a process with what descends from it.

    Attributes:
        name: of the container.
        cgroup: as runC's `linux.cgroupsPath`; '' to look at `pid` instead.
        namespace, pod, node, service: labels; '' for none.
    """

    name: str
    cgroup: str = ""
    pid: int = 0
    namespace: str = ""
    pod: str = ""
    node: str = ""
    service: str = ""

    def __post_init__(self) -> None:
        if bool(self.cgroup) == bool(self.pid):
            raise UsageError(f"{self.name}: a cgroup or a process", hint="exactly one of the two")


@dataclass(frozen=True)
class Sight:
    """One container at the moment of a scrape; None for what there is not."""

    what: Exported
    cgroup: CgroupCounts | None
    processes: ProcessCounts | None
    network: tuple[InterfaceCounts, ...]

    @property
    def labels(self) -> list[str]:
        """Values of `LABELS`."""
        what = self.what
        place = what.cgroup or f"/process/{what.pid}"
        return [what.name, what.name, place, what.namespace, what.pod, what.node, what.service]


def see(what: Exported, *, root: Path = CGROUPS) -> Sight | None:
    """Look at one container; None when it is not there (any more)."""
    if what.cgroup:
        cgroup = ContainerCgroup(what.cgroup, root)
        counts, pids = read_cgroup(cgroup), cgroup.members()
        if counts is None:
            return None
    else:
        counts, pids = None, family_of(what.pid)
        if not pids:
            return None
    first = first_of(pids)
    network = interfaces(first) if first is not None and own_network(first) else ()
    return Sight(what, counts, look(pids), network)


Number = float | None
Told = Callable[[Sight], Number]


def _of_cgroup(field: str) -> Told:
    return lambda sight: None if sight.cgroup is None else getattr(sight.cgroup, field)


def _of_processes(field: str) -> Told:
    return lambda sight: None if sight.processes is None else getattr(sight.processes, field)


def _either(of_cgroup: str, of_processes: str) -> Told:
    """What the cgroup counts, for a process without one what its family adds up to."""
    cgroup, processes = _of_cgroup(of_cgroup), _of_processes(of_processes)
    return lambda sight: processes(sight) if sight.cgroup is None else cgroup(sight)


def _cpu_s(sight: Sight) -> Number:
    if sight.cgroup is not None:
        return sight.cgroup.cpu_s
    return None if sight.processes is None else sight.processes.cpu_user_s + sight.processes.cpu_system_s


# cAdvisor's names; counters without the `_total` that the library puts behind them.
_COUNTERS: tuple[tuple[str, str, Told], ...] = (
    ("container_cpu_usage_seconds", "Processor time used, seconds.", _cpu_s),
    ("container_cpu_user_seconds", "Of it in user mode.", _either("cpu_user_s", "cpu_user_s")),
    ("container_cpu_system_seconds", "Of it in the kernel.", _either("cpu_system_s", "cpu_system_s")),
    ("container_cpu_cfs_periods", "Enforcement periods of the CPU quota that passed.", _of_cgroup("periods")),
    ("container_cpu_cfs_throttled_periods", "Periods in which it was throttled.", _of_cgroup("throttled_periods")),
    ("container_cpu_cfs_throttled_seconds", "Time for which it was throttled.", _of_cgroup("throttled_s")),
    ("container_memory_failcnt", "Times that memory use hit the limit.", _of_cgroup("memory_failures")),
    ("container_oom_events", "Processes killed for want of memory.", _of_cgroup("oom_kills")),
)
_GAUGES: tuple[tuple[str, str, Told], ...] = (
    ("container_memory_usage_bytes", "Memory in use, all kinds.", _of_cgroup("memory_usage_bytes")),
    ("container_memory_max_usage_bytes", "The most that it ever used.", _of_cgroup("memory_max_usage_bytes")),
    (
        "container_memory_working_set_bytes",
        "Memory in use less what could be dropped at once.",
        _either("memory_working_set_bytes", "rss_bytes"),
    ),
    ("container_memory_rss", "Anonymous memory, bytes.", _either("memory_rss_bytes", "rss_bytes")),
    ("container_memory_cache", "Page cache, bytes.", _of_cgroup("memory_cache_bytes")),
    ("container_memory_mapped_file", "Mapped files, bytes.", _of_cgroup("memory_mapped_bytes")),
    ("container_memory_swap", "Swap in use, bytes.", _of_cgroup("memory_swap_bytes")),
    ("container_spec_cpu_quota", "CPU quota, microseconds per period; absent without.", _of_cgroup("quota_us")),
    ("container_spec_cpu_period", "Period of the CPU quota, microseconds.", _of_cgroup("period_us")),
    ("container_spec_memory_limit_bytes", "Memory limit; absent without.", _of_cgroup("memory_limit_bytes")),
    ("container_threads_max", "Limit of processes and threads; absent without.", _of_cgroup("processes_limit")),
    ("container_start_time_seconds", "When its oldest process began.", _of_processes("started_s")),
    ("container_processes", "Processes.", _of_processes("processes")),
    ("container_threads", "Threads.", _of_processes("threads")),
    ("container_file_descriptors", "Open file descriptors.", _of_processes("descriptors")),
    ("container_sockets", "Open sockets.", _of_processes("sockets")),
    (
        "natwork_container_virtual_memory_bytes",
        "Sum of the address spaces (VmSize) of its processes.",
        _of_processes("vsize_bytes"),
    ),
)
_NETWORK = (
    ("container_network_receive_bytes", "rx_bytes"),
    ("container_network_receive_packets", "rx_packets"),
    ("container_network_receive_errors", "rx_errors"),
    ("container_network_receive_packets_dropped", "rx_dropped"),
    ("container_network_transmit_bytes", "tx_bytes"),
    ("container_network_transmit_packets", "tx_packets"),
    ("container_network_transmit_errors", "tx_errors"),
    ("container_network_transmit_packets_dropped", "tx_dropped"),
)
_DISK = (
    ("container_fs_reads_bytes", "read_bytes"),
    ("container_fs_writes_bytes", "written_bytes"),
    ("container_fs_reads", "reads"),
    ("container_fs_writes", "writes"),
)


class ContainerExporter(Collector):
    """A collector of `prometheus_client`: every scrape looks anew.

    Args:
        exported: what to export, asked at each scrape.
        nodes: names of nodes that are there also while they have no container.
    """

    def __init__(
        self, exported: Callable[[], Iterable[Exported]], *, nodes: Sequence[str] = (), root: Path = CGROUPS
    ) -> None:
        self._exported, self._nodes, self._root = exported, tuple(nodes), root

    def collect(self) -> Iterator[Metric]:
        """Metric families of everything that is there now."""
        sights, failed = self._sights()
        for name, text, told in _COUNTERS:
            yield _counter(name, text, (), (((), told(sight), sight) for sight in sights))
        for name, text, told in _GAUGES:
            family = GaugeMetricFamily(name, text, labels=LABELS)
            for sight in sights:
                if (number := told(sight)) is not None:
                    family.add_metric(sight.labels, number)
            yield family
        for name, part in _NETWORK:
            each = (((i.interface,), float(getattr(i, part)), sight) for sight in sights for i in sight.network)
            yield _counter(name, "Of its network namespace.", ("interface",), each)
        for name, part in _DISK:
            yield _counter(name, "Of block devices.", ("device",), _disk(sights, part))
        nodes = sorted({*self._nodes, *(sight.what.node for sight in sights)}) or [""]
        yield _per_node("machine_cpu_cores", "Processors of the machine.", nodes, float(psutil.cpu_count() or 1))
        yield _per_node("machine_memory_bytes", "Memory of the machine.", nodes, float(psutil.virtual_memory().total))
        yield GaugeMetricFamily(
            "container_scrape_error", "1 if something could not be looked at, else 0.", value=float(failed)
        )

    def _sights(self) -> tuple[list[Sight], bool]:
        sights, failed = [], False
        try:
            exported = list(self._exported())
        except (NatworkError, OSError, ValueError) as error:
            _log.warning("cannot tell what to export: %s", error)
            return [], True
        for what in exported:
            try:
                sight = see(what, root=self._root)
            except (OSError, ValueError, psutil.Error) as error:
                _log.warning("cannot look at %s: %s", what.name, error)
                failed = True
                continue
            if sight is not None:
                sights.append(sight)
        return sights, failed


def _counter(
    name: str, text: str, more: tuple[str, ...], each: Iterable[tuple[tuple[str, ...], Number, Sight]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(*LABELS, *more))
    for extra, number, sight in each:
        if number is not None:
            family.add_metric([*sight.labels, *extra], number)
    return family


def _disk(sights: Iterable[Sight], part: str) -> Iterator[tuple[tuple[str, ...], Number, Sight]]:
    for sight in sights:
        if sight.cgroup is not None:
            for disk in sight.cgroup.disks or ():
                yield (disk.device,), getattr(disk, part), sight
            if sight.cgroup.disks == ():  # counted, and nothing was read or written: that is 0, not unknown
                yield ("",), 0.0, sight
        elif sight.processes is not None and part in ("read_bytes", "written_bytes"):
            yield ("",), getattr(sight.processes, part), sight


def _per_node(name: str, text: str, nodes: Iterable[str], number: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=("node",))
    for node in nodes:
        family.add_metric([node], number)
    return family


@contextmanager
def serving(exporter: ContainerExporter, *, host: str, port: int) -> Iterator[tuple[str, int]]:
    """Answer scrapes at http://host:port/metrics, in a thread, until left; port 0 takes a free one. Gives both.

    Raises:
        PreconditionError: the address cannot be had.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(exporter)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise PreconditionError(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another --port, or end who has it"
        ) from error
    try:
        yield host, int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
