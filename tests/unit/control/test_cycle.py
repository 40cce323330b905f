"""One turn against a world in memory: evidence, delivery, and what happens when something falls over in between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from natwork_ray.control.cycle import FLOW_HISTORY_S, Judgement, LoopCycle
from natwork_ray.control.events import ApprovalAnswered, Event, OutcomeReported, TopologyObserved, VerdictsReached
from natwork_ray.control.service import Answer, ControlService
from natwork_ray.domain.actions import ActionOutcome, Instruction, Migrate
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict
from natwork_ray.domain.auditing import AuditRecord
from natwork_ray.domain.decisions import DecisionStatus, Mode
from natwork_ray.domain.forecasts import LoadForecast
from natwork_ray.domain.telemetry import METRICS, FlowShare, Metric, TelemetryWindow
from natwork_ray.domain.topology import Topology
from natwork_ray.errors import ConflictError, InputError, NatworkError, NotFoundError, TimedOutError

K = AnomalyKind


@dataclass
class Journal:
    rows: dict[str, bytes] = field(default_factory=dict)

    def events(self) -> Iterator[tuple[str, bytes]]:
        return iter(tuple(self.rows.items()))

    def has_event(self, event_id: str) -> bool:
        return event_id in self.rows

    def commit(self, events: Sequence[tuple[str, bytes]], records: Sequence[AuditRecord]) -> None:
        self.rows.update(events)

    def close(self) -> None:
        return None


@dataclass
class World:
    """Telemetry, judge, control, orchestrator and hands in one; counts what was asked of it."""

    builders: Any
    topology_now: Topology
    journal: Journal = field(default_factory=Journal)
    found: tuple[AnomalyVerdict, ...] = ()
    degraded: tuple[str, ...] = ()
    flows_asked: list[tuple[str, ...]] = field(default_factory=list)
    flows_known: dict[str, tuple[FlowShare, ...]] = field(default_factory=dict)
    flows_before: dict[str, tuple[FlowShare, ...]] | None = None  # as now, where nothing else is said
    forecaster: Any = None
    forecast_length: int | None = None
    turned_at_s: float = 0.0
    submitted: list[Event] = field(default_factory=list)
    effects: list[tuple[str, str]] = field(default_factory=list)  # (node, key), once per effect
    deliveries: list[tuple[str, str]] = field(default_factory=list)
    done: dict[str, ActionOutcome] = field(default_factory=dict)
    fail_after_submit: bool = False
    dead: set[str] = field(default_factory=set)
    downtime_s: float = 0.0

    def __post_init__(self) -> None:
        self.service = ControlService(self.journal, self.builders.predict)

    # TelemetrySource
    async def window(self, *, end_s: float, length: int) -> TelemetryWindow:
        names = ("front", "back", "other", "new")
        values = np.ones((len(names), length, len(METRICS)), dtype=np.float32)
        values[0, -1, METRICS.index(Metric.MEMORY_RSS)] = 4096.0
        values[0, -1, METRICS.index(Metric.LATENCY_P99)] = np.nan
        return TelemetryWindow(containers=names, services=names, end_s=end_s, step_s=10.0, values=values)

    async def node_usage(self, *, at_s: float) -> tuple[Any, ...]:
        return ()

    async def flows(self, containers: Sequence[str], *, at_s: float) -> Mapping[str, tuple[FlowShare, ...]]:
        if at_s <= 0:
            raise InputError(f"no flows at {at_s} s", hint="ask for what was measured")
        self.flows_asked.append(tuple(containers))
        earlier = self.flows_before is not None and at_s < self.turned_at_s
        return self.flows_before if earlier and self.flows_before is not None else self.flows_known

    # Judge
    async def judge(self, window: TelemetryWindow) -> Judgement:
        return Judgement(self.found, self.degraded)

    # Control
    async def submit(self, events: Sequence[Event]) -> tuple[Answer, ...]:
        self.submitted += events
        answers = self.service.submit(events)
        if self.fail_after_submit:
            self.fail_after_submit = False
            raise TimedOutError("the control actor was killed", hint="it comes back")
        return answers

    async def outbox(self) -> tuple[Instruction, ...]:
        return self.service.loop.outbox()

    # Orchestrator
    async def topology(self) -> Topology:
        return self.topology_now

    def cycle(self) -> LoopCycle:
        world: Any = self
        return LoopCycle(
            telemetry=self,
            judge=self,
            control=self,
            orchestrator=world,
            node_hands={n: Hand(self, n) for n in ("edge", "core", "cloud")},
            cluster_hands=Hand(self, "cluster"),
            window_length=6,
            forecaster=self.forecaster,
            forecast_length=self.forecast_length,
        )

    def restart(self) -> None:
        self.service = ControlService(self.journal, self.builders.predict)


@dataclass
class Hand:
    """Idempotent by key, as the port asks."""

    world: World
    node: str

    async def execute(self, instruction: Instruction) -> ActionOutcome:
        world = self.world
        world.deliveries.append((self.node, instruction.key))
        if self.node in world.dead:
            raise TimedOutError(f"no answer from {self.node}", hint="wait")
        if instruction.key not in world.done:
            world.effects.append((self.node, instruction.key))
            world.done[instruction.key] = world.builders.outcome(instruction.key, downtime_s=world.downtime_s)
        return world.done[instruction.key]


@pytest.fixture
def stage(world: Any) -> World:
    made = World(world, world.topology())
    made.service.submit((world.run(),))
    return made


def turn(stage: World, at_s: float) -> Any:
    stage.turned_at_s = at_s
    return asyncio.run(stage.cycle().turn(at_s))


def test_a_quiet_turn(stage: World) -> None:
    stage.degraded = ("other",)
    result = turn(stage, 10.0)
    assert (result.scanned, result.decisions, result.outcomes) == (3, (), ())
    assert stage.service.loop.status().degraded == ("other",)
    assert stage.flows_asked == []
    # The first turn tells what runs where, later ones only when that has changed.
    assert [event.id for event in stage.submitted] == ["topology@10.000", "verdicts@10.000"]


def test_evidence_is_attached(stage: World, world: Any) -> None:
    flow = tuple(world.flow(0.9 - i / 10, 0.0, f"192.0.2.{i}/32") for i in range(8))
    stage.flows_known = {"back": flow, "front": flow}
    stage.found = (
        world.verdict("front", K.HIGH_CPU),
        world.verdict("back", K.UNKNOWN),
        world.verdict("other", K.FALSE_POSITIVE),
    )
    turn(stage, 10.0)
    event = stage.submitted[1]
    assert isinstance(event, VerdictsReached)
    front, back, other = event.verdicts
    assert front.observed[Metric.MEMORY_RSS] == 4096.0
    assert Metric.LATENCY_P99 not in front.observed
    assert len(back.observed) == len(METRICS)
    assert back.flows == flow[:5]
    assert (front.flows, other.flows) == ((), ())  # a firewall rule needs a kind that traffic explains


def test_flows_are_asked_of_whoever_is_flagged_and_of_their_past_where_a_share_is_large(
    stage: World, world: Any
) -> None:
    stage.flows_known = {
        "back": (world.flow(0.9, 0.0, "192.0.2.1/32"),),
        "front": (world.flow(0.1, 0.1, "192.0.2.2/32"),),
    }
    stage.found = tuple(
        world.verdict(name, kind)
        for name, kind in (("front", K.HIGH_CPU), ("back", K.NETWORK_LATENCY), ("other", K.FALSE_POSITIVE))
    )
    turn(stage, 3600.0)
    assert stage.flows_asked == [("front", "back"), *[("back",)] * len(FLOW_HISTORY_S)]
    event = stage.submitted[1]
    assert isinstance(event, VerdictsReached)
    assert event.suspects == {}  # it has sent nine tenths all along


def test_a_source_whose_share_jumped_is_suspect(stage: World, world: Any) -> None:
    stage.flows_known = {"back": (world.flow(0.6, 0.9, "203.0.113.7/32"), world.flow(0.4, 0.1, "192.0.2.1/32"))}
    stage.flows_before = {"back": (world.flow(1.0, 1.0, "192.0.2.1/32"),)}
    stage.found = (world.verdict("back", K.HIGH_CPU),)
    turn(stage, 3600.0)
    event = stage.submitted[1]
    assert isinstance(event, VerdictsReached)
    (suspect,) = event.suspects["back"]
    assert (suspect.source, suspect.request_share, suspect.usual_request_share) == ("203.0.113.7/32", 0.6, 0.0)


def test_a_source_of_flows_without_a_past_makes_nobody_suspect(stage: World, world: Any) -> None:
    stage.flows_known = {"back": (world.flow(0.6, 0.9, "203.0.113.7/32"),)}
    stage.found = (world.verdict("back", K.UNKNOWN),)
    turn(stage, 10.0)  # ten minutes before this there was nothing
    event = stage.submitted[1]
    assert isinstance(event, VerdictsReached)
    assert event.suspects == {}


class Crystal:
    """A forecaster whose answer is prepared."""

    def __init__(self, *found: LoadForecast, error: NatworkError | None = None) -> None:
        self.found, self.error = found, error
        self.lengths: list[int] = []

    async def forecast(self, window: TelemetryWindow) -> tuple[LoadForecast, ...]:
        self.lengths.append(window.length)
        if self.error is not None:
            raise self.error
        return self.found


def _forecast(container: str, **fields: Any) -> LoadForecast:
    given: dict[str, Any] = {
        "container": container, "service": container, "metric": "cpu_utilization", "at_s": 10.0, "step_s": 10.0,
        "horizons": (1, 10), "expected": (0.5, 0.9), "lower": (0.4, 0.6), "upper": (0.6, 1.4), "model": "lightgbm",
        "likelihood": 0.2,
    }  # fmt: skip
    return LoadForecast(**{**given, **fields})


def test_only_forecasts_that_can_inform_a_decision_are_kept(stage: World, world: Any) -> None:
    stage.found = (world.verdict("back", K.STEP_LOAD),)
    stage.forecaster = Crystal(
        _forecast("front", likelihood=0.995),  # likely, and its upper edge exceeds the limit
        _forecast("back", expected=(0.5, 0.5), lower=(0.4, 0.4), upper=(0.6, 0.6)),
        _forecast("other", expected=(0.5, 0.51), upper=(0.6, 0.6), lower=(0.4, 0.4), degraded="no reference"),
    )
    result = turn(stage, 10.0)
    event = stage.submitted[1]
    assert isinstance(event, VerdictsReached)
    assert [f.container for f in event.forecasts] == [a.container for a in event.advice] == ["back"]
    outlook = event.outlook
    assert outlook is not None
    assert (outlook.containers, outlook.resilience, outlook.rising) == (3, ("front",), ("front",))
    assert (outlook.stable, outlook.likelihood) == (2, 0.995)
    assert [(a.container, a.action) for a in outlook.advised] == [("front", "scale")]
    assert outlook.degraded == "1 containers: no reference"
    assert result.outlook == stage.service.loop.status().outlook == outlook
    (decision,) = result.decisions
    assert decision.forecasts == event.forecasts
    assert decision.advice == event.advice[0]


def test_a_forecaster_that_fails_takes_no_turn_with_it(stage: World, world: Any) -> None:
    stage.found = (world.verdict("back", K.STEP_LOAD),)
    stage.forecaster = Crystal(error=TimedOutError("no replica answers", hint="wait"))
    result = turn(stage, 10.0)
    assert result.outlook is not None
    assert result.outlook.degraded == "no forecasts: no replica answers"
    assert len(result.judgement.verdicts) == 1


def test_a_forecaster_may_look_farther_back_than_the_judge(stage: World) -> None:
    stage.forecaster, stage.forecast_length = Crystal(), 24
    turn(stage, 10.0)
    assert stage.forecaster.lengths == [24]


def test_hands_are_chosen_by_node_and_everything_is_reported(stage: World, world: Any) -> None:
    stage.found = (
        world.verdict("front", K.NETWORK_LATENCY),  # migrate, from its source
        world.verdict("back", K.HIGH_MEMORY),  # restart, where it runs
        world.verdict("other", K.TRAFFIC_SPIKE),  # scale, by the orchestrator
    )
    result = turn(stage, 10.0)
    assert sorted(stage.effects) == [("cluster", "d-000003/0"), ("core", "d-000002/0"), ("edge", "d-000001/0")]
    assert {o.key for o in result.outcomes} == {"d-000001/0", "d-000002/0", "d-000003/0"}
    assert all(d.status is DecisionStatus.DONE for d in stage.service.loop.decisions())
    assert [type(e) for e in stage.submitted] == [TopologyObserved, VerdictsReached] + [OutcomeReported] * 3


def test_what_an_action_changes_is_told_when_it_is_seen(stage: World, world: Any) -> None:
    cycle = stage.cycle()
    asyncio.run(cycle.turn(10.0))
    asyncio.run(cycle.turn(20.0))
    stage.topology_now = world.topology(world.container("front", "core"))
    asyncio.run(cycle.turn(30.0))
    asyncio.run(cycle.turn(40.0))
    told = [event.id for event in stage.submitted if isinstance(event, TopologyObserved)]
    assert told == ["topology@10.000", "topology@30.000"]
    assert stage.service.loop.status().topology == stage.topology_now


def test_a_migration_goes_to_its_source_also_after_the_container_has_moved(stage: World, world: Any) -> None:
    stage.found = (world.verdict("front", K.NETWORK_LATENCY),)
    stage.fail_after_submit = True
    with pytest.raises(TimedOutError):
        turn(stage, 10.0)
    (move,) = stage.service.loop.outbox()
    assert isinstance(move, Migrate)
    stage.topology_now = world.topology(world.container("front", move.target))
    asyncio.run(stage.cycle().drain(20.0))
    assert stage.effects == [("edge", move.key)]


@pytest.mark.parametrize("way", ["same turn again", "next turn", "drain"])
def test_a_crash_between_decision_and_action_loses_nothing(stage: World, world: Any, way: str) -> None:
    stage.found = (world.verdict("front", K.HIGH_MEMORY),)
    stage.fail_after_submit = True
    with pytest.raises(TimedOutError):
        turn(stage, 10.0)
    assert stage.effects == []
    stage.restart()
    if way == "drain":
        outcomes = asyncio.run(stage.cycle().drain(11.0))
    else:
        stage.found = stage.found if way == "same turn again" else ()
        outcomes = turn(stage, 10.0 if way == "same turn again" else 20.0).outcomes
    assert [o.key for o in outcomes] == ["d-000001/0"]
    assert stage.effects == [("edge", "d-000001/0")]
    assert stage.service.loop.outbox() == ()


def test_a_crash_between_action_and_report_does_nothing_twice(stage: World, world: Any) -> None:
    stage.found = (world.verdict("front", K.HIGH_MEMORY),)
    stage.fail_after_submit = True
    with pytest.raises(TimedOutError):
        turn(stage, 10.0)
    asyncio.run(Hand(stage, "edge").execute(stage.service.loop.outbox()[0]))  # done, never reported
    stage.restart()
    stage.found = ()
    turn(stage, 20.0)
    assert stage.effects == [("edge", "d-000001/0")]
    assert len(stage.deliveries) == 2
    assert len(stage.service.loop.outcomes()) == 1


def test_a_crash_after_the_report_was_committed_does_nothing_twice(stage: World, world: Any) -> None:
    stage.found = (world.verdict("front", K.HIGH_MEMORY),)
    stage.fail_after_submit = True
    with pytest.raises(TimedOutError):
        turn(stage, 10.0)
    stage.fail_after_submit = True
    with pytest.raises(TimedOutError):
        asyncio.run(stage.cycle().drain(11.0))
    stage.restart()
    assert asyncio.run(stage.cycle().drain(12.0)) == ()
    assert len(stage.service.loop.outcomes()) == 1


def test_two_drains_at_once_report_once(stage: World, world: Any) -> None:
    stage.found = (world.verdict("front", K.HIGH_MEMORY),)
    stage.fail_after_submit = True
    with pytest.raises(TimedOutError):
        turn(stage, 10.0)

    async def both() -> None:
        cycle = stage.cycle()
        await asyncio.gather(cycle.drain(11.0), cycle.drain(11.0))

    asyncio.run(both())
    assert len(stage.effects) == len(stage.service.loop.outcomes()) == 1


def test_an_agent_that_is_away_holds_up_no_other(stage: World, world: Any) -> None:
    stage.found = (world.verdict("front", K.HIGH_MEMORY), world.verdict("back", K.HIGH_MEMORY))
    stage.dead = {"edge"}
    with pytest.raises(TimedOutError, match="edge"):
        turn(stage, 10.0)
    assert [o.key for o in stage.service.loop.outcomes()] == ["d-000002/0"]
    assert [i.key for i in stage.service.loop.outbox()] == ["d-000001/0"]
    stage.dead, stage.found = set(), ()
    turn(stage, 20.0)
    assert stage.effects == [("core", "d-000002/0"), ("edge", "d-000001/0")]


def test_a_node_without_an_agent_is_named(stage: World, world: Any) -> None:
    stage.found = (world.verdict("front", K.HIGH_MEMORY),)
    stage.topology_now = world.topology(world.container("front", "attic"))
    with pytest.raises(NotFoundError, match="no LiMi agent for front on node attic"):
        turn(stage, 10.0)
    assert len(stage.service.loop.outbox()) == 1


def test_an_approval_is_carried_out_in_the_next_turn(world: Any) -> None:
    stage = World(world, world.topology())
    stage.service.submit((world.run(mode=Mode.APPROVE),))
    stage.found = (world.verdict("front", K.HIGH_MEMORY),)
    assert turn(stage, 10.0).outcomes == ()
    stage.service.submit((ApprovalAnswered(id="a", at_s=11.0, decision="d-000001", granted=True, by="kim"),))
    stage.found = ()
    assert len(turn(stage, 20.0).outcomes) == 1


def test_a_container_that_the_loop_never_heard_of_blinds_nobody(stage: World, world: Any) -> None:
    """A new one is looked up; one that telemetry still shows and the orchestrator does not is left out."""
    stage.topology_now = world.topology(world.container("front"), world.container("new"))
    stage.found = (world.verdict("new"), world.verdict("other", K.HIGH_MEMORY), world.verdict("front"))
    result = turn(stage, 10.0)
    assert {d.container for d in result.decisions} == {"new", "front"}
    assert {c.name for c in stage.service.loop.status().topology.containers} == {"new", "front"}


def test_a_refused_turn_raises(stage: World, world: Any) -> None:
    stage.journal.rows.clear()
    stage.restart()
    with pytest.raises(ConflictError, match="no world"):
        turn(stage, 10.0)


def test_an_outcome_that_the_loop_refuses_is_not_swallowed(stage: World, world: Any) -> None:
    stage.found = (world.verdict("front", K.HIGH_MEMORY),)
    stage.downtime_s = float("nan")
    with pytest.raises(InputError):
        turn(stage, 10.0)
    assert len(stage.service.loop.outbox()) == 1
