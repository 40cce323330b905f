"""Profiles in the loop: what was learnt, what drifted, and who may have a profile learnt anew."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from natwork_ray.control.events import DriftObserved, Event, ProfilesLearnt, RelearnRequested
from natwork_ray.control.loop import ControlLoop
from natwork_ray.control.normality import ALARMS_KEPT, SHORTEST_S
from natwork_ray.control.profile_keeping import DRIFT_EVERY_TURNS, DRIFT_HOURS_S, ORDERS_EVERY_TURNS, ProfileKeeper
from natwork_ray.control.service import Answer, ControlService
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.auditing import AuditKind
from natwork_ray.domain.profiles import MetricDrift, ProfileDrift, ProfilesInUse, ProfileSummary, Relearning
from natwork_ray.domain.telemetry import METRICS, N_METRICS, FlowShare, Metric, TelemetryWindow
from natwork_ray.errors import ConflictError, InputError, NotFoundError

CPU = METRICS.index(Metric.CPU)


def summary(service: str = "back", from_s: float = 0.0, to_s: float = 3600.0, digest: str = "d") -> ProfileSummary:
    return ProfileSummary(service=service, from_s=from_s, to_s=to_s, digest=digest, ranges=())


def drift(service: str = "back") -> ProfileDrift:
    metric = MetricDrift(metric="cpu_utilization", shift=2.5, outside=0.3, psi=0.9)
    return ProfileDrift(service=service, at_s=9000.0, metrics=(metric,))


def order(from_s: float = 4000.0, to_s: float = 5000.0, **fields: Any) -> RelearnRequested:
    wish = Relearning(**{"service": "back", "from_s": from_s, "to_s": to_s, "by": "ada", **fields})
    return RelearnRequested(id="r1", at_s=6000.0, order=wish)


@pytest.fixture
def loop(world: Any) -> ControlLoop:
    made = ControlLoop(world.predict)
    made.handle(world.run())
    return made


def test_what_was_learnt_is_kept_and_audited(loop: ControlLoop) -> None:
    step = loop.handle(ProfilesLearnt(id="p", at_s=0.0, profiles=(summary(), summary("front"))))
    assert [r.kind for r in step.records] == [AuditKind.PROFILE] * 2
    assert [p.service for p in loop.profiles().profiles] == ["back", "front"]


def test_a_drift_is_recorded_when_it_begins_and_when_it_ends(loop: ControlLoop) -> None:
    begun = loop.handle(DriftObserved(id="1", at_s=1.0, drifts=(drift(),)))
    still = loop.handle(DriftObserved(id="2", at_s=2.0, drifts=(drift(),)))
    assert (len(begun.records), len(still.records)) == (1, 0)
    assert loop.status().drifted == ("back",)
    ended = loop.handle(DriftObserved(id="3", at_s=3.0))
    assert ended.records[0].body == {"drift_ended": True}
    assert loop.status().drifted == ()


def test_an_order_stands_until_the_profile_is_learnt(loop: ControlLoop) -> None:
    loop.handle(DriftObserved(id="1", at_s=1.0, drifts=(drift(),)))
    loop.handle(order())
    assert [o.by for o in loop.profiles().relearning] == ["ada"]
    loop.handle(ProfilesLearnt(id="other", at_s=6001.0, profiles=(summary(from_s=1.0),)))
    assert len(loop.profiles().relearning) == 1  # that was another stretch
    loop.handle(ProfilesLearnt(id="this", at_s=6002.0, profiles=(summary(from_s=4000.0, to_s=5000.0, digest="new"),)))
    assert loop.profiles() == ProfilesInUse(profiles=(summary(from_s=4000.0, to_s=5000.0, digest="new"),))


def test_an_order_that_fails_is_over_too_and_says_why(loop: ControlLoop) -> None:
    loop.handle(order())
    step = loop.handle(ProfilesLearnt(id="p", at_s=6001.0, profiles=(), failed={"back": "its samples are gone"}))
    assert loop.profiles().relearning == ()
    assert step.records[0].body == {"not_learnt": "its samples are gone"}


@pytest.mark.parametrize(
    ("event", "error", "match"),
    [
        (order(service="nobody"), NotFoundError, "no service 'nobody'"),
        (order(to_s=6001.0), InputError, "not over"),
        (order(to_s=4000.0 + SHORTEST_S - 1), InputError, "too short"),
    ],
)
def test_orders_that_make_no_sense_change_nothing(
    loop: ControlLoop, event: RelearnRequested, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        loop.handle(event)
    assert loop.profiles() == ProfilesInUse()


def test_a_stretch_with_alarms_teaches_nothing_unless_a_person_insists(loop: ControlLoop, world: Any) -> None:
    loop.handle(world.verdicts(4500.0, world.verdict("back", AnomalyKind.HIGH_CPU)))
    with pytest.raises(ConflictError, match="1 alarms between 4000 and 5000"):
        loop.handle(order())
    loop.handle(replace(order(from_s=4500.0, to_s=5500.0), id="r2"))  # the alarm's sample is the last before it
    loop.handle(replace(order(forced=True), id="r3"))
    assert loop.profiles().relearning[0].forced


def test_alarms_of_others_do_not_matter(loop: ControlLoop, world: Any) -> None:
    loop.handle(world.verdicts(4500.0, world.verdict("front", AnomalyKind.HIGH_CPU)))
    loop.handle(order())
    assert len(loop.profiles().relearning) == 1


def test_what_is_no_longer_remembered_counts_as_alarm(loop: ControlLoop, world: Any) -> None:
    for turn in range(ALARMS_KEPT):
        loop._normality.alarmed("back", 5100.0 + turn / 10)
    with pytest.raises(ConflictError, match="more alarms than are remembered"):
        loop.handle(order())


def test_a_new_run_knows_nothing_of_the_one_before(loop: ControlLoop, world: Any) -> None:
    loop.handle(ProfilesLearnt(id="p", at_s=0.0, profiles=(summary(),)))
    loop.handle(world.run(id="again", at_s=10.0))
    assert loop.profiles() == ProfilesInUse()


class Stage:
    """Control and telemetry in one: a steady world that moves at `moved_at_s`."""

    def __init__(self, world: Any, service: ControlService, *, remembers_s: float = 1e9) -> None:
        self.service, self.remembers_s, self.moved_at_s = service, remembers_s, 1e9
        self.submitted: list[Event] = []

    async def submit(self, events: Sequence[Event]) -> tuple[Answer, ...]:
        self.submitted += events
        return self.service.submit(events)

    async def profiles(self) -> ProfilesInUse:
        return self.service.loop.profiles()

    async def window(self, *, end_s: float, length: int) -> TelemetryWindow:
        ends = end_s - 10.0 * np.arange(length)[::-1]
        if ends[0] < 0 or self.service.loop.at_s - ends[0] > self.remembers_s:
            raise InputError("that is long ago", hint="ask for what is there")
        rng = np.random.default_rng(abs(hash((end_s, length))) % 2**32)
        values = 50 * np.exp(0.2 * rng.standard_normal((2, length, N_METRICS)))
        values[1, ends > self.moved_at_s, CPU] *= 6
        return TelemetryWindow(
            containers=("front", "back"), services=("front", "back"), end_s=end_s, step_s=10.0,
            values=values.astype(np.float32),
        )  # fmt: skip

    async def node_usage(self, *, at_s: float) -> tuple[Any, ...]:
        return ()

    async def flows(self, containers: Sequence[str], *, at_s: float) -> Mapping[str, tuple[FlowShare, ...]]:
        return {}


class Journal:
    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}

    def events(self) -> Any:
        return iter(tuple(self.rows.items()))

    def has_event(self, event_id: str) -> bool:
        return event_id in self.rows

    def commit(self, events: Any, records: Any) -> None:
        self.rows.update(events)

    def close(self) -> None:
        return None


def _stage(world: Any, **fields: Any) -> Stage:
    service = ControlService(Journal(), world.predict)
    service.submit((world.run(at_s=3600.0),))
    return Stage(world, service, **fields)


async def _keeper(stage: Stage) -> ProfileKeeper:
    hour = await stage.window(end_s=3600.0, length=360)
    keeper = ProfileKeeper(control=stage, telemetry=stage, hour=hour)
    await keeper.begin(stage.service.loop.at_s)
    return keeper


def _pass(stage: Stage, world: Any, at_s: float) -> None:
    stage.service.submit((world.verdicts(at_s),))


def test_the_keeper_tells_what_it_learnt_once(world: Any) -> None:
    async def scene() -> None:
        stage = _stage(world)
        await _keeper(stage)
        await _keeper(stage)  # after a restart
        assert [e.id for e in stage.submitted] == ["profiles@3600.000"] * 2
        assert [p.service for p in stage.service.loop.profiles().profiles] == ["front", "back"]

    asyncio.run(scene())


def test_an_order_is_carried_out_and_survives_a_restart(world: Any) -> None:
    async def scene() -> None:
        stage = _stage(world)
        stage.moved_at_s = 5000.0
        keeper = await _keeper(stage)
        before = keeper.book
        _pass(stage, world, 9000.0)
        (answer,) = stage.service.submit((replace(order(from_s=6000.0, to_s=8000.0), at_s=9000.0),))
        answer.unwrap()
        at_s = 3600.0 + 10 * ORDERS_EVERY_TURNS * 90
        assert not await keeper.mind(at_s + 10)  # not every turn
        assert await keeper.mind(at_s)
        assert keeper.book.references(("front",)).tolist() == before.references(("front",)).tolist()
        assert keeper.book.references(("back",)).tolist() != before.references(("back",)).tolist()
        assert stage.service.loop.profiles().relearning == ()
        again = await _keeper(stage)
        assert again.book == keeper.book

    asyncio.run(scene())


def test_where_the_samples_are_gone_the_first_profile_is_used_and_the_loop_is_told(world: Any) -> None:
    async def scene() -> None:
        stage = _stage(world, remembers_s=20_000.0)
        keeper = await _keeper(stage)
        first = keeper.book
        _pass(stage, world, 30_000.0)
        stage.service.submit((replace(order(from_s=6000.0, to_s=8000.0), at_s=30_000.0),))
        assert await keeper.mind(3600.0 + 10 * ORDERS_EVERY_TURNS * 450)
        assert keeper.book == first
        event = stage.submitted[-1]
        assert isinstance(event, ProfilesLearnt)
        assert event.failed == {"back": "that is long ago"}
        assert event.profiles[0].to_s == 3600.0

    asyncio.run(scene())


def test_drift_is_looked_for_when_hours_have_passed(world: Any) -> None:
    async def scene() -> None:
        stage = _stage(world)
        keeper = await _keeper(stage)
        stage.moved_at_s = 4000.0
        steps = DRIFT_EVERY_TURNS
        for turns in (steps, round(DRIFT_HOURS_S / 10) + steps):
            at_s = 3600.0 + 10 * turns
            _pass(stage, world, at_s)
            await keeper.mind(at_s)
            assert stage.service.loop.status().drifted == (("back",) if turns > steps else ())

    asyncio.run(scene())
