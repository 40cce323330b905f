"""The schedule of a service: laws of every plan, waves and refusals, and plans made anew while it runs."""

from __future__ import annotations

import itertools
import math
import os
import pickle
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from natwork_ray.domain.migrations import MigrationForecast
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import decode, encode
from natwork_ray.errors import ExitCode, UsageError
from natwork_ray.limi.fluid import Job, Stage, simulate
from natwork_ray.limi.schedule import plan, replan
from natwork_ray.limi.service_plan import (
    Gate,
    Growth,
    LinkCapacity,
    Member,
    MigrationPlan,
    Milestone,
    NodeRoom,
    Observation,
    ScheduleRequest,
    Section,
)
from natwork_ray.limi.waves import ScheduleRefusedError

some = settings(max_examples=500 if os.environ.get("LIMI_DEEP") else 15)
BANDWIDTH = {"west": 100.0, "east": 40.0}
GATES: tuple[tuple[Gate, ...], ...] = (
    (), (Gate.FREEZE,), (Gate.FREEZE, Gate.RESTORE), (Gate.FREEZE, Gate.ATTACH), tuple(Gate)
)  # fmt: skip


def member(
    name: str,
    *,
    live: Section | None = None,
    stopped: Section | None = None,
    lazy: Section | None = None,
    restore_s: float = 0.2,
    attach_s: float = 0.05,
    link: str = "west",
    slow: float = 1.2,
    **more: object,
) -> Member:
    forecast = MigrationForecast(
        method=MigrationMethod.PRE_COPY,
        total_p50_s=2.0,
        total_p95_s=2.0 * slow,
        downtime_p50_s=1.0,
        downtime_p95_s=slow,
    )
    given_parts: dict[str, object] = {
        "container": name, "source": "s", "target": "t", "forecast": forecast, "path": (link,),
        "rate_bytes_per_s": 0.9 * BANDWIDTH[link], "lazy_rate_bytes_per_s": 0.5 * BANDWIDTH[link],
        "live": live or Section(), "stopped": stopped or Section(fixed_s=0.1), "lazy": lazy or Section(),
        "restore_s": restore_s, "attach_s": attach_s, **more,
    }  # fmt: skip
    return Member(**given_parts)  # type: ignore[arg-type]


def service(*members: Member, gates: tuple[Gate, ...] = tuple(Gate), **more: object) -> ScheduleRequest:
    links = tuple(LinkCapacity(name=name, bytes_per_s=rate) for name, rate in BANDWIDTH.items())
    return ScheduleRequest(service="shop", members=members, links=links, gates=gates, **more)  # type: ignore[arg-type]


sections = st.builds(Section, fixed_s=st.floats(0, 3), transfer_bytes=st.floats(0, 300))
nodes = st.sampled_from(["s", "t", "u"])


@st.composite
def members(draw: st.DrawFn, name: str) -> Member:
    source, target = draw(st.tuples(nodes, nodes).filter(lambda n: n[0] != n[1]))
    return member(
        name,
        live=draw(sections),
        stopped=draw(sections),
        lazy=draw(sections),
        restore_s=draw(st.floats(0, 1)),
        attach_s=draw(st.floats(0, 0.1)),
        link=draw(st.sampled_from(sorted(BANDWIDTH))),
        source=source,
        target=target,
        cpu_cores=draw(st.sampled_from([0.5, 1.0, 2.0])),
        memory_bytes=draw(st.sampled_from([10.0, 40.0])),
    )


@st.composite
def services(draw: st.DrawFn, most: int = 7) -> ScheduleRequest:
    count = draw(st.integers(1, most))
    names = [f"c{i}" for i in range(count)]
    parts = []
    for i, name in enumerate(names):
        calls = draw(st.lists(st.sampled_from(names[i + 1 :]), max_size=2, unique=True)) if i + 1 < count else []
        parts.append(replace(draw(members(name)), calls=tuple(calls)))
    rooms = tuple(
        NodeRoom(
            node=n, cpu_cores=draw(st.sampled_from([0.0, 2.0, 100.0])), memory_bytes=draw(st.sampled_from([40.0, 1e3]))
        )
        for n in draw(st.lists(nodes, unique=True, max_size=3))
    )
    return service(*parts, rooms=rooms, gates=draw(st.sampled_from(GATES)))


def planned(request: ScheduleRequest) -> MigrationPlan:
    try:
        return plan(request)
    except ScheduleRefusedError:
        assume(False)
        raise


@given(services())
@some
def test_laws_of_every_plan(request: ScheduleRequest) -> None:
    made = planned(request)
    assert [m.container for m in made.migrations] == [m.container for m in request.members]
    for row in made.migrations:
        assert 0 <= row.start_s <= row.freeze_s + 1e-9
        assert row.freeze_s <= row.restore_s + 1e-9 <= row.attach_s + 2e-9 <= row.arrival_s + 3e-9
        assert row.arrival_s <= row.finish_s + 1e-9
        # A wave arrives together.
        assert row.arrival_s == pytest.approx(made.arrivals_s[row.wave], abs=1e-9)
    for earlier, later in itertools.pairwise(range(len(made.arrivals_s))):
        over = max(m.finish_s for m in made.migrations if m.wave == earlier)
        assert all(m.start_s >= over - 1e-9 for m in made.migrations if m.wave == later)
    assert made.disruption.split_s >= 0
    assert decode(MigrationPlan, encode(made)) == made
    assert plan(request) == made


@given(services())
@some
def test_rooms_are_never_overdrawn(request: ScheduleRequest) -> None:
    made = planned(request)
    times = {m.container: m for m in made.migrations}
    moments = sorted({t for m in made.migrations for t in (m.start_s, m.finish_s)})
    for room in request.rooms:
        for moment in moments:
            taken = [0.0, 0.0]
            for m in request.members:
                row = times[m.container]
                # At the target from the start on; at the source until the last page is out.
                sign = (m.target == room.node and row.start_s <= moment) - (
                    m.source == room.node and row.finish_s <= moment
                )
                taken[0] += sign * m.cpu_cores
                taken[1] += sign * m.memory_bytes
            assert taken[0] <= room.cpu_cores + 1e-6
            assert taken[1] <= room.memory_bytes + 1e-6


@given(services(most=5))
@some
def test_the_world_of_the_planner_does_what_the_plan_says(request: ScheduleRequest) -> None:
    """Start times alone, played forwards: everybody arrives together, as planned."""
    request = replace(request, gates=(), rooms=())
    made = plan(request)
    capacity = {k.name: k.bytes_per_s for k in request.links}
    jobs = []
    for m, row in zip(request.members, made.migrations, strict=True):
        stages = [
            Stage(fixed_s=s.fixed_s, transfer_bytes=s.transfer_bytes, links=m.path, rate_bytes_per_s=m.rate_bytes_per_s)
            for s in (m.live, m.stopped)
        ]
        jobs.append(Job(row.start_s, (*stages, Stage(fixed_s=m.restore_s), Stage(fixed_s=m.attach_s))))
    for row, ends in zip(made.migrations, simulate(jobs, capacity), strict=True):
        assert ends[-1] == pytest.approx(row.arrival_s, abs=1e-6)
        assert ends[0] == pytest.approx(row.freeze_s, abs=1e-6)


@given(services(), st.floats(1, 20))
@some
def test_more_bandwidth_never_makes_it_later(request: ScheduleRequest, factor: float) -> None:
    request = replace(request, gates=tuple(Gate))
    faster = replace(request, links=tuple(replace(k, bytes_per_s=k.bytes_per_s * factor) for k in request.links))
    slow, fast = planned(request), plan(faster)
    assert fast.arrivals_s[-1] <= slow.arrivals_s[-1] + 1e-6


@given(services(most=5))
@some
def test_gates_hold_down_the_time_in_which_nobody_is_served(request: ScheduleRequest) -> None:
    """With gates, no container stands still for what only others copy."""
    made = planned(replace(request, gates=tuple(Gate)))
    for wave in range(len(made.arrivals_s)):
        rows = [m for m in made.migrations if m.wave == wave]
        parts = {m.container: m for m in request.members}
        ready_s = min(m.freeze_s for m in rows)
        for row in rows:
            live = parts[row.container].live
            assert row.start_s + live.alone_s(parts[row.container].rate_bytes_per_s) <= ready_s + 1e-6


def test_two_that_share_a_link() -> None:
    one = member("one", stopped=Section(fixed_s=0.5, transfer_bytes=90), restore_s=0.3)
    two = member("two", stopped=Section(fixed_s=0.5, transfer_bytes=45), restore_s=0.2)
    made = plan(service(one, two))
    # 45 + 45 bytes at 50 each take 0.9 s, the last 45 alone at 90 take 0.5 s; then restore (0.3) and attach (0.05).
    first, second = made.migrations
    assert made.arrivals_s == pytest.approx((0.5 + 1.4 + 0.3 + 0.05,))
    assert first.freeze_s == pytest.approx(0.0)
    assert second.freeze_s == pytest.approx(0.5)
    assert made.disruption.unavailable_s == pytest.approx(made.arrivals_s[0])
    assert "one (pre-copy) is down longest" in made.reasons[-1]


def test_a_live_copy_is_over_before_anybody_is_frozen() -> None:
    copied = member("copied", live=Section(fixed_s=1.0, transfer_bytes=90))
    cold = member("cold", stopped=Section(fixed_s=0.1, transfer_bytes=180))
    made = plan(service(copied, cold))
    by_name = {m.container: m for m in made.migrations}
    assert by_name["copied"].start_s == 0
    assert by_name["cold"].start_s == by_name["cold"].freeze_s == pytest.approx(2.0)
    assert by_name["copied"].freeze_s == pytest.approx(2.0 + 0.1 + 2.0 - 0.1)
    # Without gates the cold one is frozen while the other still copies, and both are slower for it.
    assert plan(service(copied, cold, gates=())).disruption.total_s > made.disruption.total_s


def test_what_grows_while_it_waits_takes_longer() -> None:
    long = member("long", stopped=Section(fixed_s=4.0))
    files = Growth(bytes_per_s=9.0, room_bytes=18.0)
    waits = member("waits", stopped=Section(fixed_s=0.1), growth=(files,))
    still = member("waits", stopped=Section(fixed_s=0.1))
    grown, same = plan(service(long, waits)).migrations[1], plan(service(long, still)).migrations[1]
    assert grown.freeze_s == pytest.approx(same.freeze_s - 18.0 / 90.0)
    # From the start of the plan on, where nothing was copied: 1 s of somebody else's live copy counts as well.
    copied = member("copied", live=Section(fixed_s=1.0))
    from_start = member("waits", stopped=Section(fixed_s=0.1), growth=(replace(files, from_start=True),))
    assert plan(service(copied, from_start)).arrivals_s[0] == pytest.approx(1.0 + 0.1 + 9.0 / 90.0 + 0.25)
    # Lazy pages come after the arrival.
    lazy = member("lazy", stopped=Section(fixed_s=0.1), growth=(replace(files, lazy=True),))
    after = plan(service(long, lazy)).migrations[1]
    assert after.finish_s - after.arrival_s == pytest.approx(18.0 / 50.0)
    assert after.freeze_s == pytest.approx(same.freeze_s)


def test_no_room_for_all_makes_waves_and_keeps_callers_and_callees_together() -> None:
    names = ["a", "x", "b", "y"]
    calls = {"a": ("b",), "x": ("y",)}
    parts = [member(n, cpu_cores=1.0, source=f"s-{n}", calls=calls.get(n, ())) for n in names]
    parts[2], parts[3] = (replace(p, target="t2") for p in parts[2:])
    rooms = (NodeRoom(node="t", cpu_cores=2.0, memory_bytes=0.0), NodeRoom(node="t2", cpu_cores=1.0, memory_bytes=0.0))
    with pytest.raises(ScheduleRefusedError) as refused:
        plan(service(*parts, rooms=rooms))
    (short,) = refused.value.shortages
    assert (short.node, short.resource, short.needed, short.free) == ("t2", "cores", 1.0, 0.0)
    assert refused.value.exit_code is ExitCode.REFUSED
    assert pickle.loads(pickle.dumps(refused.value)).shortages == refused.value.shortages  # noqa: S301

    # b makes room on t2 for y by leaving it.
    parts[2] = replace(parts[2], source="t2", target="t3")
    parts[3] = replace(parts[3], cpu_cores=2.0)
    made = plan(service(*parts, rooms=(rooms[0], NodeRoom(node="t2", cpu_cores=1.0, memory_bytes=0.0))))
    assert made.waves[1] == ("y",)
    assert "2 waves" in made.reasons[0]


def test_a_swap_needs_room_on_one_side() -> None:
    there = member("there", source="s", target="t", cpu_cores=2.0)
    back = member("back", source="t", target="s", cpu_cores=2.0)
    full = (NodeRoom(node="s", cpu_cores=0.0, memory_bytes=0.0), NodeRoom(node="t", cpu_cores=0.0, memory_bytes=0.0))
    with pytest.raises(ScheduleRefusedError, match="2 of 2 containers"):
        plan(service(there, back, rooms=full))
    made = plan(service(there, back, rooms=(full[0], replace(full[1], cpu_cores=2.0))))
    assert made.waves == (("there",), ("back",))


def seen(name: str, milestone: Milestone, *reached: tuple[Milestone, float]) -> Observation:
    return Observation(container=name, milestone=milestone, reached_s=reached)


LONG = member("long", live=Section(fixed_s=10.0), stopped=Section(fixed_s=1.0))
SHORT = member("short", live=Section(fixed_s=2.0), stopped=Section(fixed_s=0.5))


def test_a_copy_that_takes_longer_puts_off_who_has_not_started() -> None:
    request = service(LONG, SHORT)
    made = plan(request)
    assert made.migrations[1].start_s == pytest.approx(8.0)
    running = seen("long", Milestone.LIVE, (Milestone.LIVE, 0.0))
    # On time: as planned. Overdue since two seconds: expected at any moment, and nothing is begun in the past.
    assert replan(request, made, [running], 7.0).migrations[1].start_s == pytest.approx(8.0)
    late = replan(request, made, [running], 12.0)
    assert late.migrations[1].start_s == pytest.approx(12.0)
    assert late.migrations[0].freeze_s == pytest.approx(14.0)
    # Earlier than planned: the other begins at once, and everybody arrives when it has copied.
    early = seen("long", Milestone.AT_FREEZE, (Milestone.LIVE, 0.0), (Milestone.AT_FREEZE, 6.0))
    hurried = replan(request, made, [early], 6.0)
    assert hurried.migrations[1].start_s == pytest.approx(6.0)
    assert hurried.arrivals_s[0] == pytest.approx(6.0 + 2.0 + 1.0 + 0.25)


def test_who_may_be_slow_is_frozen_earlier_once_it_runs() -> None:
    request = service(LONG, SHORT)
    made = plan(request)
    ready = [
        seen(n, Milestone.AT_FREEZE, (Milestone.LIVE, 0.0), (Milestone.AT_FREEZE, 10.0)) for n in ("long", "short")
    ]
    again = replan(request, made, ready, 10.0)
    assert again.migrations[0].freeze_s == pytest.approx(10.0)
    assert again.migrations[1].freeze_s == pytest.approx(11.0 - 1.2 * 0.5)
    assert made.migrations[1].freeze_s == pytest.approx(11.0 - 0.5)


@pytest.mark.parametrize("gates", GATES, ids=str)
def test_what_has_arrived_stays_as_it_was(gates: tuple[Gate, ...]) -> None:
    request = service(LONG, SHORT, gates=gates)
    made = plan(request)
    arrived = seen(
        "short", Milestone.FINISHED,
        (Milestone.LIVE, 1.0), (Milestone.AT_FREEZE, 3.0), (Milestone.STOPPED, 3.0), (Milestone.AT_RESTORE, 4.0),
        (Milestone.RESTORING, 4.1), (Milestone.AT_ATTACH, 4.3), (Milestone.ATTACHING, 4.4), (Milestone.ARRIVED, 4.5),
        (Milestone.FINISHED, 5.0),
    )  # fmt: skip
    running = seen("long", Milestone.LIVE, (Milestone.LIVE, 0.0))
    row = replan(request, made, [arrived, running], 6.0).migrations[1]
    assert (row.start_s, row.freeze_s, row.arrival_s, row.finish_s) == (1.0, 3.0, 4.5, 5.0)


@given(services(most=4), st.data())
@some
def test_nothing_is_planned_into_the_past_and_what_happened_is_kept(
    request: ScheduleRequest, data: st.DataObject
) -> None:
    made = planned(replace(request, rooms=()))
    now_s = data.draw(st.floats(0, 2 * made.finish_s + 1))
    order = tuple(Milestone)
    observed = []
    for name in (m.container for m in request.members):
        count = data.draw(st.integers(0, order.index(Milestone.FINISHED)))
        moments = sorted(data.draw(st.lists(st.floats(0, now_s), min_size=count, max_size=count)))
        observed.append(seen(name, order[count], *zip(order[1 : count + 1], moments, strict=True)))
    again = replan(request, made, observed, now_s)
    for row, one in zip(again.migrations, observed, strict=True):
        for milestone, planned_s in (
            (Milestone.LIVE, row.start_s),
            (Milestone.STOPPED, row.freeze_s),
            (Milestone.RESTORING, row.restore_s),
            (Milestone.ATTACHING, row.attach_s),
            (Milestone.ARRIVED, row.arrival_s),
            (Milestone.FINISHED, row.finish_s),
        ):
            happened = one.at_s(milestone)
            if happened is None:
                assert planned_s >= now_s - 1e-9
            else:
                assert planned_s == happened


def test_who_failed_is_left_out() -> None:
    request = service(LONG, SHORT)
    made = plan(request)
    failed = seen("long", Milestone.FAILED, (Milestone.LIVE, 0.0), (Milestone.FAILED, 3.0))
    again = replan(request, made, [failed], 3.0)
    assert again.migrations[0] == made.migrations[0]
    assert again.arrivals_s[0] == pytest.approx(3.0 + 2.0 + 0.5 + 0.25)
    assert "long failed" in again.reasons[0]


@pytest.mark.parametrize(
    "broken",
    [
        {"members": ()},
        {"members": (member("one"), member("one"))},
        {"members": (member("one", target="s"),)},
        {"members": (member("one", path=()),)},
        {"members": (member("one", path=("nowhere",)),)},
        {"members": (member("one", rate_bytes_per_s=0.0),)},
        {"links": ()},
    ],
)
def test_requests_that_make_no_sense(broken: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        plan(replace(service(member("one")), **broken))  # type: ignore[arg-type]


def test_observations_that_make_no_sense() -> None:
    request = service(LONG, SHORT)
    made = plan(request)
    with pytest.raises(UsageError, match="other containers"):
        replan(service(LONG), made, [], 0.0)
    with pytest.raises(UsageError, match="stranger"):
        replan(request, made, [seen("stranger", Milestone.WAITING)], 0.0)
    with pytest.raises(UsageError, match="nan"):
        replan(request, made, [], math.nan)
