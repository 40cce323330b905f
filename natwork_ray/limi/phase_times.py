"""What each phase of a live migration costs: the one place of the constants, with the source of each, and of the laws.

The closed form (`natwork_ray.limi.durations`) and the emulated testbed (`natwork_ray.emulation.migration_lab`) both
build on these, so that they cannot drift apart. Only cold migrations have been published with their phases (CubeMig);
what is fitted to them says "fit", the rest says "assumed" and why that much. docs/live-migration-model.md tells the
whole.

    >>> round(dump_s(100 * MIB), 3)
    0.217
    >>> residual_bytes(working_set_bytes=40 * MIB, dirty_bytes_per_s=10 * MIB, elapsed_s=2.0) / MIB
    20.0

Left out: compression, encryption that is slower than the link, and the content of pages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MIB = float(2**20)


@dataclass(frozen=True)
class DurationParameters:
    """Every constant of the model. "Fit": computed from CubeMig's 17,147 published CRIU dumps."""

    # Before anything stands still.
    check_s: float = 0.02  # assumed: one look at the runtime's state on either node
    open_path_s: float = 0.05  # assumed: the master connection is kept open, so that only a channel has to be made
    prepare_s: float = 0.10  # assumed: bundle, namespace and folders on the target
    predump_fixed_s: float = 0.0896  # assumed: a pre-dump walks the process tree as a dump does
    predump_s_per_mib: float = 0.001056  # fit: memory dump = 2.7 ms + 1.056 ms/MiB, R2 0.983
    predump_freeze_s: float = 0.03  # assumed: part of the pre-dump during which the processes stand still
    # Nobody is served.
    freeze_s: float = 0.003  # fit: the data's freezing time, milliseconds
    dump_fixed_s: float = 0.0896  # fit: frozen time = 89.6 ms + 1.276 ms/MiB, R2 0.883
    dump_s_per_mib: float = 0.001276  # fit, as above
    minimal_dump_bytes: float = 1.0 * MIB  # assumed: registers, descriptors and sockets, without pages
    restore_fixed_s: float = 0.15  # assumed: no public data with four methods
    restore_s_per_mib: float = 0.001  # assumed, near the dump's slope
    address_detach_s: float = 0.01  # assumed: one port taken off the bridge
    address_move_s: float = 0.05  # assumed: gratuitous ARP and bridge update
    page_tunnel_s: float = 0.02  # assumed: one more channel of the open connection
    lazy_start_s: float = 0.10  # assumed: lazy-pages daemon on the destination has to be up
    # Moving bytes.
    transfer_fixed_s: float = 0.05  # measured by hand: rsync over an open connection with next to nothing to send
    transfer_round_trips: float = 3.0  # assumed: file list, differences, acknowledgement
    transfer_share: float = 0.9  # assumed: rsync through SSH reaches nine tenths of the link
    lazy_share: float = 0.5  # assumed: fetched page by page; by hand, 64 MiB took a second where rsync took 0.16 s
    demand_fault_share: float = 0.002  # assumed: of the working set's pages, those that are waited for one by one
    volume_scan_s_per_mib: float = 0.001  # assumed: rsync reads the whole volume on both sides, at 1 GiB/s
    volume_settle_bytes: float = 0.25 * MIB  # assumed: what differs at least, in any writable file system in use
    # What a container's limits do to it.
    quota_share: float = 0.5  # assumed: half of what pages cost is spent inside the container's own CPU quota
    busy_slowdown: float = 0.3  # assumed: a pre-dump competes with processes that use all of their limit
    # After it, and rolling back.
    settle_s: float = 0.05  # assumed: end and forget what is left on a node
    thaw_s: float = 0.003  # assumed: as the freeze
    # Clients.
    degradation: float = 0.5  # assumed: a container that waits for pages loses half of its work
    queue_bound: float = 128.0  # assumed: requests that wait for a container that stands still; others are turned away
    queue_sigma: float = 0.25  # assumed: arrivals are burstier than their mean
    # Noise.
    noise_sigma: float = 0.12  # fit: residual coefficient of variation 10-14 % of frozen phases, 4-14 % of totals
    common_noise_share: float = 0.25  # assumed: share of that variance which all phases of one migration have in common
    noise_bound_sigmas: float = 3.0  # assumed: draws are cut there
    # Choosing.
    total_weight: float = 0.2  # assumed: a second of migration weighs a quarter of a second of downtime

    @property
    def common_sigma(self) -> float:
        """Noise that all phases of a migration share."""
        return self.noise_sigma * math.sqrt(self.common_noise_share)

    @property
    def phase_sigma(self) -> float:
        """Noise of each phase by itself."""
        return self.noise_sigma * math.sqrt(1 - self.common_noise_share)


DEFAULT_PARAMETERS = DurationParameters()


def quota_factor(cpu_limit_cores: float, p: DurationParameters = DEFAULT_PARAMETERS) -> float:
    """How much longer pages take under a CPU limit below one core (0: no limit)."""
    if not 0 < cpu_limit_cores < 1:
        return 1.0
    return 1 + p.quota_share * (1 / cpu_limit_cores - 1)


def pre_dump_s(
    pages_bytes: float,
    *,
    cpu_cores: float = 0.0,
    cpu_limit_cores: float = 0.0,
    p: DurationParameters = DEFAULT_PARAMETERS,
) -> float:
    """A checkpoint while the container runs, and competes with it."""
    busy = min(1.0, cpu_cores / cpu_limit_cores) if cpu_limit_cores > 0 else 0.0
    slope = p.predump_s_per_mib * quota_factor(cpu_limit_cores, p) * (1 + p.busy_slowdown * busy)
    return p.predump_fixed_s + slope * pages_bytes / MIB


def dump_s(pages_bytes: float, *, cpu_limit_cores: float = 0.0, p: DurationParameters = DEFAULT_PARAMETERS) -> float:
    """A checkpoint of a frozen container."""
    return p.dump_fixed_s + p.dump_s_per_mib * quota_factor(cpu_limit_cores, p) * pages_bytes / MIB


def restore_s(
    memory_bytes: float, *, lazy: bool, cpu_limit_cores: float = 0.0, p: DurationParameters = DEFAULT_PARAMETERS
) -> float:
    """Reading all of memory back (also that of earlier rounds: criu issue 2150), or next to nothing when lazy."""
    if lazy:
        return p.restore_fixed_s + p.lazy_start_s
    return p.restore_fixed_s + p.restore_s_per_mib * quota_factor(cpu_limit_cores, p) * memory_bytes / MIB


def residual_bytes(*, working_set_bytes: float, dirty_bytes_per_s: float, elapsed_s: float) -> float:
    """Memory that differs from a copy taken `elapsed_s` ago: it grows until the whole working set was rewritten."""
    return min(working_set_bytes, dirty_bytes_per_s * elapsed_s)


def volume_residual_bytes(
    *, volume_bytes: float, write_bytes_per_s: float, elapsed_s: float, p: DurationParameters = DEFAULT_PARAMETERS
) -> float:
    """The volume's difference from a copy taken `elapsed_s` ago."""
    return min(volume_bytes, p.volume_settle_bytes + write_bytes_per_s * elapsed_s)


def transfer_start_s(rtt_s: float, p: DurationParameters = DEFAULT_PARAMETERS) -> float:
    """What a transfer costs before its bytes flow."""
    return p.transfer_fixed_s + p.transfer_round_trips * rtt_s


def volume_start_s(volume_bytes: float, rtt_s: float, p: DurationParameters = DEFAULT_PARAMETERS) -> float:
    """As `transfer_start_s` for a volume, which has to be read for its differences."""
    return transfer_start_s(rtt_s, p) + p.volume_scan_s_per_mib * volume_bytes / MIB


def demand_faults_s(
    lazy_bytes: float, working_set_bytes: float, rtt_s: float, p: DurationParameters = DEFAULT_PARAMETERS
) -> float:
    """Time in which a container stands and waits for single pages, one round trip each."""
    return p.demand_fault_share * min(lazy_bytes, working_set_bytes) / 4096 * rtt_s


def queueing_s(
    *,
    downtime_s: float,
    degraded_s: float,
    request_rate: float,
    service_rate: float,
    p: DurationParameters = DEFAULT_PARAMETERS,
) -> float:
    """How long after an outage the requests that queued have been served: q0 / (mu - lambda).

    While pages are fetched on demand the container serves at a reduced rate, which may be less than what arrives.
    """
    if request_rate <= 0 or downtime_s <= 0:
        return 0.0
    # Nobody can serve less than arrives for ever; a measured rate that says so is noise.
    mu = max(service_rate, 1.05 * request_rate)
    queue = min(p.queue_bound, request_rate * downtime_s)
    drain = (1 - p.degradation) * mu - request_rate
    if drain > 0 and queue / drain <= degraded_s:
        return queue / drain
    left = min(p.queue_bound, max(0.0, queue - drain * degraded_s))
    return degraded_s + left / (mu - request_rate)
