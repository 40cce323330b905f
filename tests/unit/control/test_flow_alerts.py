"""An alarm and suspect sources become an alert for the network, beside whatever is done at the container."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from natwork_ray.control.events import OutcomeReported
from natwork_ray.control.flow_alerts import ALERT_S, flow_alert
from natwork_ray.control.loop import ControlLoop
from natwork_ray.domain.actions import FlowAlert
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.decisions import DecisionStatus, MitigationKind, Mode
from natwork_ray.domain.flow_alerts import FlowAdvice, SuspectSource

K = AnomalyKind


def suspect(requests: float, failed: float = 0.0, usual: float = 0.0, source: str = "203.0.113.7/32") -> SuspectSource:
    return SuspectSource(source=source, request_share=requests, failed_share=failed, usual_request_share=usual)


@pytest.mark.parametrize(
    ("sources", "advice"),
    [
        ([suspect(0.6)], FlowAdvice.DROP),
        ([suspect(0.05, 0.9)], FlowAdvice.DROP),
        ([suspect(0.2)], FlowAdvice.RATE_LIMIT),
        ([suspect(0.25, 0.3, 0.2)], FlowAdvice.INSPECT),
    ],
)
def test_the_advice_follows_the_evidence(world: Any, sources: list[SuspectSource], advice: FlowAdvice) -> None:
    alert = flow_alert("d-1", world.verdict("back", K.HIGH_CPU), K.HIGH_CPU, sources, 100.0)
    assert (alert.key, alert.advice, alert.expires_at_s) == ("d-1/flow", advice, 100.0 + ALERT_S)
    assert "203.0.113.7/32" in alert.reason


def _alarmed(world: Any, *, mode: Mode = Mode.ACT, sdn: bool = True, kind: K = K.HIGH_CPU, **fields: Any) -> Any:
    loop = ControlLoop(world.predict)
    loop.handle(replace(world.run(mode=mode), sdn=sdn))
    event = replace(world.verdicts(10.0, world.verdict("back", kind)), suspects={"back": (suspect(0.6),)}, **fields)
    step = loop.handle(event)
    return loop, step


def test_the_network_is_told_beside_the_mitigation(world: Any) -> None:
    loop, step = _alarmed(world)
    (decision,) = step.decisions
    main, alert = decision.instructions
    assert decision.mitigation is not MitigationKind.FLOW_ALERT
    assert isinstance(alert, FlowAlert)
    assert alert.key == f"{decision.id}/flow"
    assert alert.sources[0].request_share == 0.6
    assert "the network is told (drop)" in decision.reason
    # Both at once: an alert waits for no container.
    assert loop.outbox() == (main, alert)


def test_an_alert_neither_waits_for_its_container_nor_holds_it_up(world: Any) -> None:
    loop, step = _alarmed(world)
    main, alert = step.instructions
    done = world.outcome(alert.key, finished_at_s=500.0)
    loop.handle(OutcomeReported(id="o1", at_s=21.0, outcome=done))
    assert loop.outbox() == (main,)
    loop.handle(OutcomeReported(id="o2", at_s=22.0, outcome=world.outcome(main.key, finished_at_s=23.0)))
    assert loop.decisions()[0].status is DecisionStatus.DONE
    assert loop.status().under_way == 0
    # Only what was done at the container itself keeps the next one waiting.
    assert loop._pacing.changing_until_s("back", 24.0) is None


def test_an_alert_that_fails_is_a_decision_that_failed(world: Any) -> None:
    loop, step = _alarmed(world)
    for number, instruction in enumerate(step.instructions):
        good = not isinstance(instruction, FlowAlert)
        outcome = replace(world.outcome(instruction.key), done=good, error="" if good else "no switch answers")
        loop.handle(OutcomeReported(id=f"o{number}", at_s=21.0, outcome=outcome))
    assert loop.decisions()[0].status is DecisionStatus.FAILED


def test_where_nothing_else_is_possible_the_alert_is_the_mitigation(world: Any) -> None:
    loop = ControlLoop(world.predict)
    full = world.topology(world.container("back", cpu_limit_cores=8.0, replicas=8), links=())
    loop.handle(replace(world.run(topology=full, mode=Mode.ACT), sdn=True))
    step = loop.handle(
        replace(world.verdicts(10.0, world.verdict("back", K.HIGH_CPU)), suspects={"back": (suspect(0.6),)})
    )
    (decision,) = step.decisions
    assert decision.mitigation is MitigationKind.FLOW_ALERT
    assert [type(i) for i in decision.instructions] == [FlowAlert]
    assert decision.status is DecisionStatus.ISSUED


def test_without_a_controller_nobody_is_told(world: Any) -> None:
    _, step = _alarmed(world, sdn=False)
    assert not any(isinstance(i, FlowAlert) for d in step.decisions for i in d.instructions)


@pytest.mark.parametrize(
    ("mode", "status"),
    [(Mode.OBSERVE, DecisionStatus.RECOMMENDED), (Mode.APPROVE, DecisionStatus.AWAITING_APPROVAL)],
)
def test_modes_hold_for_alerts_too(world: Any, mode: Mode, status: DecisionStatus) -> None:
    loop, step = _alarmed(world, mode=mode)
    (decision,) = step.decisions
    assert decision.status is status
    assert any(isinstance(i, FlowAlert) for i in decision.instructions)
    assert step.instructions == loop.outbox() == ()


def test_a_replay_comes_to_the_same_alert(world: Any) -> None:
    loop, _ = _alarmed(world)
    again = ControlLoop(world.predict)
    again.handle(replace(world.run(mode=Mode.ACT), sdn=True))
    # The event of the replay has lost its suspects: what was decided counts, and nothing is decided again.
    again.handle(world.verdicts(10.0, world.verdict("back", K.HIGH_CPU)), decided=loop.decisions())
    assert again.outbox() == loop.outbox()
