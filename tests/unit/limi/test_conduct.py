"""A schedule while it runs: holds, releases, failures, and a world that is slower than its forecasts."""

from __future__ import annotations

import heapq
import itertools
import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natwork_ray.domain.migrations import MigrationForecast
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.errors import ConflictError, NotFoundError
from natwork_ray.limi.conduct import (
    Abort,
    Begin,
    Command,
    Conductor,
    OneByOne,
    Reached,
    Release,
    ScheduleEvent,
    ScheduleRun,
    StartTogether,
    Tick,
    WakeAt,
)
from natwork_ray.limi.schedule import plan
from natwork_ray.limi.service_plan import (
    Gate,
    LinkCapacity,
    Member,
    Milestone,
    NodeRoom,
    OnFailure,
    ScheduleRequest,
    Section,
)

_STEPS = (
    # What is reached when a part ends, the gate there, and what passing it reaches.
    (Milestone.AT_FREEZE, Gate.FREEZE, Milestone.STOPPED),
    (Milestone.AT_RESTORE, Gate.RESTORE, Milestone.RESTORING),
    (Milestone.AT_ATTACH, Gate.ATTACH, Milestone.ATTACHING),
)


def member(name: str, live_s: float, stopped_s: float, **more: object) -> Member:
    forecast = MigrationForecast(
        method=MigrationMethod.PRE_COPY, total_p50_s=live_s + stopped_s, total_p95_s=1.2 * (live_s + stopped_s),
        downtime_p50_s=stopped_s, downtime_p95_s=1.2 * stopped_s,
    )  # fmt: skip
    given_parts: dict[str, object] = {
        "container": name, "source": f"s-{name}", "target": "t", "forecast": forecast, "path": ("k",),
        "rate_bytes_per_s": 1.0, "lazy_rate_bytes_per_s": 1.0, "live": Section(fixed_s=live_s),
        "stopped": Section(fixed_s=stopped_s), "restore_s": 0.2, "attach_s": 0.05, "lazy": Section(fixed_s=0.1), **more,
    }  # fmt: skip
    return Member(**given_parts)  # type: ignore[arg-type]


def service(*members: Member, **more: object) -> ScheduleRequest:
    links = (LinkCapacity(name="k", bytes_per_s=1.0),)
    return ScheduleRequest(service="shop", members=members, links=links, **more)  # type: ignore[arg-type]


class World:
    """Carries out what a conductor says; parts take what they really take. `fails`: at the end of which part."""

    def __init__(
        self, members: tuple[Member, ...], factors: dict[str, tuple[float, ...]], fails: dict[str, int]
    ) -> None:
        self.parts = {
            m.container: [
                f * s
                for f, s in zip(
                    factors.get(m.container, (1.0,) * 4),
                    (m.live.fixed_s, m.stopped.fixed_s, m.restore_s, m.attach_s),
                    strict=True,
                )
            ]
            for m in members
        }
        self.lazy_s = {m.container: m.lazy.fixed_s for m in members}
        self.fails = fails
        self.log: list[tuple[float, Command]] = []
        self.at: dict[str, dict[Milestone, float]] = {m.container: {} for m in members}
        self.released: dict[str, set[Gate]] = {m.container: set() for m in members}
        self.waiting: dict[str, tuple[Gate, Milestone, int]] = {}
        self.queue: list[tuple[float, int, ScheduleEvent]] = []
        self.numbers = itertools.count()
        self.over: set[str] = set()
        self.now = 0.0

    def run(self, conductor: Conductor) -> World:
        self.put(0.0, Tick(at_s=0.0))
        while self.queue:
            self.now, _, event = heapq.heappop(self.queue)
            if isinstance(event, Reached):
                if event.container in self.over:
                    continue
                self.at[event.container][event.milestone] = self.now
                if event.milestone in (Milestone.FAILED, Milestone.FINISHED):
                    self.over.add(event.container)
            for command in conductor.handle(event):
                self.log.append((self.now, command))
                self.obey(command)
            if isinstance(event, Reached):
                self.go_on(event, conductor.gates)
        return self

    def put(self, at_s: float, event: ScheduleEvent) -> None:
        heapq.heappush(self.queue, (at_s, next(self.numbers), replace(event, at_s=at_s)))

    def reach(self, name: str, milestone: Milestone, at_s: float) -> None:
        self.put(at_s, Reached(at_s=at_s, container=name, milestone=milestone))

    def part(self, name: str, number: int, reached: Milestone) -> None:
        failed = self.fails.get(name) == number
        self.reach(name, Milestone.FAILED if failed else reached, self.now + self.parts[name][number])

    def obey(self, command: Command) -> None:
        match command:
            case Begin(container=name):
                self.part(name, 0, Milestone.AT_FREEZE)
            case Release(container=name, gate=gate):
                self.released[name].add(gate)
                if self.waiting.get(name, (None,))[0] is gate:
                    self.pass_gate(name, *self.waiting.pop(name))
            case Abort(container=name):
                self.reach(name, Milestone.FAILED, self.now + 0.01)
            case WakeAt(at_s=at_s):
                self.put(at_s, Tick(at_s=at_s))

    def go_on(self, event: Reached, gates: frozenset[Gate]) -> None:
        name = event.container
        for number, (there, gate, beyond) in enumerate(_STEPS):
            if event.milestone is there:
                if gate in gates and gate not in self.released[name]:
                    self.waiting[name] = (gate, beyond, number)
                else:
                    self.pass_gate(name, gate, beyond, number)
        if event.milestone is Milestone.ARRIVED:
            self.reach(name, Milestone.FINISHED, self.now + self.lazy_s[name])

    def pass_gate(self, name: str, _gate: Gate, beyond: Milestone, number: int) -> None:
        self.at[name][beyond] = self.now
        self.reach(name, beyond, self.now)
        following = (Milestone.AT_RESTORE, Milestone.AT_ATTACH, Milestone.ARRIVED)[number]
        self.part(name, number + 1, following)

    def arrivals(self) -> list[float]:
        return [at[Milestone.ARRIVED] for at in self.at.values() if Milestone.ARRIVED in at]


def run_of(request: ScheduleRequest) -> ScheduleRun:
    return ScheduleRun(request, plan(request))


TRIO = (member("a", 4.0, 1.0), member("b", 1.0, 0.4), member("c", 0.1, 2.0))


def test_as_forecast_it_goes_as_planned() -> None:
    request = service(*TRIO)
    world = World(TRIO, {}, {}).run(run_of(request))
    made = plan(request)
    assert world.arrivals() == [pytest.approx(made.arrivals_s[0], abs=1e-5)] * 3
    began = {c.container: at for at, c in world.log if isinstance(c, Begin)}
    assert began == {m.container: pytest.approx(m.start_s, abs=1e-5) for m in made.migrations}


noise = st.floats(0.7, 1.45)


@given(st.lists(st.tuples(st.floats(0.05, 8), st.floats(0.1, 4), noise, noise, noise, noise), min_size=2, max_size=8))
@settings(max_examples=500 if os.environ.get("LIMI_DEEP") else 15)
def test_however_wrong_the_forecasts_they_arrive_within_the_noise_of_one_address_move(
    drawn: list[tuple[float, ...]],
) -> None:
    members = tuple(member(f"c{i}", live, stopped) for i, (live, stopped, *_) in enumerate(drawn))
    factors = {f"c{i}": tuple(fs) for i, (_, _, *fs) in enumerate(drawn)}
    run = run_of(service(*members))
    world = World(members, factors, {}).run(run)
    arrivals = world.arrivals()
    assert len(arrivals) == len(members)
    attach = [0.05 * fs[3] for fs in factors.values()]
    assert max(arrivals) - min(arrivals) <= max(attach) - min(attach) + 1e-5
    assert run.over
    assert not run.brought_back
    # Nobody was frozen before everybody had copied, or restored before everything was there.
    for before, after in ((Milestone.AT_FREEZE, Milestone.STOPPED), (Milestone.AT_RESTORE, Milestone.RESTORING)):
        assert min(a[after] for a in world.at.values()) >= max(a[before] for a in world.at.values())


def test_without_gates_only_starts_are_put_off() -> None:
    request = service(*TRIO, gates=())
    run = run_of(request)
    assert run.gates == frozenset()
    # a's copy takes two seconds longer; what has not begun by then is put off.
    world = World(TRIO, {"a": (1.5, 1, 1, 1)}, {}).run(run)
    assert not [c for _, c in world.log if isinstance(c, Release)]
    planned = {m.container: m.start_s for m in plan(request).migrations}
    began = {c.container: at for at, c in world.log if isinstance(c, Begin)}
    assert began["b"] == pytest.approx(planned["b"], abs=1e-5)
    assert max(world.arrivals()) == pytest.approx(7.25)


def test_waves_follow_each_other() -> None:
    members = tuple(
        replace(m, source=s, target=t, cpu_cores=1.0)
        for m, s, t in zip(TRIO, ("x", "t", "y"), ("t", "u", "t"), strict=True)
    )
    request = service(*members, rooms=(NodeRoom(node="t", cpu_cores=1.0, memory_bytes=0.0),))
    made = plan(request)
    assert len(made.waves) == 2
    world = World(members, {"b": (2.0, 2.0, 2.0, 2.0)}, {}).run(ScheduleRun(request, made))
    second = set(made.waves[1])
    began = {c.container: at for at, c in world.log if isinstance(c, Begin)}
    over = max(at[Milestone.FINISHED] for name, at in world.at.items() if name not in second)
    assert all(began[name] >= over - 1e-6 for name in second)


def test_a_failure_before_the_restores_brings_everybody_back() -> None:
    run = run_of(service(*TRIO))
    world = World(TRIO, {}, {"b": 1}).run(run)
    assert {c.container for _, c in world.log if isinstance(c, Abort)} == {"a", "c"}
    assert all("b failed" in c.reason for _, c in world.log if isinstance(c, Abort))
    assert world.arrivals() == []
    assert run.brought_back
    assert run.over


def test_a_failure_leaves_unbegun_ones_where_they_are() -> None:
    late = member("late", 0.1, 0.1)
    members = (member("a", 9.0, 1.0), member("b", 1.0, 0.4), late)
    run = run_of(service(*members))
    world = World(members, {"b": (0.5, 1, 1, 1)}, {"a": 0, "b": 0}).run(run)
    begun = {c.container for _, c in world.log if isinstance(c, Begin)}
    assert "a" in begun
    assert run.over
    assert {o.container for o in run.observed if o.milestone is Milestone.WAITING} == set(world.at) - begun


def test_a_failure_after_the_restores_began_goes_forward() -> None:
    run = run_of(service(*TRIO))
    world = World(TRIO, {}, {"b": 2}).run(run)
    assert not [c for _, c in world.log if isinstance(c, Abort)]
    assert len(world.arrivals()) == 2
    assert not run.brought_back


def test_carry_on_goes_on_without_who_failed() -> None:
    run = run_of(service(*TRIO, on_failure=OnFailure.CARRY_ON))
    world = World(TRIO, {}, {"a": 0}).run(run)
    assert not [c for _, c in world.log if isinstance(c, Abort)]
    arrivals = world.arrivals()
    assert len(arrivals) == 2
    assert max(arrivals) - min(arrivals) < 1e-5


def test_events_that_make_no_sense() -> None:
    run = run_of(service(*TRIO))
    run.handle(Tick(at_s=1.0))
    with pytest.raises(ConflictError, match="after one of"):
        run.handle(Tick(at_s=0.5))
    with pytest.raises(NotFoundError):
        run.handle(Reached(at_s=2.0, container="stranger", milestone=Milestone.LIVE))
    run.handle(Reached(at_s=2.0, container="a", milestone=Milestone.AT_FREEZE))
    run.handle(Reached(at_s=2.0, container="a", milestone=Milestone.AT_FREEZE))
    with pytest.raises(ConflictError, match="and now live"):
        run.handle(Reached(at_s=2.5, container="a", milestone=Milestone.LIVE))


def test_baselines() -> None:
    together = World(TRIO, {}, {}).run(StartTogether([m.container for m in TRIO]))
    assert {at for at, _ in together.log} == {0.0}
    assert sorted(together.arrivals()) == [pytest.approx(1.65), pytest.approx(2.35), pytest.approx(5.25)]
    one_by_one = World(TRIO, {}, {"b": 0}).run(OneByOne([m.container for m in TRIO]))
    began = {c.container: at for at, c in one_by_one.log if isinstance(c, Begin)}
    assert began == {"a": 0.0, "b": pytest.approx(5.35), "c": pytest.approx(6.35)}
