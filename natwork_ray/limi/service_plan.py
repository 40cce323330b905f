"""What the schedule of a network service is made from, and what it says: values without behaviour of their own.

D3.3 section 2.1: containers that depend on each other are migrated in parallel, so timed that they reach their
destination at the same time. A `Member` is one of them with its forecast, cut into four sections:

    live      it still serves on the source: checks, preparation, pre-dumps and what they send
    stopped   from the freeze until everything that a restore needs is on the target and verified
    restore   then the address move: it serves on the target from the end of that on; this is its *arrival*
    lazy      it serves, but some of its memory is still on the source (post-copy and hybrid)

Between them stand the gates, where a migration can be held: before the freeze it still serves; before the restore its
source can still take it back; before the address move it runs on the target but cannot be reached.

    >>> Section(fixed_s=0.1, transfer_bytes=1e6).alone_s(1e7)
    0.2
"""

from __future__ import annotations

from enum import StrEnum

from natwork_ray.domain.migrations import MigrationForecast
from natwork_ray.domain.phases import Gate as Gate
from natwork_ray.domain.phases import OnFailure as OnFailure
from natwork_ray.domain.values import value


@value
class Section:
    """A part of a migration between two gates: a time that nothing shortens, then bytes over the member's path."""

    fixed_s: float = 0.0
    transfer_bytes: float = 0.0

    def alone_s(self, rate_bytes_per_s: float) -> float:
        """How long it takes with the path to itself."""
        return self.fixed_s + self.transfer_bytes / rate_bytes_per_s


@value
class Growth:
    """What waiting for the freeze adds to a transfer, until `room_bytes` have been added.

    It counts from the end of the live section (a copy was made there), or from the start of the plan (`from_start`:
    nothing was copied, so everything that is written waits). `lazy`: it travels after the arrival.
    """

    bytes_per_s: float
    room_bytes: float
    from_start: bool = False
    lazy: bool = False

    def after_s(self, seconds: float) -> float:
        """Bytes added by waiting so long."""
        return min(self.room_bytes, self.bytes_per_s * max(0.0, seconds))


@value
class Member:
    """One container of the service, and how its migration is forecast to go with its path to itself.

    Attributes:
        path: names of the links that its images cross.
        rate_bytes_per_s: what one transfer reaches on an idle path; lazy_rate_bytes_per_s: likewise, lazy pages.
        restore_s, attach_s: the two parts of the third section; nothing crosses the link.
        cpu_cores, memory_bytes: what a node has to hold free for it.
        calls: the containers that it calls.
        growth: what waiting costs: memory that is written again after a pre-copy, files that are written meanwhile.
    """

    container: str
    source: str
    target: str
    forecast: MigrationForecast
    path: tuple[str, ...]
    rate_bytes_per_s: float
    lazy_rate_bytes_per_s: float
    live: Section
    stopped: Section
    restore_s: float
    attach_s: float
    lazy: Section
    cpu_cores: float = 0.0
    memory_bytes: float = 0.0
    calls: tuple[str, ...] = ()
    growth: tuple[Growth, ...] = ()

    @property
    def caution(self) -> float:
        """By how much a slow migration (p95) exceeds the median, as a factor of at least 1."""
        if self.forecast.downtime_p50_s <= 0:
            return 1.0
        return max(1.0, self.forecast.downtime_p95_s / self.forecast.downtime_p50_s)


@value
class LinkCapacity:
    """What a link carries in one direction for migrations."""

    name: str
    bytes_per_s: float


@value
class NodeRoom:
    """What a node has free before the service moves; its own members of the service count as not free."""

    node: str
    cpu_cores: float
    memory_bytes: float


@value
class NodeDistance:
    """Round trip between two nodes; within a node it is 0."""

    a: str
    b: str
    rtt_s: float


@value
class ScheduleRequest:
    """All that planning needs. See `natwork_ray.limi.schedule.plan` for what is checked.

    Attributes:
        gates: where members can be held; without any, start times are all there is.
        rooms: nodes that are not named have room for everything.
        distances: pairs that are not named are `far_s` apart.
        split_weight: what a second counts, as a share of a second of downtime, in which every call of the service has
            to take a longer way than before and after the move.
    """

    service: str
    members: tuple[Member, ...]
    links: tuple[LinkCapacity, ...]
    rooms: tuple[NodeRoom, ...] = ()
    distances: tuple[NodeDistance, ...] = ()
    gates: tuple[Gate, ...] = tuple(Gate)
    on_failure: OnFailure = OnFailure.BRING_BACK
    split_weight: float = 0.25
    far_s: float = 0.001

    def rtt_s(self, a: str, b: str) -> float:
        """Round trip between two nodes."""
        if a == b:
            return 0.0
        return next((d.rtt_s for d in self.distances if {d.a, d.b} == {a, b}), self.far_s)


@value
class PlannedMigration:
    """When each part of one member's migration begins, in seconds from the start of the plan.

    It is down from `freeze_s` to `arrival_s`. Moments without a gate are what is expected, the others are orders.
    """

    container: str
    wave: int
    start_s: float
    freeze_s: float
    restore_s: float
    attach_s: float
    arrival_s: float
    finish_s: float


@value
class Disruption:
    """What a move costs the users of a service (docs/schedule.md has the definition).

    Attributes:
        unavailable_s: time in which at least one container of the service is down.
        split_s: share of the service's calls that take a longer way than before and after, summed over the time in
            which nobody is down.
        degraded_s: time in which at least one container waits for pages; reported, not part of the total.
        total_s: unavailable_s + split weight x split_s.
    """

    unavailable_s: float
    split_s: float
    degraded_s: float
    total_s: float


@value
class MigrationPlan:
    """A schedule. `reasons` say in words why there are several waves, and what decides the moment of arrival.

    `migrations` in the order of the request; `arrivals_s` has one moment per wave.
    """

    service: str
    gates: tuple[Gate, ...]
    migrations: tuple[PlannedMigration, ...]
    arrivals_s: tuple[float, ...]
    disruption: Disruption
    reasons: tuple[str, ...]

    @property
    def waves(self) -> tuple[tuple[str, ...], ...]:
        """Containers that arrive together, wave by wave."""
        return tuple(
            tuple(m.container for m in self.migrations if m.wave == wave) for wave in range(len(self.arrivals_s))
        )

    @property
    def finish_s(self) -> float:
        """When the last page has arrived."""
        return max((m.finish_s for m in self.migrations), default=0.0)

    def of(self, container: str) -> PlannedMigration | None:
        """The part about one container."""
        return next((m for m in self.migrations if m.container == container), None)


class Milestone(StrEnum):
    """How far a member's migration is, in order; the last one can be reached from any."""

    WAITING = "waiting"
    LIVE = "live"
    AT_FREEZE = "at freeze"
    STOPPED = "stopped"
    AT_RESTORE = "at restore"
    RESTORING = "restoring"
    AT_ATTACH = "at attach"
    ATTACHING = "attaching"
    ARRIVED = "arrived"
    FINISHED = "finished"
    FAILED = "failed"


@value
class Observation:
    """How far a member is, and since when (seconds from the start of the plan).

    `reached_s` has the moments of the milestones so far, in their order.
    """

    container: str
    milestone: Milestone
    reached_s: tuple[tuple[Milestone, float], ...] = ()

    def at_s(self, milestone: Milestone) -> float | None:
        """When it passed a milestone."""
        return next((at for reached, at in self.reached_s if reached is milestone), None)
