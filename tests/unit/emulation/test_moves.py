"""Migrations of the emulated testbed: records, contention among those under way, the choice of a method."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from natwork_ray.domain.actions import ActionOutcome, Migrate, Restart
from natwork_ray.domain.migrations import ContainerLoad, MigrationRecord, MigrationState
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import Backend
from natwork_ray.emulation.migration_nodes import OBSERVE_S
from natwork_ray.emulation.moves import downtime_from_s, remaining, settled_at_s
from natwork_ray.emulation.ports import EmulatedRuntime
from natwork_ray.emulation.scenarios import smart_city
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import ActionError, NotFoundError
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
