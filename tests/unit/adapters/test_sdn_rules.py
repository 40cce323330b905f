"""From alerts to rules: what is refused, and what a rule says."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters.sdn_rules import MAX_LIFETIME_S, cookie, digest, flow_rules, lifetime_s
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.flow_alerts import FlowAdvice, FlowAlert, SuspectSource
from natwork_ray.errors import ActionError, PreconditionError


def suspects(*sources: str) -> tuple[SuspectSource, ...]:
    return tuple(SuspectSource(source=s, request_share=0.5, failed_share=0.0) for s in sources)


ALERT = FlowAlert(
    key="d-1/0", container="web", at_s=0.0, kind=AnomalyKind.TRAFFIC_SPIKE, likelihood=0.9,
    sources=suspects("203.0.113.0/24", "2001:db8::/32", "203.0.113.0/24"), advice=FlowAdvice.DROP, expires_at_s=60.0,
    destinations=("10.0.0.5", "fd00::5"), ports=(80,),
)  # fmt: skip


def test_every_pair_of_the_same_version_and_every_protocol_is_a_rule_once() -> None:
    rules = flow_rules(ALERT, now_s=0.0, destinations=())
    assert {(str(r.source), str(r.destination), r.protocol, r.port) for r in rules} == {
        ("203.0.113.0/24", "10.0.0.5", "tcp", 80),
        ("203.0.113.0/24", "10.0.0.5", "udp", 80),
        ("2001:db8::/32", "fd00::5", "tcp", 80),
        ("2001:db8::/32", "fd00::5", "udp", 80),
    }
    assert len(rules) == 4


def test_known_addresses_stand_in() -> None:
    unknown = replace(ALERT, destinations=(), ports=())
    (rule,) = flow_rules(replace(unknown, sources=suspects("203.0.113.7")), now_s=0.0, destinations=("10.0.0.9",))
    assert (rule.source, rule.destination) == (ipaddress.ip_network("203.0.113.7/32"), ipaddress.ip_address("10.0.0.9"))
    assert rule.port is None
    with pytest.raises(PreconditionError, match="nobody knows the addresses of web"):
        flow_rules(unknown, now_s=0.0, destinations=())


@pytest.mark.parametrize(
    "change",
    [
        {"sources": ()},
        {"sources": suspects("somewhere")},
        {"sources": suspects("203.0.113.1/24")},
        {"sources": suspects("0.0.0.0/0")},
        {"sources": suspects("2000::/3")},
        {"sources": suspects(*(f"203.0.{n}.0/24" for n in range(65)))},
        {"sources": suspects("2001:db8::/32"), "destinations": ("10.0.0.5",)},
        {"destinations": ("web",)},
        {"ports": (0,)},
        {"ports": (65_536,)},
        {"ports": tuple(range(1, 18))},
        {"expires_at_s": 0.0},
        {"expires_at_s": float(MAX_LIFETIME_S + 1)},
        {
            "sources": suspects(*(f"203.0.{n}.0/24" for n in range(64))),
            "destinations": tuple(f"10.0.0.{n}" for n in range(1, 10)),
            "ports": (),
        },
    ],
)
def test_what_cannot_be_rules_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ActionError) as refusal:
        flow_rules(replace(ALERT, **change), now_s=0.0, destinations=())
    assert refusal.value.hint


def test_a_life_is_rounded_up() -> None:
    assert lifetime_s(ALERT, now_s=59.2) == 1
    assert lifetime_s(ALERT, now_s=0.0) == 60


@given(st.text(min_size=1), st.text(min_size=1))
def test_cookies_are_ours_and_tell_keys_apart(one: str, other: str) -> None:
    assert cookie(one) >> 48 == 0x4E52
    assert (cookie(one) == cookie(other)) is (one == other)


def test_digests_tell_alerts_apart() -> None:
    assert digest(ALERT) == digest(replace(ALERT))
    assert digest(ALERT) != digest(replace(ALERT, reason="x"))
