"""The loop by example: each rule of its docstring, and what goes wrong around it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from natwork_ray.config import AlarmConfig, SlaConfig
from natwork_ray.control.events import ApprovalAnswered, ModeChanged, OutcomeReported, TopologyObserved
from natwork_ray.control.loop import ControlLoop
from natwork_ray.control.pacing import TRIED_S
from natwork_ray.domain.actions import MeshRetry, Migrate, Scale, SetLimits
from natwork_ray.domain.anomaly import AnomalyKind, Driver
from natwork_ray.domain.decisions import Decision, DecisionStatus, MitigationKind, Mode
from natwork_ray.domain.telemetry import Metric
from natwork_ray.errors import ConflictError, InputError, NotFoundError, QuotaError

K, M, S = AnomalyKind, MitigationKind, DecisionStatus
LATENCY = (Driver(metric=Metric.LATENCY_P99, deviation=9.0),)


def started(world: Any, **fields: Any) -> ControlLoop:
    loop = ControlLoop(world.predict)
    loop.handle(world.run(**fields))
    return loop


def report(world: Any, loop: ControlLoop, key: str, at_s: float, **fields: Any) -> Decision:
    step = loop.handle(OutcomeReported(id=f"outcome:{key}", at_s=at_s, outcome=world.outcome(key, **fields)))
    return step.decisions[0] if step.decisions else loop.decision(key.partition("/")[0])


def answer(decision: str, at_s: float, granted: bool = True) -> ApprovalAnswered:
    return ApprovalAnswered(id=f"answer:{decision}@{at_s}", at_s=at_s, decision=decision, granted=granted, by="kim")


def test_alarm_to_outcome(world: Any) -> None:
    loop = started(world)
    step = loop.handle(world.verdicts(10.0, world.verdict()))
    (decision,) = step.decisions
    assert step.instructions == decision.instructions == loop.outbox()
    assert (loop.status().under_way, loop.status().alarms, loop.at_s) == (1, 1, 10.0)
    done = report(world, loop, "d-000001/0", 12.0)
    assert done.status is S.DONE
    assert (loop.status().under_way, loop.status().done, len(loop.outcomes())) == (0, 1, 1)
    with pytest.raises(ConflictError):
        report(world, loop, "d-000001/0", 13.0)
    with pytest.raises(NotFoundError):
        loop.decision("d-000009")


def test_two_decisions_of_one_turn_never_promise_the_same_core(world: Any) -> None:
    """Three quarters of the node are taken: there is room for one more replica, not for two."""
    pair = (world.container("a", cpu_limit_cores=3.0), world.container("b", cpu_limit_cores=3.0))
    topology = world.topology(*pair, nodes=(world.node("edge", 9.5),))
    loop = started(world, topology=topology)
    spikes = [world.verdict(n, K.STEP_LOAD) for n in ("a", "b")]
    step = loop.handle(world.verdicts(10.0, *spikes))
    assert [type(i) for i in step.instructions] == [Scale]
    first, second = step.decisions
    assert (first.mitigation, second.mitigation) == (M.CUSTOM_METRIC_SCALE, M.NOTIFY)
    assert "0.5 free" in second.rejected[0].reason


def test_cool_down_is_per_kind_of_anomaly(world: Any) -> None:
    loop = started(world, alarm=AlarmConfig(votes_needed=1, votes_of=1))
    (first,) = loop.handle(world.verdicts(110.0, world.verdict(kind=K.STEP_LOAD))).decisions
    for instruction in loop.outbox():
        report(world, loop, instruction.key, 110.0, finished_at_s=110.0)
    assert loop.handle(world.verdicts(130.0, world.verdict(kind=K.STEP_LOAD))).decisions == ()
    (second,) = loop.handle(world.verdicts(140.0, world.verdict(kind=K.HIGH_MEMORY))).decisions
    assert (first.kind, second.kind) == (K.STEP_LOAD, K.HIGH_MEMORY)


def test_cool_down_and_busy_keep_a_second_decision_away(world: Any) -> None:
    loop = started(world)
    loop.handle(world.verdicts(10.0, world.verdict()))
    assert loop.handle(world.verdicts(400.0, world.verdict())).decisions == ()  # under way
    report(world, loop, "d-000001/0", 410.0, finished_at_s=420.0)
    assert loop.handle(world.verdicts(719.0, world.verdict())).decisions == ()  # cooling down since 420
    assert loop.handle(world.verdicts(720.0, world.verdict())).decisions != ()


def test_what_was_tried_is_remembered_for_a_while_by_the_kind_acted_upon(world: Any) -> None:
    alarm = AlarmConfig(votes_needed=3, votes_of=3, cooldown_s=0.0)
    loop = started(world, alarm=alarm)
    # Two votes of latency, the newest window says CPU: latency is acted upon, and is what was tried.
    votes = [world.verdict(kind=K.NETWORK_LATENCY), world.verdict(kind=K.NETWORK_LATENCY), world.verdict()]
    for turn, verdict in enumerate(votes):
        loop.handle(world.verdicts(10.0 * turn + 10, verdict))
    (first,) = loop.decisions()
    assert (first.kind, first.mitigation) == (K.NETWORK_LATENCY, M.TOPOLOGY_MOVE)
    assert first.verdict is not None
    assert first.verdict.kind is K.HIGH_CPU
    report(world, loop, "d-000001/0", 40.0)
    for turn in range(3):
        loop.handle(world.verdicts(50.0 + turn, world.verdict(kind=K.NETWORK_LATENCY)))
    assert loop.decisions()[-1].mitigation is M.MESH_RETRY
    report(world, loop, "d-000002/0", 60.0)
    for turn in range(3):
        loop.handle(world.verdicts(61.0 + TRIED_S + turn, world.verdict(kind=K.NETWORK_LATENCY)))
    assert loop.decisions()[-1].mitigation is M.TOPOLOGY_MOVE


def test_a_slow_callee_is_treated_instead_of_its_caller(world: Any) -> None:
    loop = started(world)
    step = loop.handle(world.verdicts(10.0, world.verdict("front", drivers=LATENCY), world.verdict("back")))
    watched, treated = step.decisions
    assert (watched.mitigation, watched.status, watched.instructions) == (M.KEEP_WATCHING, S.NOTED, ())
    assert "calls back" in watched.reason
    assert treated.status is S.ISSUED
    assert [i.container for i in step.instructions] == ["back"]


def test_a_caller_with_trouble_of_its_own_is_treated(world: Any) -> None:
    loop = started(world)
    step = loop.handle(world.verdicts(10.0, world.verdict("front"), world.verdict("back")))
    assert {i.container for i in step.instructions} == {"front", "back"}


def test_two_that_call_each_other_do_not_wait_for_each_other(world: Any) -> None:
    ring = (world.container("a", depends_on=("b",)), world.container("b", depends_on=("a", "b")))
    loop = started(world, topology=world.topology(*ring))
    step = loop.handle(world.verdicts(10.0, *(world.verdict(n, drivers=LATENCY) for n in ("a", "b"))))
    assert {i.container for i in step.instructions} == {"a", "b"}


def test_resources_go_back_after_calm_and_an_alarm_comes_first(world: Any) -> None:
    loop = started(world)
    loop.handle(world.verdicts(10.0, world.verdict(kind=K.STEP_LOAD)))
    report(world, loop, "d-000001/0", 20.0)
    grown = world.topology(world.container("front", replicas=2, cpu_limit_cores=1.5, memory_limit_bytes=768 * 2.0**20))
    loop.handle(TopologyObserved(id="t", at_s=20.0, topology=grown))
    assert loop.handle(world.verdicts(900.0)).decisions == ()
    # Calm enough now, and an alarm in the same turn: the alarm wins, nothing is taken away.
    (decision,) = loop.handle(world.verdicts(910.0, world.verdict(kind=K.STEP_LOAD))).decisions
    assert decision.mitigation is not M.RELAX
    report(world, loop, "d-000002/0", 915.0)
    (relaxed,) = loop.handle(world.verdicts(1810.0)).decisions
    original = world.container("front")
    assert (relaxed.mitigation, relaxed.verdict, relaxed.kind) == (M.RELAX, None, None)
    assert relaxed.instructions == (
        Scale(key="d-000003/0", container="front", replicas=1),
        SetLimits(
            key="d-000003/1",
            container="front",
            cpu_limit_cores=original.cpu_limit_cores,
            memory_limit_bytes=original.memory_limit_bytes,
        ),
    )
    assert loop.handle(world.verdicts(2500.0)).decisions == ()  # under way
    assert report(world, loop, "d-000003/1", 2510.0).status is S.ISSUED
    assert report(world, loop, "d-000003/0", 2520.0).status is S.DONE


def test_an_alarm_while_resources_go_back_waits_for_them(world: Any) -> None:
    loop = started(world, alarm=AlarmConfig(votes_needed=1, votes_of=1, cooldown_s=0.0))
    loop.handle(world.verdicts(10.0, world.verdict()))
    report(world, loop, "d-000001/0", 20.0)
    loop.handle(TopologyObserved(id="t", at_s=20.0, topology=world.topology(world.container("front", replicas=2))))
    assert loop.handle(world.verdicts(920.0)).decisions[0].mitigation is M.RELAX
    assert loop.handle(world.verdicts(930.0, world.verdict())).decisions == ()
    report(world, loop, "d-000002/0", 935.0)
    assert loop.handle(world.verdicts(940.0, world.verdict())).decisions != ()


def test_mesh_retries_are_switched_off_after_calm(world: Any) -> None:
    loop = started(world, topology=world.topology(links=()))
    loop.handle(world.verdicts(10.0, world.verdict(kind=K.NETWORK_LATENCY)))
    report(world, loop, "d-000001/0", 20.0)
    (relaxed,) = loop.handle(world.verdicts(1000.0)).decisions
    assert relaxed.instructions == (MeshRetry(key="d-000002/0", container="front", enabled=False),)
    report(world, loop, "d-000002/0", 1010.0)
    assert loop.handle(world.verdicts(3000.0)).decisions == ()


def test_observe_recommends_and_gives_nothing_back(world: Any) -> None:
    loop = started(world, mode=Mode.OBSERVE)
    (decision,) = loop.handle(world.verdicts(10.0, world.verdict())).decisions
    assert decision.status is S.RECOMMENDED
    loop.handle(TopologyObserved(id="t", at_s=20.0, topology=world.topology(world.container("front", replicas=2))))
    assert loop.handle(world.verdicts(5000.0)).decisions == ()
    assert loop.outbox() == ()


def test_a_failed_part_fails_the_decision_once(world: Any) -> None:
    loop = started(world, alarm=AlarmConfig(votes_needed=1, votes_of=1, cooldown_s=0.0))
    loop.handle(world.verdicts(10.0, world.verdict()))
    report(world, loop, "d-000001/0", 20.0)
    grown = world.topology(world.container("front", replicas=2, cpu_limit_cores=1.5))
    loop.handle(TopologyObserved(id="t", at_s=20.0, topology=grown))
    loop.handle(world.verdicts(1000.0))
    assert report(world, loop, "d-000002/0", 1001.0, done=False, error="no").status is S.FAILED
    step = loop.handle(OutcomeReported(id="o", at_s=1002.0, outcome=world.outcome("d-000002/1")))
    assert step.decisions == ()
    assert (loop.status().done, loop.status().failed) == (1, 1)


def test_approval_granted_refused_lapsed(world: Any) -> None:
    loop = started(world, mode=Mode.APPROVE, alarm=AlarmConfig(votes_needed=1, votes_of=1, cooldown_s=0.0))
    for name in ("front", "back", "other"):
        loop.handle(world.verdicts(10.0, world.verdict(name), id=name))
    assert loop.outbox() == ()
    assert loop.status().awaiting_approval == 3
    assert loop.handle(world.verdicts(20.0, world.verdict())).decisions == ()  # one awaits already
    assert loop.handle(answer("d-000001", 30.0)).instructions == loop.outbox()
    assert loop.handle(answer("d-000002", 30.0, granted=False)).decisions[0].status is S.REFUSED
    for decision in ("d-000001", "d-000002"):
        with pytest.raises(ConflictError):
            loop.handle(answer(decision, 31.0))
    with pytest.raises(ConflictError, match="lapsed"):  # no turn came by since, but the time is over
        loop.handle(answer("d-000003", 911.0))
    step = loop.handle(world.verdicts(911.0))
    assert [(d.id, d.status) for d in step.decisions] == [("d-000003", S.LAPSED)]
    assert loop.status().awaiting_approval == 0


def test_modes_and_what_awaits(world: Any) -> None:
    loop = started(world, mode=Mode.APPROVE)
    loop.handle(world.verdicts(10.0, world.verdict()))
    loop.handle(ModeChanged(id="m1", at_s=20.0, mode=Mode.OBSERVE, by="kim"))
    with pytest.raises(ConflictError, match="observes"):
        loop.handle(answer("d-000001", 21.0))
    step = loop.handle(ModeChanged(id="m2", at_s=22.0, mode=Mode.ACT, by="kim"))
    assert step.records[0].body == {"before": Mode.OBSERVE, "after": Mode.ACT, "by": "kim"}
    assert loop.outbox() == ()  # the switch alone grants nothing
    assert loop.handle(world.verdicts(400.0, world.verdict())).decisions == ()  # a person still has the word
    assert loop.handle(answer("d-000001", 401.0)).instructions != ()


def test_an_approval_that_the_world_overtook_is_refused(world: Any) -> None:
    loop = started(world, mode=Mode.APPROVE)
    loop.handle(world.verdicts(10.0, world.verdict(kind=K.NETWORK_LATENCY)))
    (move,) = loop.decisions()[0].instructions
    assert isinstance(move, Migrate)
    loop.handle(TopologyObserved(id="t1", at_s=20.0, topology=world.topology(world.container("front", "cloud"))))
    with pytest.raises(ConflictError, match="runs on cloud now"):
        loop.handle(answer("d-000001", 21.0))
    loop.handle(TopologyObserved(id="t2", at_s=22.0, topology=world.topology(world.container("other"))))
    with pytest.raises(NotFoundError):
        loop.handle(answer("d-000001", 23.0))
    assert loop.handle(answer("d-000001", 24.0, granted=False)).decisions[0].status is S.REFUSED


def test_an_approval_without_quota_left_is_refused(world: Any) -> None:
    sla = SlaConfig(availability=0.985, window_s=700.0)  # 10.5 s
    loop = started(world, mode=Mode.APPROVE, sla=sla, alarm=AlarmConfig(votes_needed=1, votes_of=1, cooldown_s=0))
    grown = world.container("front", memory_limit_bytes=8192 * 2.0**20)
    loop.handle(TopologyObserved(id="t", at_s=1.0, topology=world.topology(grown)))
    loop.handle(world.verdicts(10.0, world.verdict(kind=K.HIGH_MEMORY)))
    (waiting,) = loop.decisions()
    assert (waiting.status, waiting.predicted_downtime_s) == (S.AWAITING_APPROVAL, 5.0)
    loop._ledger.reserve("front", "someone else", 6.0, at_s=20.0)
    with pytest.raises(QuotaError):
        loop.handle(answer(waiting.id, 21.0))
    assert loop.handle(answer(waiting.id, 710.0)).instructions != ()  # a new window


def test_what_is_not_worth_its_price_is_left_to_a_person(world: Any) -> None:
    sla = SlaConfig(availability=0.99, window_s=700.0)  # 7 s: a restart of up to 5 s would take most of it
    loop = started(world, sla=sla, alarm=AlarmConfig(votes_needed=1, votes_of=1))
    grown = world.container("front", memory_limit_bytes=8192 * 2.0**20)
    loop.handle(TopologyObserved(id="t", at_s=1.0, topology=world.topology(grown)))
    (decision,) = loop.handle(world.verdicts(10.0, world.verdict(kind=K.HIGH_MEMORY))).decisions
    assert (decision.mitigation, decision.status, decision.instructions) == (M.NOTIFY, S.NOTED, ())
    assert "worth its price" in decision.reason
    assert decision.rejected[0].mitigation is M.MEMORY_LIMIT_RESTART
    assert decision.rejected[0].feasible


def test_a_quota_window_that_ends_during_an_action(world: Any) -> None:
    loop = started(world, sla=SlaConfig(availability=0.99, window_s=700.0))
    loop.handle(world.verdicts(690.0, world.verdict(kind=K.HIGH_MEMORY)))
    report(world, loop, "d-000001/0", 705.0, downtime_s=100.0)
    status = loop.status()
    assert status.quota_violations == 1
    assert {a.container: a.spent_s for a in status.quota}["front"] == 0.0


def test_violations_outlive_their_container(world: Any) -> None:
    loop = started(world)
    loop.handle(world.verdicts(10.0, world.verdict(kind=K.HIGH_MEMORY)))
    report(world, loop, "d-000001/0", 20.0, downtime_s=5000.0)
    loop.handle(TopologyObserved(id="t", at_s=30.0, topology=world.topology(world.container("other"))))
    assert loop.status().quota_violations == 1


def test_an_outcome_after_its_container_vanished(world: Any) -> None:
    loop = started(world)
    loop.handle(world.verdicts(10.0, world.verdict()))
    loop.handle(TopologyObserved(id="t", at_s=15.0, topology=world.topology(world.container("other"))))
    assert report(world, loop, "d-000001/0", 20.0, done=False, error="gone").status is S.FAILED
    assert loop.handle(world.verdicts(2000.0)).decisions == ()
    with pytest.raises(NotFoundError):
        loop.handle(world.verdicts(2010.0, world.verdict("front")))


def test_one_window_has_one_vote(world: Any) -> None:
    loop = started(world, alarm=AlarmConfig())
    with pytest.raises(InputError, match="two verdicts on front"):
        loop.handle(world.verdicts(10.0, world.verdict(), world.verdict()))
    assert loop.status().flagged == 0
    loop.handle(world.verdicts(20.0, world.verdict()))
    assert loop.status().alarms == 0


def test_time_that_goes_backwards_moves_nothing_backwards(world: Any) -> None:
    loop = started(world)
    loop.handle(world.verdicts(1000.0, world.verdict()))
    step = loop.handle(world.verdicts(500.0, world.verdict("other")))
    assert step.decisions[0].at_s == 500.0
    assert loop.at_s == loop.status().at_s == 1000.0


def test_a_second_run_on_one_journal(world: Any) -> None:
    loop = started(world, mode=Mode.APPROVE)
    loop.handle(world.verdicts(10.0, world.verdict(kind=K.HIGH_MEMORY), world.verdict("other")))
    loop.handle(answer("d-000001", 11.0))
    with pytest.raises(ConflictError, match="under way"):
        loop.handle(world.run(id="run-2", at_s=20.0))
    report(world, loop, "d-000001/0", 20.0, downtime_s=2.0)
    with pytest.raises(ConflictError, match="another clock"):
        loop.handle(world.run(id="run-2", at_s=5.0))
    step = loop.handle(world.run(id="run-2", at_s=30.0))
    assert [(d.id, d.status) for d in step.decisions] == [("d-000002", S.LAPSED)]
    account = loop.status().quota[0]
    assert (account.container, account.spent_s) == ("front", 2.0)  # a restart refills no budget
    (decision,) = loop.handle(world.verdicts(40.0, world.verdict())).decisions
    assert decision.id == "d-000003"  # ids and keys go on
    loop.handle(OutcomeReported(id="o", at_s=41.0, outcome=world.outcome("d-000003/0")))
    loop.handle(replace(world.run(id="run-3", at_s=50.0), sla=SlaConfig(availability=0.9)))
    assert loop.status().quota[0].spent_s == 0.0  # another agreement, another ledger


def test_degraded_containers_are_shown(world: Any) -> None:
    loop = started(world)
    loop.handle(world.verdicts(10.0, degraded=("back",), scanned=2))
    assert (loop.status().degraded, loop.status().windows) == (("back",), 2)


def test_an_approval_while_the_container_is_being_acted_upon_waits(world: Any) -> None:
    loop = started(world, mode=Mode.APPROVE)
    loop.handle(world.verdicts(10.0, world.verdict()))
    loop._fleet.begin(Scale(key="someone else", container="front", replicas=2))
    with pytest.raises(ConflictError, match="under way"):
        loop.handle(answer("d-000001", 11.0))
    loop._fleet.end("someone else")
    assert loop.handle(answer("d-000001", 12.0)).instructions != ()


def test_several_instructions_for_one_container_are_given_out_one_after_the_other(world: Any) -> None:
    loop = started(world)
    loop.handle(world.verdicts(10.0, world.verdict(kind=K.STEP_LOAD)))
    report(world, loop, "d-000001/0", 20.0)
    grown = world.topology(world.container("front", replicas=2, memory_limit_bytes=768 * 2.0**20))
    loop.handle(TopologyObserved(id="t", at_s=20.0, topology=grown))
    (relaxed,) = loop.handle(world.verdicts(1000.0)).decisions
    first, second = relaxed.instructions
    assert loop.outbox() == (first,)
    report(world, loop, first.key, 1000.0, finished_at_s=1005.0)
    assert loop.outbox() == ()  # the first still takes effect
    loop.handle(world.verdicts(1010.0))
    assert loop.outbox() == (second,)
    assert report(world, loop, second.key, 1010.0).status is S.DONE


def test_what_an_action_claims_stays_claimed_until_it_has_taken_effect(world: Any) -> None:
    """Reported at once, finished later: between the two nobody else may be promised the same cores."""
    pair = (world.container("a", cpu_limit_cores=3.0), world.container("b", cpu_limit_cores=3.0))
    topology = world.topology(*pair, nodes=(world.node("edge", 9.5),))
    loop = started(world, topology=topology, alarm=AlarmConfig(votes_needed=1, votes_of=1))
    loop.handle(world.verdicts(10.0, world.verdict("a", K.STEP_LOAD)))
    report(world, loop, "d-000001/0", 10.0, finished_at_s=25.0)
    (second,) = loop.handle(world.verdicts(20.0, world.verdict("b", K.STEP_LOAD))).decisions
    assert second.mitigation is M.NOTIFY
    assert "0.5 free" in second.rejected[0].reason


def test_an_old_alarm_of_a_callee_blames_nobody(world: Any) -> None:
    front, back = world.container("front", depends_on=("back",)), world.container("back")
    loop = started(
        world, topology=world.topology(front, back), alarm=AlarmConfig(votes_needed=1, votes_of=3, cooldown_s=300.0)
    )
    loop.handle(world.verdicts(10.0, world.verdict("back", K.HIGH_CPU)))
    (watching,) = loop.handle(world.verdicts(30.0, world.verdict("front", drivers=LATENCY))).decisions
    assert watching.mitigation is M.KEEP_WATCHING
    # A minute later it is looked at again, and the callee has been quiet since.
    (acting,) = loop.handle(world.verdicts(100.0, world.verdict("front", drivers=LATENCY))).decisions
    assert acting.mitigation is not M.KEEP_WATCHING
