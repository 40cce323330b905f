"""What an alert does to the emulated network's traffic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from natwork_ray.domain.actions import Scale
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.flow_alerts import FlowAdvice, FlowAlert, SuspectSource
from natwork_ray.emulation.injections import ATTACKS, Injection
from natwork_ray.emulation.scenarios import smart_city
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import ActionError, NotFoundError

ATTACKER = "203.0.113.0/28"


def attacked() -> Testbed:
    attack = Injection(kind=ATTACKS[0], container="auth", start_s=100.0, end_s=900.0, intensity=0.8, source=ATTACKER)
    testbed = Testbed(smart_city(), seed=5, schedule=(attack,))
    testbed.advance(200)
    return testbed


def alert(testbed: Testbed, advice: FlowAdvice, *sources: str, **more: float) -> FlowAlert:
    return FlowAlert(
        key=f"{advice}-{len(sources)}", container="auth", at_s=testbed.now_s, kind=AnomalyKind.TRAFFIC_SPIKE,
        likelihood=0.9, advice=advice, expires_at_s=more.get("expires_at_s", 2000.0),
        sources=tuple(SuspectSource(source=s, request_share=0.5, failed_share=0.5) for s in sources),
    )  # fmt: skip


def sources(testbed: Testbed) -> set[str]:
    return {f.source for f in testbed.flows(["auth"], testbed.now_s)["auth"]}


@pytest.mark.parametrize("advice", [FlowAdvice.DROP, FlowAdvice.RATE_LIMIT])
def test_the_attacker_is_gone(advice: FlowAdvice) -> None:
    testbed = attacked()
    assert ATTACKER in sources(testbed)
    testbed.apply(alert(testbed, advice, ATTACKER))
    testbed.advance(240)
    assert ATTACKER not in sources(testbed)


def test_inspection_changes_nothing() -> None:
    testbed = attacked()
    testbed.apply(alert(testbed, FlowAdvice.INSPECT, ATTACKER))
    testbed.advance(240)
    assert ATTACKER in sources(testbed)


def test_a_limit_spares_the_users_of_a_network_and_a_drop_does_not() -> None:
    testbed = Testbed(smart_city(), seed=5)
    testbed.advance(200)
    user = min(sources(testbed))
    testbed.apply(alert(testbed, FlowAdvice.RATE_LIMIT, user))
    testbed.advance(240)
    assert user in sources(testbed)
    testbed.apply(alert(testbed, FlowAdvice.DROP, user))
    testbed.advance(280)
    assert user not in sources(testbed)
    testbed.withdraw("drop-1")
    testbed.advance(320)
    assert user in sources(testbed)


def test_an_alert_ends_by_itself_and_the_attack_goes_on() -> None:
    testbed = attacked()
    testbed.apply(alert(testbed, FlowAdvice.DROP, ATTACKER, expires_at_s=300.0))
    testbed.advance(280)
    assert ATTACKER not in sources(testbed)
    testbed.advance(340)
    assert ATTACKER in sources(testbed)


def test_the_container_need_not_be_idle() -> None:
    testbed = attacked()
    testbed.apply(Scale(key="s", container="auth", replicas=3))
    assert testbed.apply(alert(testbed, FlowAdvice.DROP, ATTACKER)).done
    assert testbed.apply(replace(alert(testbed, FlowAdvice.DROP, ATTACKER), key="again")).done


def test_bad_alerts_are_refused() -> None:
    testbed = attacked()
    for bad in (
        alert(testbed, FlowAdvice.DROP, "0.0.0.0/0"),
        alert(testbed, FlowAdvice.DROP, "nowhere"),
        alert(testbed, FlowAdvice.DROP, ATTACKER, expires_at_s=1.0),
    ):
        with pytest.raises(ActionError):
            testbed.apply(bad)
    with pytest.raises(NotFoundError):
        testbed.apply(replace(alert(testbed, FlowAdvice.DROP, ATTACKER), container="nobody"))
