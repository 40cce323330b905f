"""How long a live migration takes, by method (D3.3 section 2.1: cold, pre-copy, post-copy, hybrid).

The equations follow the phases that D3.3 lists (pre-dump, dump, parallel transfer of dump and volume deltas with the
move of the address, restore). With M the dump, D the rate at which pages are dirtied, WS the writable working set,
B the link's bandwidth, V the volume delta:

    M1 = min(WS, D * (t_pd(M) + M/B))                      what was dirtied during the pre-copy round
    cold       down = t_d(M) + max(M, V)/B + t_r(M) + t_arp,                     total = down
    pre-copy   down = t_f + t_d(M1) + max(M1, V)/B + t_r(M) + t_arp,             total = t_pd(M) + M/B + down
    post-copy  down = t_d(0) + max(m0, V)/B + t_r(0) + t_lazy + t_arp,           total = down + M/B_lazy
    hybrid     down = t_f + post-copy's down,                                    total = pre-copy's total + M1/B_lazy

Pre-copy still restores all of M (t_r(M), not t_r(M1)): CRIU reads the whole image back. The measured public data know
only cold migrations, so t_d is calibrated and the rest is assumed; `DurationParameters` gives the source of each.

    >>> inputs = MigrationInputs(dump_bytes=100 * MIB, dirty_bytes_per_s=1 * MIB, working_set_bytes=40 * MIB,
    ...                          bandwidth_bytes_per_s=119 * MIB)
    >>> best_method(inputs).method.value
    'pre-copy'

Left out: several pre-copy rounds (runC and Podman make one), the backlog that queues while a container stands still
(clients of the emulation wait for an answer before they ask again), and compression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from natwork_ray.domain.actions import MigrationMethod, Phase
from natwork_ray.errors import UsageError

MIB = float(2**20)


@dataclass(frozen=True)
class DurationParameters:
    """Every constant of the model. "Fit" means computed from CubeMig's 17,147 published CRIU dumps."""

    dump_fixed_s: float = 0.0896  # fit: frozen time = 89.6 ms + 1.276 ms/MiB, R2 0.883
    dump_s_per_mib: float = 0.001276  # fit, as above
    predump_fixed_s: float = 0.0896  # assumed: a pre-dump walks the process tree as a dump does
    predump_s_per_mib: float = 0.001056  # fit: memory dump = 2.7 ms + 1.056 ms/MiB, R2 0.983
    predump_freeze_s: float = 0.03  # assumed: part of the pre-dump during which the processes stand still
    restore_fixed_s: float = 0.15  # assumed: no public data with four methods
    restore_s_per_mib: float = 0.001  # assumed, near the dump's slope
    address_move_s: float = 0.05  # assumed: gratuitous ARP and bridge update
    lazy_start_s: float = 0.10  # assumed: lazy-pages daemon on the destination has to be up
    minimal_dump_bytes: float = 1.0 * MIB  # assumed: registers, descriptors and sockets, without pages
    lazy_share: float = 0.5  # assumed: pages fetched on demand use half of the link
    transfer_share: float = 0.9  # assumed: rsync through SSH uses nine tenths of the link
    noise_sigma: float = 0.12  # measured residual coefficient of variation: 10-14 % frozen, 4-14 % total
    noise_bound_sigmas: float = 3.0  # the emulation truncates its noise there, so that a hard bound exists
    degradation: float = 0.5  # assumed: a container that waits for pages loses half of its work
    total_weight: float = 0.25  # assumed: a second of migration weighs a quarter of a second of downtime


DEFAULT_PARAMETERS = DurationParameters()

# For a caller that knows no more than the resident set. The share is that of the one published pair of dumps
# (229 MB, then 90 MB: lxc issue 1299); the rate is assumed at the upper end of the emulated services.
TYPICAL_WORKING_SET_SHARE = 0.39
TYPICAL_DIRTY_SHARE_PER_S = 0.05
TYPICAL_VOLUME_BYTES = 32 * MIB  # assumed: more than any emulated service gains between two rsync runs


@dataclass(frozen=True)
class MigrationInputs:
    """What a migration's duration depends on.

    Attributes:
        dump_bytes: M, the memory image; taken as resident memory x replicas (their relation is not published).
        dirty_bytes_per_s: D, 0 or more.
        working_set_bytes: WS, at most `dump_bytes`; more is treated as `dump_bytes`.
        bandwidth_bytes_per_s: B of the link, above 0.
        volume_delta_bytes: V, what the writable file system has gained.
    """

    dump_bytes: float
    dirty_bytes_per_s: float
    working_set_bytes: float
    bandwidth_bytes_per_s: float
    volume_delta_bytes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dump_bytes", "dirty_bytes_per_s", "working_set_bytes", "volume_delta_bytes"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"migration input {name} = {value}", hint="it must be finite and not negative")
        if not (math.isfinite(self.bandwidth_bytes_per_s) and self.bandwidth_bytes_per_s > 0):
            raise UsageError(
                f"migration input bandwidth_bytes_per_s = {self.bandwidth_bytes_per_s}",
                hint="it must be finite and above zero",
            )


@dataclass(frozen=True)
class MigrationDuration:
    """One migration as predicted or as drawn.

    `downtime_s` is the part of `total_s` in which nobody is served; `degraded_s` the part in which pages are fetched
    on demand; `phases` in order, their durations add up to `total_s`. `downtime_starts_s` counts from the start (the
    short freeze of a pre-dump is counted in `downtime_s` with the main one).
    """

    method: MigrationMethod
    total_s: float
    downtime_s: float
    downtime_starts_s: float
    degraded_s: float
    phases: tuple[Phase, ...]

    def loss_s(self, parameters: DurationParameters = DEFAULT_PARAMETERS) -> float:
        """What `best_method` minimises: downtime, lost work while degraded, and a quarter of the total time."""
        return self.downtime_s + parameters.degradation * self.degraded_s + parameters.total_weight * self.total_s

    def scaled(self, factor: float) -> MigrationDuration:
        """Every duration multiplied by `factor`."""
        return MigrationDuration(
            method=self.method,
            total_s=self.total_s * factor,
            downtime_s=self.downtime_s * factor,
            downtime_starts_s=self.downtime_starts_s * factor,
            degraded_s=self.degraded_s * factor,
            phases=tuple(
                Phase(name=p.name, duration_s=p.duration_s * factor, transferred_bytes=p.transferred_bytes)
                for p in self.phases
            ),
        )


def typical_inputs(
    *,
    rss_bytes: float,
    replicas: int = 1,
    bandwidth_bytes_per_s: float,
    volume_delta_bytes: float = TYPICAL_VOLUME_BYTES,
) -> MigrationInputs:
    """Inputs for a container of which only the resident memory (per replica) and the link are known.

    They are cautious: everything unknown is taken at the upper end, so that a p95 from them is seldom exceeded.
    """
    dump = rss_bytes * replicas
    return MigrationInputs(
        dump_bytes=dump,
        dirty_bytes_per_s=TYPICAL_DIRTY_SHARE_PER_S * dump,
        working_set_bytes=TYPICAL_WORKING_SET_SHARE * dump,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        volume_delta_bytes=volume_delta_bytes,
    )


def predict(
    method: MigrationMethod, inputs: MigrationInputs, parameters: DurationParameters = DEFAULT_PARAMETERS
) -> MigrationDuration:
    """The median migration."""
    p = parameters
    link = inputs.bandwidth_bytes_per_s * p.transfer_share
    dump, volume = inputs.dump_bytes, inputs.volume_delta_bytes
    first_round_s = _predump_s(dump, p) + dump / link
    working_set = min(inputs.working_set_bytes, dump)
    residual = min(working_set, inputs.dirty_bytes_per_s * first_round_s)
    before: list[Phase] = []
    if method in (MigrationMethod.PRE_COPY, MigrationMethod.HYBRID):
        before = [
            Phase(name="pre-dump", duration_s=_predump_s(dump, p)),
            Phase(name="pre-dump transfer", duration_s=dump / link, transferred_bytes=dump),
        ]
    lazy = method in (MigrationMethod.POST_COPY, MigrationMethod.HYBRID)
    dumped = p.minimal_dump_bytes if lazy else (residual if method is MigrationMethod.PRE_COPY else dump)
    restored = 0.0 if lazy else dump
    stopped = [
        Phase(name="dump", duration_s=p.dump_fixed_s + p.dump_s_per_mib * (0.0 if lazy else dumped) / MIB),
        Phase(name="transfer", duration_s=max(dumped, volume) / link, transferred_bytes=dumped + volume),
        Phase(
            name="restore",
            duration_s=p.restore_fixed_s + p.restore_s_per_mib * restored / MIB + (p.lazy_start_s if lazy else 0.0),
        ),
        Phase(name="address move", duration_s=p.address_move_s),
    ]
    fetched = {MigrationMethod.POST_COPY: dump, MigrationMethod.HYBRID: residual}.get(method, 0.0)
    degraded_s = fetched / (inputs.bandwidth_bytes_per_s * p.lazy_share)
    after = [Phase(name="lazy pages", duration_s=degraded_s, transferred_bytes=fetched)] if lazy else []
    before_s, stopped_s = sum(x.duration_s for x in before), sum(x.duration_s for x in stopped)
    return MigrationDuration(
        method=method,
        total_s=before_s + stopped_s + degraded_s,
        downtime_s=stopped_s + (p.predump_freeze_s if before else 0.0),
        downtime_starts_s=before_s - (p.predump_freeze_s if before else 0.0),
        degraded_s=degraded_s,
        phases=(*before, *stopped, *after),
    )


def predict_p95(
    method: MigrationMethod, inputs: MigrationInputs, parameters: DurationParameters = DEFAULT_PARAMETERS
) -> MigrationDuration:
    """The migration that 95 of 100 do not exceed, in total time and in downtime."""
    return predict(method, inputs, parameters).scaled(math.exp(1.6449 * parameters.noise_sigma))


def hard_bound(
    method: MigrationMethod, inputs: MigrationInputs, parameters: DurationParameters = DEFAULT_PARAMETERS
) -> MigrationDuration:
    """What no emulated migration exceeds."""
    return predict(method, inputs, parameters).scaled(math.exp(parameters.noise_bound_sigmas * parameters.noise_sigma))


def draw(
    method: MigrationMethod,
    inputs: MigrationInputs,
    rng: np.random.Generator,
    parameters: DurationParameters = DEFAULT_PARAMETERS,
) -> MigrationDuration:
    """One migration as it happens: the median times one lognormal factor, truncated at the hard bound."""
    z = float(np.clip(rng.standard_normal(), -parameters.noise_bound_sigmas, parameters.noise_bound_sigmas))
    return predict(method, inputs, parameters).scaled(math.exp(z * parameters.noise_sigma))


def best_method(inputs: MigrationInputs, parameters: DurationParameters = DEFAULT_PARAMETERS) -> MigrationDuration:
    """The method with the least `loss_s`, as its median migration; ties go to the order of `MigrationMethod`."""
    return min((predict(m, inputs, parameters) for m in MigrationMethod), key=lambda d: d.loss_s(parameters))


def _predump_s(dump_bytes: float, p: DurationParameters) -> float:
    return p.predump_fixed_s + p.predump_s_per_mib * dump_bytes / MIB
