"""The gateway on Serve: reading, proofs, the event stream, and an approval that ends in the hands of a LiMi agent."""

from __future__ import annotations

import os
import signal
from typing import Any

import httpx
import psutil
import pytest

from agents import haproxy
from natwork_ray.audit.notes import VerifierKey
from natwork_ray.audit.proofs import InclusionProof, verify_entry
from natwork_ray.domain.actions import NODE_LOCAL
from natwork_ray.domain.decisions import DecisionStatus
from natwork_ray.errors import VerificationError


def test_the_state_is_the_loops(loop: Any, http: httpx.Client) -> None:
    loop.turn()
    state = http.get("/state").raise_for_status().json()
    assert state["at_s"] == loop.at_s
    assert state["backend"] == "emulated"
    assert len(state["topology"]["containers"]) == 12
    assert http.get("/health").json() == {"alive": True, "control": True, "detail": ""}
    assert {n["name"] for n in http.get("/nodes").json()} == {"edge-1", "edge-2", "core-1"}


@pytest.mark.parametrize("wrong", [None, "Bearer guessed-by-an-attacker", "Basic Zm9vOmJhcg=="])
def test_a_change_without_the_token_is_refused(loop: Any, http: httpx.Client, wrong: str | None) -> None:
    headers = {"Authorization": wrong} if wrong else {}
    answer = http.put("/mode", json={"mode": "act", "by": "mallory"}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert http.get("/mode").json()["mode"] == "approve"


def test_an_approved_decision_is_carried_out_by_the_nodes_agent_and_audited(
    loop: Any, http: httpx.Client, token: dict[str, str]
) -> None:
    for _ in range(300):
        waiting = [
            d
            for d in loop.turn().decisions
            if d.status is DecisionStatus.AWAITING_APPROVAL and isinstance(d.instructions[0], NODE_LOCAL)
        ]
        if waiting:
            break
    decision = waiting[0]
    page = http.get("/decisions", params={"status": "awaiting_approval"}).json()
    assert decision.id in [item["id"] for item in page["items"]]
    approval = {"granted": True, "by": "a test", "note": "seen"}
    refused = http.post(f"/decisions/{decision.id}/approval", json=approval)
    assert refused.status_code == 401
    key = {"Idempotency-Key": "once"}
    granted = http.post(f"/decisions/{decision.id}/approval", json=approval, headers={**token, **key})
    assert granted.raise_for_status().json()["status"] == "issued"
    again = http.post(f"/decisions/{decision.id}/approval", json=approval, headers={**token, **key})
    assert again.headers["idempotency-replayed"] == "true"

    outcomes = loop.turn().outcomes
    assert [o.key for o in outcomes] == [i.key for i in decision.instructions]
    assert http.get(f"/decisions/{decision.id}").json()["status"] == "done"
    effects = loop.runner.run(loop.supervisor.crew.world.effects([o.key for o in outcomes]))
    assert set(effects) == {1}

    entries = http.get("/audit", params={"limit": 1000}).json()["items"]
    told = [entry["kind"] for entry in entries if decision.id in str(entry["body"])]
    assert told[0] == "decision"
    assert told.index("approval") < told.index("outcome")


def test_every_entry_is_proved_and_a_changed_line_is_not(loop: Any, http: httpx.Client) -> None:
    loop.turn()
    key = VerifierKey.parse(http.get("/audit/key").text.strip())
    entry = http.get("/audit/0").raise_for_status().json()
    answer = http.get("/audit/0/proof").raise_for_status().json()
    hashes = tuple(bytes.fromhex(h) for h in answer["hashes"])
    proof = InclusionProof(answer["seq"], answer["size"], hashes, answer["checkpoint"].encode())
    line = entry["line"].encode()
    assert verify_entry(line, proof, key).kind == "run"
    with pytest.raises(VerificationError):
        verify_entry(line.replace(b"smart-city", b"smart-citY"), proof, key)


def test_the_event_stream_is_the_audit_log(loop: Any, http: httpx.Client) -> None:
    with http.stream("GET", "/events", params={"start": 0, "follow": "false"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = list(answer.iter_lines())
    ids = [int(line.removeprefix("id: ")) for line in lines if line.startswith("id: ")]
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    entries = http.get("/audit", params={"limit": 1000}).json()["items"]
    assert ids == list(range(len(entries)))
    assert data == [entry["line"] for entry in entries]


def test_the_doors_survive_a_killed_control_actor(loop: Any, http: httpx.Client) -> None:
    before = http.get("/state").json()
    os.kill(loop.runner.run(loop.supervisor.crew.control.pid()), signal.SIGKILL)
    assert http.get("/state").raise_for_status().json() == before


def test_serve_listens_on_loopback_only(ray_cluster: Any, anomaly_app: str) -> None:
    ours = {p.pid for p in psutil.Process().children(recursive=True)}
    listening = [
        c.laddr for c in psutil.net_connections("inet") if c.pid in ours and c.status == psutil.CONN_LISTEN and c.laddr
    ]
    assert {address.ip for address in listening if address.port == ray_cluster.http.port} == {"127.0.0.1"}
    replicas = {address.ip for address in listening if 30_000 <= address.port <= 31_000}
    assert replicas <= {"127.0.0.1"}, "HAProxy passes requests to the replicas' own servers"
    balancers = {p.pid for p in psutil.process_iter(["name"]) if p.info["name"] == "haproxy"} & ours
    addresses = {c.laddr.ip for c in psutil.net_connections("inet") if c.pid in balancers and c.status == "LISTEN"}
    assert addresses == ({"127.0.0.1"} if haproxy.binary() else set()), "its statistics as well"
    assert 9000 not in {address.port for address in listening}, "Serve's gRPC proxy is not wanted"


def test_a_foreign_host_name_is_refused(loop: Any, http: httpx.Client) -> None:
    assert http.get("/state", headers={"Host": "attacker.example"}).status_code in (400, 403, 421)
