"""Migrations of the emulated testbed: records, contention among those under way, the choice of a method."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from natwork_ray.domain.actions import ActionOutcome, Gate, Migrate, OnFailure, Restart, ServiceMove
from natwork_ray.domain.migrations import ContainerLoad, MigrationRecord, MigrationState
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.migration_nodes import OBSERVE_S
from natwork_ray.emulation.moves import downtime_from_s, remaining, settled_at_s
from natwork_ray.emulation.ports import EmulatedRuntime, EmulatedServiceHands
from natwork_ray.emulation.scenarios import smart_city
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import ActionError, ConflictError, NotFoundError
from natwork_ray.limi.arrivals import arrivals_of
from natwork_ray.limi.choosing import ByEquations, MethodChoice
from natwork_ray.limi.steps import Verb

CITY = smart_city()
BIG = Migrate(key="big", container="video-analytics", source="edge-1", target="core-1", method=MigrationMethod.PRE_COPY)
LATER = Migrate(
    key="later", container="sensor-ingest", source="edge-1", target="core-1", method=MigrationMethod.PRE_COPY
)
BACK = Migrate(key="back", container="dashboard", source="core-1", target="edge-1", method=MigrationMethod.COLD)


def record_of(outcome: ActionOutcome) -> MigrationRecord:
    assert outcome.record is not None
    return outcome.record


def test_the_outcome_is_what_the_record_says() -> None:
    testbed = Testbed(CITY, seed=2)
    testbed.advance(100)
    outcome = testbed.apply(BIG)
    record = record_of(outcome)
    assert (record.key, record.source, record.target, record.backend) == ("big", "edge-1", "core-1", Backend.EMULATED)
    assert (record.state, record.chosen_by) == (MigrationState.MIGRATED, "operator")
    assert outcome.started_at_s == record.started_at_s == 100
    assert outcome.finished_at_s == pytest.approx(100 + record.total_s)
    assert outcome.downtime_s == record.downtime_s
    assert {phase.name for phase in record.phases} - {phase.name for phase in outcome.phases} == {
        Verb.SETTLE_SOURCE,
        Verb.SETTLE_TARGET,
    }


def test_records_can_be_listed_while_and_after() -> None:
    testbed = Testbed(CITY, seed=2)
    testbed.advance(100)
    assert testbed.migrations() == ()
    final = record_of(testbed.apply(BIG))
    begun = testbed.migrations()[0]
    assert (begun.state, begun.runs_on, begun.phases, begun.total_s) == (MigrationState.RUNNING, "edge-1", (), 0)
    testbed.advance(110)
    while settled_at_s(final) > testbed.now_s:
        under_way = testbed.migrations()[0]
        moved = downtime_from_s(final) + final.downtime_s <= testbed.now_s
        assert under_way.state is MigrationState.RUNNING
        assert under_way.runs_on == ("core-1" if moved else "edge-1")
        assert set(under_way.phases) < set(final.phases)
        assert under_way.client_downtime_s is None
        testbed.advance(testbed.now_s + 10)
    assert testbed.migrations() == (final,)
    testbed.apply(Restart(key="r", container="auth"))
    assert testbed.migrations() == (final,)


def test_the_later_one_feels_what_the_earlier_one_has_still_to_send() -> None:
    alone = Testbed(CITY, seed=2)
    alone.advance(110)
    free = record_of(alone.apply(LATER))
    testbed = Testbed(CITY, seed=2)
    testbed.advance(100)
    first = record_of(testbed.apply(BIG))
    testbed.advance(110)
    second = record_of(testbed.apply(LATER))
    assert second.total_s > 1.2 * free.total_s
    assert testbed.migrations()[0].started_at_s == first.started_at_s
    assert record_of(testbed.apply(BIG)) == first  # promised, and kept
    # The other way round the link is another way, and afterwards the way is free.
    third = record_of(testbed.apply(BACK))
    assert third.total_s == pytest.approx(record_of(alone.apply(BACK)).total_s)
    assert remaining(first, settled_at_s(first)) == ()


def test_what_remains_shrinks_to_nothing() -> None:
    testbed = Testbed(CITY, seed=2)
    record = record_of(testbed.apply(replace(BIG, method=MigrationMethod.HYBRID)))
    left = [
        sum(phase.transferred_bytes for phase in remaining(record, record.total_s * tenths / 10))
        for tenths in range(11)
    ]
    assert left == sorted(left, reverse=True)
    assert left[0] > 1.5e9  # three replicas of half a gigabyte
    assert left[-1] == 0
    assert Verb.PAGES_SERVED not in {phase.name for phase in remaining(record, 0.0)}


class Always:
    """A chooser that is told what was measured, and takes hybrid."""

    def __init__(self) -> None:
        self.asked: list[tuple[ContainerLoad, float]] = []

    def choose(self, load: ContainerLoad, methods: Sequence[MigrationMethod], *, weight: float) -> MethodChoice:
        self.asked.append((load, weight))
        choice = ByEquations().choose(load, methods, weight=weight)
        return replace(choice, method=MigrationMethod.HYBRID, chosen_by="model")


def test_a_chooser_sees_a_measured_load() -> None:
    chooser = Always()
    testbed = Testbed(CITY, seed=2, chooser=chooser, weight=0.3)
    testbed.advance(100)
    outcome = testbed.apply(replace(BIG, method=None))
    record = record_of(outcome)
    assert (record.method, record.chosen_by) == (MigrationMethod.HYBRID, "model")
    assert record.forecast is not None
    assert record.forecast.method is MigrationMethod.HYBRID
    ((load, weight),) = chooser.asked
    assert record.load == load
    assert weight == 0.3
    rss = CITY.profiles["video-analytics"].rss_bytes
    assert 3 * 0.9 * rss < load.memory_bytes < 3 * 1.3 * rss
    assert 0 < load.bandwidth_bytes_per_s < 1.2 * 125e6
    assert record.started_at_s > 100 + OBSERVE_S
    testbed.apply(replace(BIG, key="w", container="mqtt-broker", method=None, weight=0.9))
    assert chooser.asked[1][1] == 0.9


def test_without_a_chooser_the_equations_choose() -> None:
    testbed = Testbed(CITY, seed=2)
    record = record_of(testbed.apply(replace(BIG, method=None)))
    assert record.load is not None
    assert record.chosen_by == "rule"
    assert record.method is ByEquations().choose(record.load, tuple(MigrationMethod), weight=0.2).method


@pytest.mark.parametrize("method", [None, MigrationMethod.COLD])
def test_a_start_can_be_put_off(method: MigrationMethod | None) -> None:
    testbed = Testbed(CITY, seed=2)
    testbed.advance(100)
    record = record_of(testbed.apply(replace(BIG, method=method, not_before_s=130.0)))
    assert record.started_at_s == pytest.approx(130.0, abs=0.02)


def test_outcomes_depend_on_seed_and_key_only() -> None:
    def played(*order: Migrate, seed: int = 2) -> dict[str, MigrationRecord]:
        testbed = Testbed(CITY, seed=seed)
        return {i.key: record_of(testbed.apply(i)) for i in order}

    # Also those on the same link, at the same moment.
    assert played(BIG, LATER, BACK) == played(BACK, LATER, BIG)
    assert played(BIG, seed=3) != played(BIG)
    assert played(replace(BIG, key="other"))["other"].total_s != played(BIG)["big"].total_s


def test_it_is_accepted_inside_of_a_running_loop() -> None:
    testbed = Testbed(CITY, seed=2)
    outcome = asyncio.run(EmulatedRuntime(testbed).migrate(BIG))
    assert record_of(outcome) == record_of(Testbed(CITY, seed=2).apply(BIG))


def test_a_dry_measurement_is_the_one_that_would_be_made() -> None:
    testbed = Testbed(CITY, seed=2)
    testbed.advance(100)
    before = testbed.digest()
    load = testbed.measure("video-analytics", "core-1")
    assert testbed.digest() == before
    assert testbed.migrations() == ()
    assert record_of(testbed.apply(replace(BIG, method=None))).load == load
    for container, target, error in (
        ("ghost", "core-1", NotFoundError), ("auth", "mars", NotFoundError), ("auth", "edge-2", ActionError),
    ):  # fmt: skip
        with pytest.raises(error):
            testbed.measure(container, target)


# Services, moved together.


def together(testbed: Testbed, target: str = "core-1") -> tuple[Migrate, ...]:
    """What the loop orders when a person wants all of edge-1's traffic service elsewhere."""
    move = ServiceMove(id="d-1", service="video", gates=tuple(Gate), on_failure=OnFailure.BRING_BACK, patience_s=60.0)
    chooser, found = ByEquations(), []
    for number, name in enumerate(("video-analytics", "sensor-ingest")):
        load = testbed.measure(name, target)
        choice = chooser.choose(load, tuple(MigrationMethod), weight=0.2)
        found.append(
            Migrate(
                key=f"d-1/{number}", container=name, source="edge-1", target=target, method=choice.method, load=load,
                forecast=choice.forecast, chosen_by="rule", together=move,
            )
        )  # fmt: skip
    return tuple(found)


def test_a_service_is_conducted_in_one_virtual_time() -> None:
    testbed = Testbed(CITY, seed=2)
    testbed.advance(100)
    orders = together(testbed)
    outcomes = testbed.apply_together(orders)
    arrivals = arrivals_of([record_of(o) for o in outcomes])
    assert arrivals.arrived == ("video-analytics", "sensor-ingest")
    assert arrivals.spread_pct is not None
    assert arrivals.spread_pct < 5.0
    assert [o.key for o in outcomes] == [i.key for i in orders]
    assert testbed.apply_together(orders) == outcomes, "answered, not moved again"
    assert [testbed.effects(i.key) for i in orders] == [1, 1]
    testbed.advance(200)
    assert {testbed.topology().container(i.container).node for i in orders} == {"core-1"}  # type: ignore[union-attr]
    same = Testbed(CITY, seed=2)
    same.advance(100)
    assert same.apply_together(together(same)) == outcomes
    apart = Testbed(CITY, seed=2)
    apart.advance(100)
    alone = arrivals_of([record_of(apart.apply(replace(i, together=None))) for i in orders])
    assert alone.spread_s > arrivals.spread_s  # type: ignore[operator]


def test_a_service_that_cannot_go_whole_does_not_go() -> None:
    testbed = Testbed(CITY, seed=2)
    testbed.advance(100)
    orders = together(testbed)
    testbed.apply(Restart(key="r", container="sensor-ingest"))
    with pytest.raises(ActionError, match="under way"):
        testbed.apply_together(orders)
    hands = EmulatedServiceHands(testbed)
    outcomes = asyncio.run(hands.move_together(orders, testbed.topology()))
    assert [(o.done, "under way" in o.error) for o in outcomes] == [(False, True)] * 2
    assert [testbed.effects(i.key) for i in orders] == [0, 0]
    testbed.advance(200)
    done = testbed.apply_together(orders)
    assert all(o.done for o in done)
    with pytest.raises(ConflictError):
        testbed.apply_together((orders[0], replace(orders[1], target="edge-2")))
