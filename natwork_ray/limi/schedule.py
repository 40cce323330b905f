"""When each container of a network service starts to migrate, so that all of them arrive together.

D3.3 section 2.1: the forecast of each migration time "is used to schedule the parallel migration of interdependent
CNFs ... to have the interdependent migrating CNFs reach their destination at the same time, minimizing the disruption".
D3.3 gives no algorithm. This one plans backwards from the common arrival, section by section (see
`natwork_ray.limi.service_plan`): within each, concurrent transfers share links, and one simulation run backwards
(`fluid.lead_times`) says how long before the common end each has to begin.

    1. waves    who may move at once, by the room on the nodes (`natwork_ray.limi.waves`); the rest follows per wave
    2. live     all end together: nobody is frozen while another still copies, so that no pre-dump slows the transfer
                of one that stands still
    3. stopped  all end together: a service is down as long as one container is, so downtimes are laid over each other
    4. restore  begins when everything is verified on all targets: until then all can go back
    5. attach   all end together: the arrival
    6. lazy     what follows; the next wave starts when the last page of this one is in

Sections between which nothing can be held (`ScheduleRequest.gates`) are planned in one piece. Without any gate start
times are all there is: exact when every forecast is, and as wrong as they are.

`replan` does the same from what was observed: what is over stays as it was, what runs is expected to end as forecast
(or any moment, once it is overdue), and what is still free is moved accordingly.

    >>> plan(request).arrivals_s                                                     # doctest: +SKIP
    (4.21,)

Rules kept: equal requests give equal plans; nothing starts before 0; with gates, one link per path and nothing that
grows while it waits, more bandwidth never makes the plan later. Left out: choosing methods for the service as a whole
(each container has its own forecast), and bandwidth limits for single transfers: everything is done by when they begin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from natwork_ray.errors import UsageError
from natwork_ray.limi.disruption import Move, measure
from natwork_ray.limi.fluid import Job, Stage, lead_times, simulate
from natwork_ray.limi.service_plan import (
    Disruption,
    Gate,
    Member,
    MigrationPlan,
    Milestone,
    Observation,
    PlannedMigration,
    ScheduleRequest,
)
from natwork_ray.limi.waves import waves_of

MAX_MEMBERS = 1024
_OVERDUE = 0.02  # of its length: when what should be over already is expected to end
_GROWTH_ROUNDS = 3
_NEWS_S = 0.001

ORDER = tuple(Milestone)


def plan(request: ScheduleRequest) -> MigrationPlan:
    """The schedule of a service that nobody has begun to move.

    Raises:
        UsageError: no member, one twice or too many, a path without links or a link without capacity.
        ScheduleRefusedError: the nodes have no room, in whatever order.
    """
    _check(request)
    return _timetable(request, waves_of(request), {}, 0.0, cautious=False)


def replan(
    request: ScheduleRequest, old: MigrationPlan, observed: Sequence[Observation], now_s: float
) -> MigrationPlan:
    """The schedule from `now_s` on. Waves stay as they are; members that failed are left out of the alignment.

    What is still to be frozen is frozen by as much earlier as a slow migration (p95) may need more than the median: one
    that comes too late holds up all others, one that comes too early waits while the service is down anyway.

    Raises:
        UsageError: the plan is of another service, somebody was observed who is not in it, or `now_s` is not finite.
    """
    names = {m.container for m in request.members}
    if {m.container for m in old.migrations} != names:
        raise UsageError("the plan has other containers than the request", hint="give the request it was made from")
    strangers = sorted({o.container for o in observed} - names)
    if strangers or not math.isfinite(now_s):
        raise UsageError(
            f"observed at {now_s} s: {', '.join(strangers) or 'nobody unknown'}",
            hint="observe containers of the plan, at a finite time",
        )
    return _timetable(request, old.waves, {o.container: o for o in observed}, now_s, cautious=True, old=old)


class _Part(NamedTuple):
    """A part of a migration with the milestones at its two ends, and the gate before it."""

    name: str
    begins: Milestone
    over: Milestone
    gate: Gate | None


_PARTS = (
    _Part("live", Milestone.LIVE, Milestone.AT_FREEZE, None),
    _Part("stopped", Milestone.STOPPED, Milestone.AT_RESTORE, Gate.FREEZE),
    _Part("restore", Milestone.RESTORING, Milestone.AT_ATTACH, Gate.RESTORE),
    _Part("attach", Milestone.ATTACHING, Milestone.ARRIVED, Gate.ATTACH),
)


@dataclass
class _Course:
    """One member on its way through a wave; times in seconds from the start of the plan."""

    member: Member
    seen: Observation
    caution: float
    begins: dict[str, float]
    ready_s: float = 0.0
    arrival_s: float = 0.0
    finish_s: float = 0.0
    extra_bytes: float = 0.0
    extra_lazy_bytes: float = 0.0


def _timetable(
    request: ScheduleRequest,
    waves: Sequence[Sequence[str]],
    observed: Mapping[str, Observation],
    now_s: float,
    *,
    cautious: bool,
    old: MigrationPlan | None = None,
) -> MigrationPlan:
    members = {m.container: m for m in request.members}
    capacity = {link.name: link.bytes_per_s for link in request.links}
    rows: dict[str, PlannedMigration] = {}
    arrivals: list[float] = []
    reasons: list[str] = []
    opens_s = 0.0
    for number, names in enumerate(waves):
        courses = []
        for name in names:
            seen = observed.get(name, Observation(container=name, milestone=Milestone.WAITING))
            if seen.milestone is Milestone.FAILED:
                reasons.append(f"{name} failed; the others are aligned without it")
                row = old.of(name) if old is not None else None
                if row is not None:
                    rows[name] = row
                continue
            courses.append(_Course(members[name], seen, members[name].caution if cautious else 1.0, {}))
        _wave(courses, request.gates, capacity, opens_s, now_s)
        _lazy_pages(courses, capacity, now_s)
        for course in courses:
            rows[course.member.container] = _row(course, number)
        arrivals.append(max((c.arrival_s for c in courses), default=opens_s))
        opens_s = max((c.finish_s for c in courses), default=opens_s)
        if courses:
            last = max(courses, key=lambda c: c.arrival_s - c.begins["stopped"])
            reasons.append(
                f"wave {number + 1} arrives at {arrivals[-1]:.2f} s; {last.member.container} "
                f"({last.member.forecast.method}) is down longest, for {last.arrival_s - last.begins['stopped']:.2f} s"
            )
    if len(waves) > 1:
        reasons.insert(0, f"{len(waves)} waves: the nodes have no room for all {len(members)} at once")
    migrations = tuple(rows[m.container] for m in request.members if m.container in rows)
    return MigrationPlan(
        service=request.service,
        gates=request.gates,
        migrations=migrations,
        arrivals_s=tuple(arrivals),
        disruption=_disruption(request, migrations, observed),
        reasons=tuple(reasons),
    )


def _wave(
    courses: Sequence[_Course], gates: Sequence[Gate], capacity: Mapping[str, float], opens_s: float, now_s: float
) -> None:
    """From gate to gate: all that lies between two of them ends together for everybody."""
    groups: list[list[_Part]] = []
    for part in _PARTS:
        if part.gate is None or part.gate in gates:
            groups.append([])
        groups[-1].append(part)
    for number, parts in enumerate(groups):
        stops = any(part.name == "stopped" for part in parts)
        grows = stops and any(c.member.growth for c in courses)
        common_s = opens_s
        # What waiting adds to a transfer makes the wait shorter: it converges at once.
        for _ in range(_GROWTH_ROUNDS if grows else 1):
            leads = lead_times([tuple(_stage(c, part) for part in parts) for c in courses], capacity)
            common_s = _align(courses, parts, leads, opens_s, now_s, last=number == len(groups) - 1)
            added = [
                _grow(c, c.ready_s if parts[0].name == "stopped" else c.begins["stopped"])
                for c in (courses if grows else ())
            ]
            if not any(added):
                break
        opens_s = common_s


def _grow(course: _Course, ready_s: float) -> bool:
    """Add what will have been written by the time of the freeze, beyond the forecast; whether that is news."""
    frozen_s = course.begins["stopped"]
    before = course.extra_bytes + course.extra_lazy_bytes
    course.extra_bytes = course.extra_lazy_bytes = 0.0
    for growth in course.member.growth:
        added = growth.after_s(frozen_s - (0.0 if growth.from_start else ready_s))
        if growth.lazy:
            course.extra_lazy_bytes += added
        else:
            course.extra_bytes += added
    news_bytes = abs(course.extra_bytes + course.extra_lazy_bytes - before)
    return news_bytes > _NEWS_S * course.member.rate_bytes_per_s


def _align(
    courses: Sequence[_Course],
    parts: Sequence[_Part],
    leads: Sequence[tuple[float, ...]],
    opens_s: float,
    now_s: float,
    *,
    last: bool,
) -> float:
    """Let `parts` end together: fills in when each of them begins for each member, and returns the common end.

    Nobody who is waiting begins before `opens_s` or before now. `last`: nothing can be held afterwards.
    """
    earliest = max(opens_s, now_s)
    common = opens_s
    for course, lead in zip(courses, leads, strict=True):
        common = max(common, _end(course.seen, parts, lead, earliest, now_s))
    for course, lead in zip(courses, leads, strict=True):
        # Where the next gate makes up for what is early, a slow member gets its time; restores begin as they may. A
        # late live part costs users nothing.
        hurried = not last and parts[0].gate is Gate.RESTORE
        margin = course.caution if not last and parts[0].gate is Gate.FREEZE else 1.0
        for number, part in enumerate(parts):
            begun = course.seen.at_s(part.begins)
            latest = earliest if hurried else common - (margin if number == 0 else 1.0) * lead[number]
            course.begins[part.name] = max(earliest, latest) if begun is None else begun
        end = course.seen.at_s(parts[-1].over)
        course.arrival_s = common if end is None else end
        if parts[-1].name == "live":
            course.ready_s = course.arrival_s
    return common


def _end(seen: Observation, parts: Sequence[_Part], lead: tuple[float, ...], earliest_s: float, now_s: float) -> float:
    """When a member is expected to have done `parts`, from the newest of its milestones."""
    over = seen.at_s(parts[-1].over)
    if over is not None:
        return over
    for number in reversed(range(len(parts))):
        begun = seen.at_s(parts[number].begins)
        if begun is not None:
            return max(begun + lead[number], now_s + _OVERDUE * lead[number])
    return earliest_s + lead[0]


def _stage(course: _Course, part: _Part) -> Stage:
    m = course.member
    if part.name in ("restore", "attach"):
        return Stage(fixed_s=m.restore_s if part.name == "restore" else m.attach_s)
    section = m.live if part.name == "live" else m.stopped
    grown = course.extra_bytes if part.name == "stopped" else 0.0
    return Stage(
        fixed_s=section.fixed_s,
        transfer_bytes=section.transfer_bytes + grown,
        links=m.path,
        rate_bytes_per_s=m.rate_bytes_per_s,
    )


def _lazy_pages(courses: Sequence[_Course], capacity: Mapping[str, float], now_s: float) -> None:
    jobs = []
    for course in courses:
        m = course.member
        pages = Stage(
            fixed_s=m.lazy.fixed_s,
            transfer_bytes=m.lazy.transfer_bytes + course.extra_lazy_bytes,
            links=m.path,
            rate_bytes_per_s=m.lazy_rate_bytes_per_s,
        )
        jobs.append(Job(course.arrival_s, (pages,)))
    for course, ends in zip(courses, simulate(jobs, capacity), strict=True):
        over = course.seen.at_s(Milestone.FINISHED)
        course.finish_s = max(now_s, ends[-1]) if over is None else over


def _row(course: _Course, wave: int) -> PlannedMigration:
    return PlannedMigration(
        container=course.member.container,
        wave=wave,
        start_s=course.begins["live"],
        freeze_s=course.begins["stopped"],
        restore_s=course.begins["restore"],
        attach_s=course.begins["attach"],
        arrival_s=course.arrival_s,
        finish_s=course.finish_s,
    )


def _disruption(
    request: ScheduleRequest, rows: Sequence[PlannedMigration], observed: Mapping[str, Observation]
) -> Disruption:
    failed = {name for name, seen in observed.items() if seen.milestone is Milestone.FAILED}
    moves = [
        Move(
            container=row.container,
            down=((row.freeze_s, row.arrival_s),),
            moved_s=row.arrival_s,
            degraded=((row.arrival_s, row.finish_s),),
        )
        for row in rows
        if row.container not in failed
    ]
    return measure(moves, members=request.members, rtt_s=request.rtt_s, split_weight=request.split_weight)


def _check(request: ScheduleRequest) -> None:
    names = [m.container for m in request.members]
    if not 1 <= len(names) <= MAX_MEMBERS:
        raise UsageError(f"a service of {len(names)} containers", hint=f"plan 1 to {MAX_MEMBERS} at a time")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"container {twice} is listed twice", hint="list each container of the service once")
    capacity = {link.name: link.bytes_per_s for link in request.links}
    for m in request.members:
        if m.source == m.target:
            raise UsageError(f"container {m.container} is on {m.target} already", hint="leave it out")
        for link in m.path:
            if not capacity.get(link, 0.0) > 0:
                raise UsageError(f"link {link} has no capacity", hint="list every link of a path with what it carries")
        if not m.path:
            raise UsageError(
                f"container {m.container} has no path", hint=f"name the links from {m.source} to {m.target}"
            )
        if min(m.rate_bytes_per_s, m.lazy_rate_bytes_per_s) <= 0:
            raise UsageError(f"container {m.container} has a rate of 0", hint="give what one transfer reaches")
