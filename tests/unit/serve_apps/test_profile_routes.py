"""Profiles through the gateway: what is normal, what drifted, and orders to learn anew."""

from __future__ import annotations

from typing import Any

import pytest

from natwork_ray.control.events import DriftObserved, ProfilesLearnt, VerdictsReached
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict, Driver
from natwork_ray.domain.profiles import MetricDrift, ProfileDrift, ProfileSummary

V1 = "/api/v1"
NOW_S = 20_000.0


@pytest.fixture
def later(control: Any) -> Any:
    """The control service, long after its run began; service `upf` has a profile that has drifted."""
    summary = ProfileSummary(service="upf", from_s=0.0, to_s=3600.0, digest="0" * 64, ranges=())
    metric = MetricDrift(metric="cpu_utilization", shift=2.4, outside=0.2, psi=0.8)
    control.feed(
        ProfilesLearnt(id="learnt", at_s=NOW_S, profiles=(summary,)),
        DriftObserved(id="drift", at_s=NOW_S, drifts=(ProfileDrift(service="upf", at_s=NOW_S, metrics=(metric,)),)),
    )
    return control


def _verdict(at_s: float) -> AnomalyVerdict:
    return AnomalyVerdict(
        container="upf", at_s=at_s, score=0.99, kind=AnomalyKind.HIGH_CPU, confidence=0.9,
        drivers=(Driver(metric="cpu_utilization", deviation=12.0),),
    )  # fmt: skip


def _relearn(gateway: Any, token: str | None, body: dict[str, Any], *, service: str = "upf", **headers: str) -> Any:
    ask = {"token": token} if token else {}
    return gateway("POST", f"{V1}/profiles/{service}/relearn", json={"by": "alice", **body}, headers=headers, **ask)


def test_profiles_are_shown(later: Any, gateway: Any) -> None:
    shown = gateway.get(f"{V1}/profiles").json()
    assert [p["service"] for p in shown["profiles"]] == ["upf"]
    assert shown["drifts"][0]["metrics"][0]["shift"] == 2.4
    assert gateway.get(f"{V1}/state").json()["drifted"] == ["upf"]


def test_by_default_the_last_hour_teaches(later: Any, gateway: Any, token: str) -> None:
    answer = _relearn(gateway, token, {"note": "release 2"})
    assert answer.status_code == 202
    assert answer.json() == {
        "service": "upf", "from_s": NOW_S - 3600, "to_s": NOW_S, "by": "alice", "note": "release 2", "forced": False,
    }  # fmt: skip
    assert gateway.get(f"{V1}/profiles").json()["relearning"] == [answer.json()]
    assert [e.kind for e in later.journal.entries(0, 100)].count("profile") == 3


def test_an_order_under_a_key_is_given_once(later: Any, gateway: Any, token: str) -> None:
    body = {"from_s": 15_000.0, "to_s": 16_000.0}
    first, second = (_relearn(gateway, token, body, **{"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.json(), "idempotency-replayed" in first.headers) == (second.json(), False)
    assert second.headers["idempotency-replayed"] == "true"
    other = _relearn(gateway, token, body | {"from_s": 15_100.0}, **{"Idempotency-Key": "k"})
    assert "idempotency-replayed" not in other.headers


def test_alarms_stand_in_the_way_of_an_order_that_does_not_insist(later: Any, gateway: Any, token: str) -> None:
    for number in range(3):
        at_s = NOW_S + 10 * number
        later.feed(VerdictsReached(id=f"v{number}", at_s=at_s, scanned=3, verdicts=(_verdict(at_s),)))
    refused = _relearn(gateway, token, {})
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:natwork:problem:conflict")
    assert "alarms" in refused.json()["detail"]
    assert _relearn(gateway, token, {"force": True}).status_code == 202


@pytest.mark.parametrize(
    ("body", "service", "status"),
    [
        ({}, "nobody", 404),
        ({"from_s": 5.0, "to_s": 4.0}, "upf", 422),
        ({"from_s": -5.0}, "upf", 422),
        ({"to_s": 1e9}, "upf", 422),
        ({"surprise": 1}, "upf", 422),
    ],
)
def test_orders_that_make_no_sense(
    later: Any, gateway: Any, token: str, body: dict[str, Any], service: str, status: int
) -> None:
    assert _relearn(gateway, token, body, service=service).status_code == status
    assert gateway.get(f"{V1}/profiles").json()["relearning"] == []


def test_without_the_token_nothing_is_learnt(later: Any, gateway: Any) -> None:
    assert _relearn(gateway, None, {}).status_code == 401
