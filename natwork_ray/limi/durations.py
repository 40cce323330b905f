"""How long a live migration takes, by method, in closed form (D3.3 section 2.1: cold, pre-copy, post-copy, hybrid).

The phases are those that D3.3 lists (pre-dump, dump, parallel transfer of dump and volume deltas with the move of the
address, restore), in the order of `natwork_ray.limi.plan`; what each costs is in `natwork_ray.limi.phase_times`. With M
the dump, D the rate at which pages are dirtied, WS the writable working set, B the link's bandwidth, V the volume
delta, M_k what the k-th round of pre-copy leaves and V_1 what the volume gains meanwhile:

    M_1 = min(WS, D * (t_pd(M) + M/B)),  M_k+1 = min(WS, D * (t_pd(M_k) + M_k/B))
    cold       down = t_f + t_d(M) + (M beside V)/B + t_r(M) + t_arp,          total = t_0 + down
    pre-copy   down = t_f + t_d(M_n) + (M_n beside V_1)/B + t_r(M) + t_arp,    total = t_0 + rounds + down
    post-copy  down = t_f + t_d(0) + (m_0 beside V)/B + t_r(0) + t_arp,        total = t_0 + down + M/B_lazy
    hybrid     down = t_f + t_d(0) + (m_0 beside V_1)/B + t_r(0) + t_arp,      total = t_0 + round + down + M_1/B_lazy

Pre-copy still restores all of M (t_r(M), not t_r(M_n)): CRIU reads the whole image back. Rounds end as the state
machine ends them (`plan.another_round`). "Beside": the volume starts with the freeze, the dump's transfer once it is
written; while both are under way they share the link.

    >>> inputs = MigrationInputs(dump_bytes=50 * MIB, dirty_bytes_per_s=1 * MIB, working_set_bytes=15 * MIB,
    ...                          bandwidth_bytes_per_s=119 * MIB)
    >>> best_method(inputs).method.value
    'pre-copy'

Left out here, and present in the emulated laboratory: other transfers on the link, faults, noise phase by phase, and
the backlog that queues while a container stands still.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.domain.phases import MigrationMethod, Phase
from natwork_ray.errors import UsageError
from natwork_ray.limi import phase_times, plan
from natwork_ray.limi.phase_times import DEFAULT_PARAMETERS as DEFAULT_PARAMETERS
from natwork_ray.limi.phase_times import MIB as MIB
from natwork_ray.limi.phase_times import DurationParameters as DurationParameters
from natwork_ray.limi.steps import Verb

MAX_ROUNDS = 5  # of pre-copy, as `MigrationStarted.max_rounds`

# For a caller that knows no more than the resident set. The share is that of the one published pair of dumps
# (229 MB, then 90 MB: lxc issue 1299); the rate is assumed at the upper end of the emulated services.
TYPICAL_WORKING_SET_SHARE = 0.39
TYPICAL_DIRTY_SHARE_PER_S = 0.05
TYPICAL_VOLUME_BYTES = 32 * MIB  # assumed: more than any emulated service gains between two rsync runs
_SEEN_WHOLE = 0.8  # of what could have been dirtied; measurements have errors
TYPICAL_RTT_S = 0.02  # assumed: more than any link of the emulation


@dataclass(frozen=True)
class MigrationInputs:
    """What a migration's duration depends on.

    Attributes:
        dump_bytes: M, the memory image; taken as resident memory x replicas (their relation is not published).
        dirty_bytes_per_s: D, 0 or more.
        working_set_bytes: WS, at most `dump_bytes`; more is treated as `dump_bytes`.
        bandwidth_bytes_per_s: B, what the link offers a new transfer, above 0.
        volume_delta_bytes: V, what the writable file system has gained.
        volume_bytes: all of that file system; less than `volume_delta_bytes` is treated as that.
        volume_write_bytes_per_s: how fast V grows.
        rtt_s: round trip of the link.
        cpu_cores, cpu_limit_cores: use and limit of CPU; a limit of 0 is none.
    """

    dump_bytes: float
    dirty_bytes_per_s: float
    working_set_bytes: float
    bandwidth_bytes_per_s: float
    volume_delta_bytes: float = 0.0
    volume_bytes: float = 0.0
    volume_write_bytes_per_s: float = 0.0
    rtt_s: float = 0.0
    cpu_cores: float = 0.0
    cpu_limit_cores: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "bandwidth_bytes_per_s" and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"migration input {name} = {value}", hint="it must be finite and not negative")
        if not (math.isfinite(self.bandwidth_bytes_per_s) and self.bandwidth_bytes_per_s > 0):
            raise UsageError(
                f"migration input bandwidth_bytes_per_s = {self.bandwidth_bytes_per_s}",
                hint="it must be finite and above zero",
            )

    @classmethod
    def of(cls, load: ContainerLoad) -> MigrationInputs:
        """What was measured of a container and its path.

        A working set that grew until the measurement ended was not seen whole: then at least the typical share of
        memory is taken for it.

        Raises:
            UsageError: the load names no path (bandwidth 0).
        """
        working_set = load.working_set_bytes
        if working_set >= _SEEN_WHOLE * load.dirty_bytes_per_s * load.observed_s:
            working_set = max(working_set, TYPICAL_WORKING_SET_SHARE * load.memory_bytes)
        return cls(
            dump_bytes=load.memory_bytes,
            dirty_bytes_per_s=load.dirty_bytes_per_s,
            working_set_bytes=working_set,
            bandwidth_bytes_per_s=load.bandwidth_bytes_per_s,
            volume_delta_bytes=load.volume_delta_bytes,
            volume_bytes=load.volume_bytes,
            volume_write_bytes_per_s=load.volume_write_bytes_per_s,
            rtt_s=load.rtt_s,
            cpu_cores=load.cpu_cores,
            cpu_limit_cores=load.cpu_limit_cores,
        )


@dataclass(frozen=True)
class MigrationDuration:
    """One migration as predicted.

    `downtime_s` is the part of `total_s` in which nobody is served, from the freeze to the move of the address;
    `degraded_s` the part in which pages are fetched on demand; `phases` lie in time by `starts_s` and overlap, the last
    one ends at `total_s`. `downtime_starts_s` counts from the start. The short freezes of pre-dumps are not counted.
    """

    method: MigrationMethod
    total_s: float
    downtime_s: float
    downtime_starts_s: float
    degraded_s: float
    phases: tuple[Phase, ...]

    def loss_s(self, parameters: DurationParameters = DEFAULT_PARAMETERS, *, weight: float | None = None) -> float:
        """What `best_method` minimises: downtime and lost work while degraded against total time, by `weight`.

        `weight` is the share of total time, 0 to 1; None takes the parameters'.
        """
        share = parameters.total_weight if weight is None else weight
        lost_s = self.downtime_s + parameters.degradation * self.degraded_s
        return (1 - share) * lost_s + share * self.total_s


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
        rtt_s=TYPICAL_RTT_S,
    )


def predict(
    method: MigrationMethod, inputs: MigrationInputs, parameters: DurationParameters = DEFAULT_PARAMETERS
) -> MigrationDuration:
    """The median migration, alone on its link."""
    course = _Course(inputs, parameters)
    volume = inputs.volume_delta_bytes
    residual = inputs.dump_bytes
    if method in plan.ROUNDS:
        residual, volume = course.rounds(method)
    lazy = method in plan.LAZY
    stopped_s = course.now_s
    course.stop(residual, volume, lazy=lazy)
    up_s = course.now_s
    if lazy:
        course.fetch(residual)
    return MigrationDuration(
        method=method,
        total_s=course.now_s,
        downtime_s=up_s - stopped_s,
        downtime_starts_s=stopped_s,
        degraded_s=course.now_s - up_s,
        phases=tuple(course.phases),
    )


class _Course:
    """The phases of one migration, one after the other or side by side."""

    def __init__(self, inputs: MigrationInputs, p: DurationParameters) -> None:
        self._i, self._p = inputs, p
        self._working_set = min(inputs.working_set_bytes, inputs.dump_bytes)
        self._volume = max(inputs.volume_bytes, inputs.volume_delta_bytes)
        self.phases: list[Phase] = []
        self.now_s = 0.0
        # What the target does costs a round trip to ask for it.
        self._add("check", p.check_s + inputs.rtt_s)
        self._add("prepare", max(p.prepare_s + p.check_s + inputs.rtt_s, p.open_path_s))

    def _add(self, name: str, lasts_s: float, sent: float = 0.0) -> None:
        self.phases.append(Phase(name=name, starts_s=self.now_s, duration_s=lasts_s, transferred_bytes=sent))
        self.now_s += lasts_s

    def rounds(self, method: MigrationMethod) -> tuple[float, float]:
        """Pre-copy; what is left of memory and of the volume."""
        sent: tuple[float, ...] = ()
        residual, copied_s = self._i.dump_bytes, self.now_s
        while plan.another_round(method, max_rounds=MAX_ROUNDS, residuals=sent):
            began_s = self.now_s
            took_s = phase_times.pre_dump_s(
                residual, cpu_cores=self._i.cpu_cores, cpu_limit_cores=self._i.cpu_limit_cores, p=self._p
            )
            self._add(Verb.PRE_DUMP.value, took_s, 0.0)
            volume = self._i.volume_delta_bytes if not sent else 0.0
            self._side_by_side(residual, volume, began_s, Verb.PRE_DUMP_TRANSFER, Verb.VOLUME_PRE_TRANSFER)
            sent = (*sent, residual)
            residual = phase_times.residual_bytes(
                working_set_bytes=self._working_set,
                dirty_bytes_per_s=self._i.dirty_bytes_per_s,
                elapsed_s=self.now_s - began_s,
            )
        left = phase_times.volume_residual_bytes(
            volume_bytes=self._volume,
            write_bytes_per_s=self._i.volume_write_bytes_per_s,
            elapsed_s=self.now_s - copied_s,
            p=self._p,
        )
        return residual, left

    def stop(self, residual: float, volume: float, *, lazy: bool) -> None:
        """From the freeze to the moved address."""
        p, limit = self._p, self._i.cpu_limit_cores
        self._add(Verb.FREEZE.value, p.freeze_s)
        began_s, written = self.now_s, 0.0 if lazy else residual
        self._add(Verb.DUMP.value, phase_times.dump_s(written, cpu_limit_cores=limit, p=p))
        self._side_by_side(p.minimal_dump_bytes + written, volume, began_s, Verb.DUMP_TRANSFER, Verb.VOLUME_TRANSFER)
        restored_s = phase_times.restore_s(self._i.dump_bytes, lazy=lazy, cpu_limit_cores=limit, p=p)
        self._add(Verb.RESTORE.value, restored_s + self._i.rtt_s)
        self._add(Verb.ADDRESS_MOVE.value, p.address_move_s + self._i.rtt_s)

    def fetch(self, residual: float) -> None:
        """Lazy pages: they begin with the restore's end, while the address still moves."""
        p = self._p
        lasts_s = residual / (self._i.bandwidth_bytes_per_s * p.lazy_share)
        lasts_s += phase_times.demand_faults_s(residual, self._working_set, self._i.rtt_s, p)
        self._add(Verb.PAGES_FETCHED.value, max(0.0, lasts_s - p.address_move_s), residual)

    def _side_by_side(self, images: float, volume: float, volume_began_s: float, name: Verb, beside: Verb) -> None:
        """Images from now on, the volume since `volume_began_s`, both over the one link."""
        p, i = self._p, self._i
        flows = [(self.now_s + phase_times.transfer_start_s(i.rtt_s, p), images)]
        if self._volume > 0 and volume > 0:
            flows.append((volume_began_s + phase_times.volume_start_s(self._volume, i.rtt_s, p), volume))
        ceiling = i.bandwidth_bytes_per_s * p.transfer_share
        ends = shared_ends_s(flows, ceiling=ceiling, capacity=i.bandwidth_bytes_per_s)
        self.phases.append(
            Phase(name=name.value, starts_s=self.now_s, duration_s=ends[0] - self.now_s, transferred_bytes=images)
        )
        if len(ends) == 2:
            lasts_s = ends[1] - volume_began_s
            self.phases.append(
                Phase(name=beside.value, starts_s=volume_began_s, duration_s=lasts_s, transferred_bytes=volume)
            )
        self.now_s = max(ends)


def shared_ends_s(flows: Sequence[tuple[float, float]], *, ceiling: float, capacity: float) -> list[float]:
    """When one or two flows (start, bytes) end that share a link evenly, each at most at `ceiling`.

    >>> shared_ends_s([(0.0, 100.0), (0.0, 50.0)], ceiling=80.0, capacity=100.0)
    [1.625, 1.0]
    """
    if len(flows) == 1:
        return [flows[0][0] + flows[0][1] / ceiling]
    (first_s, first), (second_s, second) = flows
    if first_s > second_s:
        return shared_ends_s([flows[1], flows[0]], ceiling=ceiling, capacity=capacity)[::-1]
    if first_s + first / ceiling <= second_s:
        return [first_s + first / ceiling, second_s + second / ceiling]
    rate = min(ceiling, capacity / 2)
    left = first - ceiling * (second_s - first_s)
    both_s = min(left, second) / rate
    met_s = second_s + both_s
    if left <= second:
        return [met_s, met_s + (second - left) / ceiling]
    return [met_s + (left - second) / ceiling, met_s]


def predict_p95(
    method: MigrationMethod, inputs: MigrationInputs, parameters: DurationParameters = DEFAULT_PARAMETERS
) -> MigrationDuration:
    """The migration that 95 of 100 do not exceed, in total time and in downtime; phases grow with the total.

    Phases have noise of their own beside what they have in common, so that a sum varies less than its parts.
    """
    usual = predict(method, inputs, parameters)
    down_from_s, down_to_s = usual.downtime_starts_s, usual.downtime_starts_s + usual.downtime_s
    total = _p95_factor(usual.phases, 0.0, usual.total_s, parameters)
    return replace(
        usual,
        total_s=usual.total_s * total,
        downtime_s=usual.downtime_s * _p95_factor(usual.phases, down_from_s, down_to_s, parameters),
        downtime_starts_s=usual.downtime_starts_s * total,
        degraded_s=usual.degraded_s * total,
        phases=tuple(
            replace(phase, starts_s=phase.starts_s * total, duration_s=phase.duration_s * total)
            for phase in usual.phases
        ),
    )


def _p95_factor(phases: Sequence[Phase], from_s: float, to_s: float, p: DurationParameters) -> float:
    """How much longer a stretch of time is in the 95th of 100 cases than in the median one."""
    parts = [min(to_s, x.starts_s + x.duration_s) - max(from_s, x.starts_s) for x in phases]
    # Side by side, the longer of two phases decides: counting both is on the safe side.
    own = sum(max(0.0, part) ** 2 for part in parts) / (to_s - from_s) ** 2
    return math.exp(1.6449 * math.sqrt(p.common_sigma**2 + p.phase_sigma**2 * own))


def best_method(
    inputs: MigrationInputs, parameters: DurationParameters = DEFAULT_PARAMETERS, *, weight: float | None = None
) -> MigrationDuration:
    """The method with the least `loss_s`, as its median migration; ties go to the order of `MigrationMethod`."""
    return min(
        (predict(m, inputs, parameters) for m in MigrationMethod), key=lambda d: d.loss_s(parameters, weight=weight)
    )
