"""Orders of a person: carried out in every mode, held against the world and the quota, answered once, replayed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from natwork_ray.config import SlaConfig
from natwork_ray.control.events import (
    Event,
    MigrationRequested,
    OutcomeReported,
    PlannedStart,
    ServiceMigrationRequested,
    TopologyObserved,
)
from natwork_ray.control.loop import ControlLoop, Step
from natwork_ray.control.service import StoredEvent
from natwork_ray.domain.actions import Gate, Migrate, MigrationMethod, OnFailure, ServiceMove
from natwork_ray.domain.auditing import AuditKind
from natwork_ray.domain.decisions import DecisionStatus, MitigationKind, Mode, Order
from natwork_ray.domain.migrations import (
    ContainerForecast,
    ContainerLoad,
    MigrationForecast,
    MigrationRecord,
    MigrationState,
)
from natwork_ray.domain.values import Backend, decode, encode
from natwork_ray.errors import ActionError, NotFoundError, UsageError

S = DecisionStatus


def started(world: Any, **fields: Any) -> ControlLoop:
    loop = ControlLoop(world.predict)
    loop.handle(world.run(**fields))
    return loop


def move(container: str = "front", target: str = "core", **fields: Any) -> MigrationRequested:
    return MigrationRequested(
        **{"id": "m-1", "at_s": 5.0, "by": "ada", **fields, "container": container, "target": target}
    )


def service(target: str | None = "cloud", **fields: Any) -> ServiceMigrationRequested:
    return ServiceMigrationRequested(
        **{"id": "s-1", "at_s": 5.0, "by": "ada", "service": "core", "target": target, **fields}
    )


def foretold(downtime_p95_s: float, method: MigrationMethod = MigrationMethod.COLD) -> MigrationForecast:
    return MigrationForecast(
        method=method,
        total_p50_s=3.0,
        total_p95_s=4.0,
        downtime_p50_s=downtime_p95_s / 2,
        downtime_p95_s=downtime_p95_s,
    )


TOGETHER = ServiceMove(
    id="", service="core", gates=tuple(Gate), on_failure=OnFailure.BRING_BACK, patience_s=6.0, arrives_s=3.0
)


@pytest.mark.parametrize("mode", list(Mode))
def test_an_order_is_carried_out_and_audited_in_every_mode(world: Any, mode: Mode) -> None:
    loop = started(world, mode=mode)
    step = loop.handle(move(note="maintenance", method=MigrationMethod.HYBRID, forecast=foretold(0.7)))
    (decision,) = step.decisions
    assert (decision.status, decision.mode, decision.mitigation) == (S.ISSUED, mode, MitigationKind.OPERATOR_MOVE)
    assert decision.order == Order(id="m-1", by="ada", note="maintenance")
    assert step.instructions == loop.outbox() == decision.instructions
    assert step.instructions == (
        Migrate(key="d-000001/0", container="front", source="edge", target="core", method=MigrationMethod.HYBRID),
    )
    assert [r.kind for r in step.records] == [AuditKind.DECISION, AuditKind.INSTRUCTION]
    account = next(q for q in loop.status().quota if q.container == "front")
    assert account.reserved_s == 0.7


def test_the_record_of_a_migration_is_kept_with_its_outcome(world: Any) -> None:
    loop = started(world)
    loop.handle(move())
    record = MigrationRecord(
        key="d-000001/0", container="front", source="edge", target="core", method=MigrationMethod.COLD,
        backend=Backend.EMULATED, state=MigrationState.MIGRATED, started_at_s=5.0, total_s=2.0, downtime_s=0.4,
        runs_on="core",
    )  # fmt: skip
    event = OutcomeReported(id="o", at_s=6.0, outcome=world.outcome("d-000001/0", downtime_s=0.4, record=record))
    step = loop.handle(event)
    assert loop.decision("d-000001").status is S.DONE
    assert loop.outcomes()[0].record == record
    assert step.records[0].body["outcome"]["record"]["runs_on"] == "core"
    again: StoredEvent = decode(StoredEvent, encode(StoredEvent(event=event)))
    assert again.event == event


@pytest.mark.parametrize(
    ("order", "why"),
    [
        (move(target="edge"), "runs on edge already"),
        (move("big", "core"), "needs 9.00 cores, core has 7.00 free"),
        (move("fat", "core"), "needs 8192 MiB, core has 7680 MiB free"),
        (move("lonely", "cloud"), "no link between island and cloud"),
        (move(forecast=foretold(50.0)), "up to 50.00 s of downtime, 43.20 s of quota are left"),
        (move(forecast=foretold(math.inf)), "no sound prediction"),
    ],
)
def test_what_cannot_be_is_a_decision_refused_with_its_reason(world: Any, order: MigrationRequested, why: str) -> None:
    containers = (
        world.container("front"),
        world.container("back", "core"),
        world.container("big", cpu_limit_cores=9.0),
        world.container("fat", memory_limit_bytes=8192 * 2.0**20),
        world.container("lonely", "island"),
    )
    base = world.topology(*containers)
    topology = replace(base, nodes=(*base.nodes, world.node("island")))
    loop = started(world, topology=topology, sla=SlaConfig(window_s=86_400))
    step = loop.handle(order)
    (decision,) = step.decisions
    assert decision.status is S.REFUSED
    assert why in decision.reason
    assert (step.instructions, loop.outbox()) == ((), ())
    assert [r.kind for r in step.records] == [AuditKind.DECISION]
    assert decision.instructions[0].container == order.container  # what would have been done stays readable


def test_without_a_measurement_the_limit_is_what_memory_can_be(world: Any) -> None:
    loop = started(world)
    (decision,) = loop.handle(move()).decisions
    assert decision.predicted_downtime_s == pytest.approx(0.5 + 512 * 2**20 / 1e8 / 1000)

    def unknowing(*_: Any, **__: Any) -> Any:
        raise ActionError("no model", hint="train one")

    blind = ControlLoop(unknowing)
    blind.handle(world.run())
    (refused,) = blind.handle(move()).decisions
    assert refused.status is S.REFUSED
    assert "cannot be predicted" in refused.reason


@pytest.mark.parametrize(
    ("order", "error"),
    [
        (move("ghost"), NotFoundError),
        (move(target="nowhere"), NotFoundError),
        (move(weight=1.5), UsageError),
        (move(weight=math.nan), UsageError),
        (service(service="ghost"), NotFoundError),
        (service("nowhere"), NotFoundError),
        (service(weight=-0.1), UsageError),
        (service(starts=(PlannedStart(container="front", starts_s=-1.0),)), UsageError),
        (service(together=replace(TOGETHER, patience_s=0.0)), UsageError),
        (service(together=replace(TOGETHER, patience_s=math.nan)), UsageError),
        (service(starts=(PlannedStart(container="front", starts_s=1.0),) * 2), UsageError),
    ],
)
def test_an_order_about_nothing_is_no_decision(world: Any, order: Any, error: type[Exception]) -> None:
    loop = started(world)
    with pytest.raises(error):
        loop.handle(order)
    assert loop.decisions() == ()


def test_one_thing_at_a_time_for_a_container(world: Any) -> None:
    loop = started(world)
    loop.handle(move())
    (second,) = loop.handle(move(id="m-2", target="cloud", at_s=6.0)).decisions
    assert "an action on it is under way" in second.reason
    loop.handle(OutcomeReported(id="o", at_s=7.0, outcome=world.outcome("d-000001/0", finished_at_s=20.0)))
    (third,) = loop.handle(move(id="m-3", target="cloud", at_s=8.0)).decisions
    assert "takes effect until 20 s" in third.reason
    moved = world.topology(world.container("front", "core"), world.container("back", "core"))
    loop.handle(TopologyObserved(id="t", at_s=20.0, topology=moved))
    (fourth,) = loop.handle(move(id="m-4", target="cloud", at_s=21.0)).decisions
    assert fourth.status is S.ISSUED
    assert fourth.instructions[0].source == "core"  # type: ignore[union-attr]


def test_a_service_goes_in_one_decision_and_each_at_its_time(world: Any) -> None:
    loop = started(world)
    forecasts = (ContainerForecast(container="front", target="cloud", forecast=foretold(0.9)),)
    starts = (PlannedStart(container="front", starts_s=2.5),)
    step = loop.handle(service(weight=0.3, forecasts=forecasts, starts=starts))
    (decision,) = step.decisions
    assert (decision.container, decision.status, len(decision.instructions)) == ("core", S.ISSUED, 3)
    assert [(i.container, i.not_before_s, i.weight) for i in step.instructions if isinstance(i, Migrate)] == [
        ("front", 7.5, 0.3), ("back", 5.0, 0.3), ("other", 5.0, 0.3),
    ]  # fmt: skip
    assert decision.downtimes_s[0] == 0.9
    assert decision.predicted_downtime_s == pytest.approx(sum(decision.downtimes_s))
    reserved = {q.container: q.reserved_s for q in loop.status().quota}
    assert tuple(reserved.values()) == decision.downtimes_s
    for number, name in enumerate(("front", "back", "other")):
        loop.handle(OutcomeReported(id=name, at_s=9.0, outcome=world.outcome(f"d-000001/{number}", downtime_s=0.1)))
        assert loop.decision("d-000001").status is (S.ISSUED if number < 2 else S.DONE)
    assert {q.spent_s for q in loop.status().quota} == {0.1}


def test_who_is_there_already_stays(world: Any) -> None:
    (decision,) = started(world).handle(service("core")).decisions
    assert [i.container for i in decision.instructions] == ["front"]
    assert "back, other stay" in decision.reason
    alone = started(world, topology=world.topology(world.container("a", "core")))
    (nothing,) = alone.handle(service("core")).decisions
    assert (nothing.status, nothing.instructions) == (S.REFUSED, ())
    assert "there already" in nothing.reason


def test_what_is_conducted_carries_its_part_of_the_schedule(world: Any) -> None:
    load = ContainerLoad(**dict.fromkeys(ContainerLoad.__dataclass_fields__, 2.0))
    forecasts = tuple(
        ContainerForecast(container=c, target="cloud", forecast=foretold(0.7), load=load, chosen_by="model")
        for c in ("front", "back", "other")
    )
    (decision,) = started(world).handle(service(forecasts=forecasts, together=TOGETHER)).decisions
    assert decision.status is S.ISSUED
    for i in decision.instructions:
        assert isinstance(i, Migrate)
        assert i.together == replace(TOGETHER, id=decision.id)
        assert (i.method, i.chosen_by, i.load) == (MigrationMethod.COLD, "model", load)
        assert i.forecast == foretold(0.7)
        assert decode(Migrate, encode(i)) == i
    # Who is not foretold cannot be planned: then each goes at its time, and its agent chooses.
    (alone,) = started(world).handle(service(forecasts=forecasts[:1], together=TOGETHER)).decisions
    assert [(i.together, i.method) for i in alone.instructions if isinstance(i, Migrate)] == [(None, None)] * 3


def test_a_service_is_moved_whole_or_not_at_all(world: Any) -> None:
    """Two of three cores are free on the target: the first would fit, both do not."""
    pair = (world.container("a", cpu_limit_cores=1.5), world.container("b", cpu_limit_cores=1.5))
    topology = world.topology(*pair, nodes=(world.node("edge"), world.node("core", 2.0)))
    loop = started(world, topology=topology)
    (decision,) = loop.handle(service("core")).decisions
    assert decision.status is S.REFUSED
    assert "b: needs 1.50 cores, core has 0.50 free" in decision.reason
    assert loop.outbox() == ()


def test_spread_takes_the_roomiest_nodes_and_counts_what_it_promised(world: Any) -> None:
    pair = (world.container("a", cpu_limit_cores=4.0), world.container("b", cpu_limit_cores=4.0))
    nodes = (world.node("edge"), world.node("core", 6.0), world.node("cloud", 8.0))
    loop = started(world, topology=world.topology(*pair, nodes=nodes))
    (decision,) = loop.handle(service(None)).decisions
    assert [i.target for i in decision.instructions if isinstance(i, Migrate)] == ["cloud", "core"]
    full = world.topology(*pair, nodes=(world.node("edge"), world.node("core", 2.0)))
    (refused,) = started(world, topology=full).handle(service(None)).decisions
    assert refused.reason.count("no other node has room") == 2


def test_a_world_that_outlives_journals_has_keys_of_its_own_in_each(world: Any) -> None:
    loop = started(world, token="5f3a")
    (decision,) = loop.handle(move()).decisions
    assert (decision.id, decision.instructions[0].key) == ("d-5f3a-000001", "d-5f3a-000001/0")


def test_a_restart_gives_back_what_was_ordered(world: Any) -> None:
    loop = started(world)
    events: list[Event] = [move(), service(None, id="s-2", at_s=6.0)]
    steps: list[Step] = [loop.handle(e) for e in events]
    again = ControlLoop(world.predict)
    again.handle(world.run())
    for event, step in zip(events, steps, strict=True):
        stored: StoredEvent = decode(StoredEvent, encode(StoredEvent(event=event, decisions=step.decisions)))
        again.handle(stored.event, decided=stored.decisions)
    assert (again.decisions(), again.outbox(), again.status()) == (loop.decisions(), loop.outbox(), loop.status())
