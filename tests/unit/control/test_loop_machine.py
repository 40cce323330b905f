"""The control loop under random worlds, alarms, outcomes, approvals and restarts.

Laws: what is replayed is what was; observe issues nothing and approve nothing unasked; what is issued is promised in
the ledger; one decision under way per container; a refused event leaves no trace; no key is used twice.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from natwork_ray.config import AlarmConfig, SlaConfig
from natwork_ray.control.events import (
    ApprovalAnswered,
    Event,
    MigrationRequested,
    ModeChanged,
    OutcomeReported,
    RunStarted,
    ServiceMigrationRequested,
    TopologyObserved,
    VerdictsReached,
)
from natwork_ray.control.loop import ControlLoop, Step
from natwork_ray.control.planner import MovePrediction, MovePredictor
from natwork_ray.domain.actions import ActionOutcome, Migrate, MigrationMethod, Scale, SetLimits
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict, Driver
from natwork_ray.domain.decisions import Decision, DecisionStatus, Mode
from natwork_ray.domain.telemetry import FlowShare, Metric
from natwork_ray.domain.topology import Container, Link, Node, NodeRole, Topology
from natwork_ray.domain.values import Backend
from natwork_ray.errors import ActionError, NatworkError

NODES = ("edge-1", "edge-2", "core-1", "cloud-1")
NAMES = ("amf", "smf", "upf", "nrf", "pcf")
SLA = SlaConfig(availability=0.98, window_s=600.0)  # 12 s


def moves(downtime_s: float, method: MigrationMethod) -> MovePredictor:
    def predict(container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> MovePrediction:
        if container.replicas == 3:
            raise ActionError("no model for three replicas", hint="train one")
        return MovePrediction(method, downtime_s, 10.0)

    return predict


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    nodes = draw(st.lists(st.sampled_from(NODES), min_size=1, unique=True))
    pairs = [(a, b) for a in NODES for b in NODES if a < b]
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    return Topology(
        nodes=tuple(
            Node(name=n, role=NodeRole.EDGE, cpu_cores=draw(st.sampled_from([2.0, 8.0, 32.0])), memory_bytes=8e9)
            for n in nodes
        ),
        links=tuple(
            Link(a=a, b=b, bandwidth_bytes_per_s=1e8, rtt_s=0.001 * i)
            for i, (a, b) in enumerate(pairs)
            if draw(st.booleans())
        ),
        slices=(),
        containers=tuple(
            Container(
                name=n,
                service=n,
                network_service="core",
                slice="s",
                node=draw(st.sampled_from(NODES)),  # may be a node that is not in service
                replicas=draw(st.integers(1, 4)),
                cpu_limit_cores=draw(st.sampled_from([0.25, 1.0, 4.0])),
                memory_limit_bytes=draw(st.sampled_from([2.5e8, 2e9])),
                depends_on=tuple(draw(st.lists(st.sampled_from(NAMES), max_size=2, unique=True))),
            )
            for n in names
        ),
    )


VERDICTS: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {
        "score": st.sampled_from([0.6, 0.99]),
        "kind": st.sampled_from(list(AnomalyKind)),
        "confidence": st.just(0.8),
        "drivers": st.sampled_from(
            [
                (Driver(metric=Metric.CPU, deviation=20.0),),
                (Driver(metric=Metric.LATENCY_P99, deviation=9.0),),
                (),
            ]
        ),
        "flows": st.sampled_from([(), (FlowShare(source="203.0.113.7/32", request_share=0.8, failed_share=0.1),)]),
    }
)


WEIGHTS = st.sampled_from([None, 0.0, 0.3, 2.0])


def promised(decision: Decision, key: str) -> float:
    """What was reserved for one instruction of a decision."""
    number = int(key.rpartition("/")[2])
    return (decision.downtimes_s or (decision.predicted_downtime_s, *(0.0,) * number))[number]


def fits(loop: ControlLoop) -> None:
    """No order promises more of a node than it has; what the random world overcommits by itself is not counted."""
    fleet = loop._fleet
    for node in fleet.nodes():
        arriving = [
            c
            for _, i in loop._docket._pending.values()
            if isinstance(i, Migrate) and i.target == node.name and (c := fleet.topology.container(i.container))
        ]
        there = [c for c in fleet.topology.containers if c.node == node.name]
        alone = sum(c.replicas * c.cpu_limit_cores for c in there) <= node.cpu_cores
        if alone and arriving and not any(isinstance(i, Scale | SetLimits) for _, i in loop._docket._pending.values()):
            assert fleet.free_cores(node.name) >= -1e-9


class LoopMachine(RuleBasedStateMachine):
    @initialize(topology=topologies(), mode=st.sampled_from(list(Mode)), cooldown_s=st.sampled_from([0.0, 60.0]))
    def start(self, topology: Topology, mode: Mode, cooldown_s: float) -> None:
        self.predict = moves(1.5, MigrationMethod.HYBRID)
        self.loop = ControlLoop(self.predict)
        self.journal: list[tuple[Event, tuple[Decision, ...]]] = []
        self.keys: set[str] = set()
        self.overrun: set[str] = set()
        self.at_s = 1000.0
        self.count = 0
        self.alarm = AlarmConfig(votes_needed=1, votes_of=2, cooldown_s=cooldown_s, calm_s=120.0)
        assert self.feed(self._run(topology, mode)) is not None

    def _run(self, topology: Topology, mode: Mode) -> RunStarted:
        return RunStarted(
            id=self.next_id(),
            at_s=self.at_s,
            backend=Backend.EMULATED,
            mode=mode,
            scenario="random",
            seed=1,
            step_s=10.0,
            approval_lapse_s=90.0,
            topology=topology,
            alarm=self.alarm,
            sla=SLA,
        )

    def next_id(self) -> str:
        self.count += 1
        return f"e{self.count}"

    def shown(self, loop: ControlLoop) -> tuple[Any, ...]:
        return loop.status(), loop.outbox(), loop.decisions(), loop.outcomes()

    def feed(self, event: Event) -> Step | None:
        before = self.shown(self.loop) if self.loop.started else None
        mode = before[0].mode if before else None
        try:
            step = self.loop.handle(event)
        except NatworkError:
            assert before is not None
            assert self.shown(self.loop) == before
            return None
        self.journal.append((event, step.decisions))
        if step.instructions and not isinstance(event, MigrationRequested | ServiceMigrationRequested):
            assert mode is not Mode.OBSERVE
            if mode is Mode.APPROVE:
                assert isinstance(event, ApprovalAnswered)
                assert event.granted
        for instruction in step.instructions:
            assert instruction.key not in self.keys
            self.keys.add(instruction.key)
            assert instruction in self.loop.outbox()
        for decision in step.decisions:
            assert self.loop.decision(decision.id) == decision
        return step

    @rule(seconds=st.sampled_from([1.0, 10.0, 100.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.at_s += seconds

    @rule(seconds=st.sampled_from([5.0, 650.0]))
    def clock_is_set_back(self, seconds: float) -> None:
        self.at_s -= seconds

    @rule(data=st.data())
    def verdicts(self, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from((*NAMES, "ghost")), max_size=4))  # some unknown, some twice
        found = tuple(AnomalyVerdict(container=n, at_s=self.at_s, **data.draw(VERDICTS)) for n in names)
        known = {c.name for c in self.loop.status().topology.containers}
        step = self.feed(VerdictsReached(id=self.next_id(), at_s=self.at_s, scanned=5, verdicts=found))
        assert (step is None) == (len(set(names)) < len(names) or not known.issuperset(names))

    @rule()
    def calm(self) -> None:
        self.feed(VerdictsReached(id=self.next_id(), at_s=self.at_s, scanned=5, degraded=("amf",)))

    @rule(topology=topologies())
    def topology_changes(self, topology: Topology) -> None:
        self.feed(TopologyObserved(id=self.next_id(), at_s=self.at_s, topology=topology))

    @precondition(lambda self: self.loop.outbox())
    @rule(
        data=st.data(),
        done=st.booleans(),
        downtime_s=st.sampled_from([0.0, 0.5, 1.5, 5.0, 50.0, -1.0, float("nan")]),
    )
    def outcome(self, data: st.DataObject, done: bool, downtime_s: float) -> None:
        instruction = data.draw(st.sampled_from(self.loop.outbox()))
        decision = self._decision_of(instruction.key)
        if downtime_s > promised(decision, instruction.key):
            self.overrun.add(instruction.container)
        step = self._report(instruction.key, done, downtime_s)
        assert (step is not None) == (downtime_s >= 0)
        assert self._report(instruction.key, done, 0.0) is None or downtime_s != downtime_s or downtime_s < 0

    def _report(self, key: str, done: bool, downtime_s: float) -> Step | None:
        result = ActionOutcome(
            key=key,
            done=done,
            started_at_s=self.at_s,
            finished_at_s=self.at_s + 3,
            downtime_s=downtime_s,
            backend=Backend.EMULATED,
            detail="",
            error="" if done else "it failed",
        )
        return self.feed(OutcomeReported(id=self.next_id(), at_s=self.at_s, outcome=result))

    @rule(key=st.sampled_from(["d-000001/0", "d-000002/0", "nonsense"]))
    def outcome_out_of_the_blue(self, key: str) -> None:
        if key not in {i.key for i in self.loop.outbox()}:
            assert self._report(key, True, 0.0) is None

    @precondition(lambda self: self.loop.decisions())
    @rule(data=st.data(), granted=st.booleans())
    def approval(self, data: st.DataObject, granted: bool) -> None:
        decision = data.draw(st.sampled_from(self.loop.decisions()))
        step = self.feed(
            ApprovalAnswered(id=self.next_id(), at_s=self.at_s, decision=decision.id, granted=granted, by="kim")
        )
        if decision.status is not DecisionStatus.AWAITING_APPROVAL:
            assert step is None
        elif not granted:
            assert step is not None

    @rule(name=st.sampled_from((*NAMES, "ghost")), node=st.sampled_from((*NODES, "nowhere")), weight=WEIGHTS)
    def a_person_orders(self, name: str, node: str, weight: float | None) -> None:
        topology = self.loop.status().topology
        known = topology.container(name) is not None and topology.node(node) is not None
        order = MigrationRequested(
            id=self.next_id(), at_s=self.at_s, container=name, target=node, by="kim", weight=weight
        )
        self._answered(order, known and weight != 2.0)

    @rule(service=st.sampled_from(["core", "ghost"]), node=st.sampled_from([None, *NODES]), weight=WEIGHTS)
    def a_person_orders_a_service(self, service: str, node: str | None, weight: float | None) -> None:
        topology = self.loop.status().topology
        known = service == "core" and (node is None or topology.node(node) is not None)
        order = ServiceMigrationRequested(
            id=self.next_id(), at_s=self.at_s, service=service, target=node, by="kim", weight=weight
        )
        self._answered(order, known and weight != 2.0)

    def _answered(self, order: MigrationRequested | ServiceMigrationRequested, sensible: bool) -> None:
        under_way = {i.container for _, i in self.loop._docket._pending.values()}
        step = self.feed(order)
        assert (step is not None) == sensible
        if step is not None:
            (decision,) = step.decisions
            assert decision.order is not None
            assert decision.status in (DecisionStatus.ISSUED, DecisionStatus.REFUSED)
            moved = [i.container for i in step.instructions]
            assert not under_way.intersection(moved)
            assert len(set(moved)) == len(moved)
            fits(self.loop)

    @rule()
    def approval_of_nothing(self) -> None:
        answer = ApprovalAnswered(id=self.next_id(), at_s=self.at_s, decision="d-999999", granted=True, by="kim")
        assert self.feed(answer) is None

    @rule(mode=st.sampled_from(list(Mode)))
    def mode_changes(self, mode: Mode) -> None:
        assert self.feed(ModeChanged(id=self.next_id(), at_s=self.at_s, mode=mode, by="kim")) is not None

    @rule(topology=topologies(), mode=st.sampled_from(list(Mode)))
    def another_run(self, topology: Topology, mode: Mode) -> None:
        busy, behind = bool(self.loop.outbox()), self.at_s < self.loop.at_s
        assert (self.feed(self._run(topology, mode)) is None) == (busy or behind)

    @rule()
    def restart(self) -> None:
        """A new process, and a newer predictor that would decide otherwise."""
        fresh = ControlLoop(moves(0.1, MigrationMethod.COLD))
        for event, decisions in self.journal:
            assert fresh.handle(event, decided=decisions).decisions == decisions
        assert self.shown(fresh) == self.shown(self.loop)
        fresh._predict_move = self.predict
        self.loop = fresh

    def _decision_of(self, key: str) -> Decision:
        return self.loop.decision(key.rpartition("/")[0])

    @invariant()
    def at_most_one_decision_under_way_per_container(self) -> None:
        busy = Counter(c for c, _ in {(i.container, self._decision_of(i.key).id) for i in self.loop.outbox()})
        assert all(n == 1 for n in busy.values())

    @invariant()
    def what_is_under_way_is_promised(self) -> None:
        for container in {i.container for i in self.loop.outbox()}:
            account = self.loop._ledger.account(container, at_s=self.loop.at_s)
            if container not in self.overrun:
                assert account.reserved_s + account.spent_s <= account.budget_s * (1 + 1e-9)
        for instruction in self.loop.outbox():
            held = self.loop._ledger._reservations[instruction.key]
            assert held.seconds == promised(self._decision_of(instruction.key), instruction.key)
        assert len(self.loop._ledger._reservations) == len(self.loop.outbox())

    @invariant()
    def counters_agree_with_the_decisions(self) -> None:
        status = self.loop.status()
        found = Counter(d.status for d in self.loop.decisions())
        assert status.done == found[DecisionStatus.DONE]
        assert status.failed == found[DecisionStatus.FAILED]
        assert status.awaiting_approval == found[DecisionStatus.AWAITING_APPROVAL]
        assert status.decisions == len(self.loop.decisions())
        if not self.overrun:
            assert status.quota_violations == 0

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.restart()


TestLoop = LoopMachine.TestCase
TestLoop.settings = settings(max_examples=25, stateful_step_count=40)


@pytest.mark.parametrize("mode", list(Mode))
def test_an_empty_loop_refuses_everything_but_a_run(mode: Mode) -> None:
    loop = ControlLoop(moves(1.0, MigrationMethod.COLD))
    with pytest.raises(NatworkError):
        loop.handle(ModeChanged(id="m", at_s=0.0, mode=mode, by="kim"))
    with pytest.raises(NatworkError):
        loop.status()
    assert not loop.started
