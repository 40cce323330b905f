from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from natwork_ray.audit.merkle import leaf_hash, verify_inclusion
from natwork_ray.audit.notes import VerifierKey, open_checkpoint
from natwork_ray.audit.proofs import ConsistencyProof, verify_extension
from natwork_ray.control.events import ModeChanged, OutcomeReported
from natwork_ray.domain.actions import ActionOutcome
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.values import Backend
from natwork_ray.errors import StoreError, TimedOutError, UsageError
from serve_apps.event_stream import EventStream, StreamLimits
from serve_apps.gateway_api import create_app

V1 = "/api/v1"
PROBLEM = "application/problem+json"


def is_problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["hint"]
    assert "Traceback" not in answer.text
    return body


def waiting(gateway: Any) -> list[str]:
    page = gateway.get(f"{V1}/decisions?status=awaiting_approval").json()
    return [d["id"] for d in page["items"]]


# Reading.


def test_health_says_that_control_answers(gateway: Any) -> None:
    answer = gateway.get(f"{V1}/health")
    assert answer.json() == {"alive": True, "control": True, "detail": ""}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


def test_health_lives_while_control_does_not(gateway: Any, control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    control.failing = TimedOutError("control is restarting", hint="wait")
    body = gateway.get(f"{V1}/health").json()
    assert body == {"alive": True, "control": False, "detail": "control is restarting (wait)"}
    control.failing, control.hanging = None, True
    monkeypatch.setattr("serve_apps.gateway_api._HEALTH_TIMEOUT_S", 0.001)
    assert gateway.get(f"{V1}/health").json()["control"] is False


def test_without_a_run_control_answers_but_has_no_state(
    empty_control: Any, make_gateway: Callable[..., FastAPI], make_client: Any
) -> None:
    client = make_client(make_gateway(empty_control))
    health = client.get(f"{V1}/health").json()
    assert health["control"] is True
    assert "no world" in health["detail"]
    assert is_problem(client.get(f"{V1}/state"), 409)["type"] == "urn:natwork:problem:conflict"
    assert client.get(f"{V1}/decisions").json() == {"items": [], "next": None}
    assert client.get(f"{V1}/audit").json() == {"size": 0, "items": [], "next": None}
    is_problem(client.get(f"{V1}/audit/0/proof"), 404)
    assert client.get(f"{V1}/audit/consistency?old_size=0").json()["hashes"] == []


def test_state_mode_nodes_containers(gateway: Any) -> None:
    state = gateway.get(f"{V1}/state").json()
    assert (state["mode"], state["awaiting_approval"], state["degraded"]) == ("approve", 2, ["analytics-2"])
    assert gateway.get(f"{V1}/mode").json() == {"mode": "approve", "at_s": 10.0}
    assert [n["name"] for n in gateway.get(f"{V1}/nodes").json()] == ["edge-1", "core-1"]
    node = gateway.get(f"{V1}/nodes/edge-1").json()
    assert [c["name"] for c in node["containers"]] == ["analytics-1", "upf"]
    assert len(node["links"]) == 1
    container = gateway.get(f"{V1}/containers/upf").json()
    assert container["container"]["slice"] == "urllc"
    assert container["quota"]["budget_s"] == pytest.approx(1296.0)
    assert container["degraded"] is False
    assert container["decision"]["container"] == "upf"
    assert gateway.get(f"{V1}/containers/analytics-2").json()["decision"] is None


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["analytics-1", "analytics-2", "upf"]),
        ("?node=edge-1", ["analytics-1", "upf"]),
        ("?slice=embb", ["analytics-1", "analytics-2"]),
        ("?service=upf", ["upf"]),
        ("?node=edge-1&slice=embb&service=analytics", ["analytics-1"]),
        ("?node=nowhere", []),
    ],
)
def test_containers_are_filtered(gateway: Any, query: str, names: list[str]) -> None:
    assert [c["name"] for c in gateway.get(f"{V1}/containers{query}").json()] == names


def test_decisions_are_paged_and_filtered(gateway: Any) -> None:
    first = gateway.get(f"{V1}/decisions?limit=1").json()
    assert len(first["items"]) == 1
    second = gateway.get(f"{V1}/decisions?limit=1&after={first['next']}").json()
    assert second["next"] is None
    assert second["items"][0]["id"] != first["items"][0]["id"]
    assert [d["container"] for d in gateway.get(f"{V1}/decisions?container=upf").json()["items"]] == ["upf"]
    assert gateway.get(f"{V1}/decisions?status=done").json()["items"] == []
    one = first["items"][0]
    assert gateway.get(f"{V1}/decisions/{one['id']}").json() == one


def test_migrations_are_joined_with_their_outcomes(gateway: Any, control: Any, token: str) -> None:
    page = gateway.get(f"{V1}/migrations?limit=1").json()
    assert page["next"] == page["items"][0]["instruction"]["key"]
    assert len(gateway.get(f"{V1}/migrations?after={page['next']}").json()["items"]) == 1
    decision = waiting(gateway)[0]
    gateway("POST", f"{V1}/decisions/{decision}/approval", token=token, json={"granted": True, "by": "alice"})
    (instruction,) = control.pending()
    outcome = ActionOutcome(
        key=instruction.key,
        done=True,
        started_at_s=11.0,
        finished_at_s=15.0,
        downtime_s=0.4,
        backend=Backend.EMULATED,
        detail="moved",
    )
    control.feed(OutcomeReported(id="o", at_s=15.0, outcome=outcome))
    one = gateway.get(f"{V1}/migrations/{instruction.key}").json()
    assert (one["status"], one["outcome"]["downtime_s"], one["decision"]) == ("done", 0.4, decision)
    assert gateway.get(f"{V1}/migrations?container={instruction.container}").json()["items"] == [one]


@pytest.mark.parametrize(
    "path",
    [
        "/nodes/none",
        "/containers/none",
        "/containers/%00",
        "/containers/a%0Ab",
        "/decisions/none",
        "/decisions?after=none",
        "/migrations/none",
        "/migrations?after=none",
        "/audit/4711",
        "/audit/4711/proof",
        "/nothing",
    ],
)
def test_what_is_not_there_is_404(gateway: Any, path: str) -> None:
    is_problem(gateway.get(V1 + path), 404)


@pytest.mark.parametrize(
    "path",
    [
        "/audit/-1",
        "/audit/x",
        f"/audit/{2**63}",
        f"/audit/{2**64}/proof",
        f"/audit/{'9' * 6000}",
        "/audit?start=-1",
        "/audit?limit=0",
        "/audit?limit=1001",
        f"/audit?start={2**63}",
        "/audit?start=1e3",
        "/audit/consistency",
        "/audit/consistency?old_size=999999",
        "/decisions?status=whatever",
        "/decisions?limit=NaN",
        f"/containers/{'x' * 300}",
        f"/events?start={2**63}",
        "/events?follow=perhaps",
    ],
)
def test_senseless_paths_and_queries_are_422_with_a_hint(gateway: Any, path: str) -> None:
    is_problem(gateway.get(V1 + path), 422)


# Changing.


def test_an_approval_is_recorded_and_its_instructions_issued(gateway: Any, control: Any, token: str) -> None:
    first, second = waiting(gateway)
    body = {"granted": True, "by": "alice", "note": "go"}
    granted = gateway("POST", f"{V1}/decisions/{first}/approval", token=token, json=body)
    assert granted.json()["status"] == "issued"
    refused = gateway("POST", f"{V1}/decisions/{second}/approval", token=token, json={"granted": False, "by": "bob"})
    assert refused.json()["status"] == "refused"
    assert len(control.pending()) == 1
    kinds = [e.kind for e in control.journal.entries(0, 100)]
    assert kinds.count("approval") == 2
    again = gateway("POST", f"{V1}/decisions/{first}/approval", token=token, json=body)
    assert "awaits no approval" in is_problem(again, 409)["detail"]


def test_an_idempotency_key_makes_a_repetition_harmless(gateway: Any, control: Any, token: str) -> None:
    path = f"{V1}/decisions/{waiting(gateway)[0]}/approval"
    ask = {"token": token, "headers": {"Idempotency-Key": "k-1"}, "json": {"granted": True, "by": "alice"}}
    once, twice = gateway("POST", path, **ask), gateway("POST", path, **ask)
    assert once.json() == twice.json()
    assert "idempotency-replayed" not in once.headers
    assert twice.headers["idempotency-replayed"] == "true"
    assert [e.kind for e in control.journal.entries(0, 100)].count("approval") == 1
    other = f"{V1}/decisions/{waiting(gateway)[0]}/approval"
    assert gateway("POST", other, **ask).json()["status"] == "issued", "a key counts per decision"


def test_the_mode_is_changed(gateway: Any, control: Any, token: str) -> None:
    ask = {"token": token, "headers": {"Idempotency-Key": "m"}, "json": {"mode": "observe", "by": "alice"}}
    assert gateway("PUT", f"{V1}/mode", **ask).json() == {"mode": "observe", "at_s": 10.0}
    gateway("PUT", f"{V1}/mode", token=token, json={"mode": "act", "by": "alice"})
    assert gateway("PUT", f"{V1}/mode", **ask).json()["mode"] == "act", "a repetition tells how things are"
    assert [e.kind for e in control.journal.entries(0, 100)].count("mode") == 2


def test_a_key_with_another_body_is_another_request(gateway: Any, control: Any, token: str) -> None:
    ask = {"token": token, "headers": {"Idempotency-Key": "same"}}
    gateway("PUT", f"{V1}/mode", **ask, json={"mode": "approve", "by": "alice"})
    changed = gateway("PUT", f"{V1}/mode", **ask, json={"mode": "observe", "by": "alice"})
    assert changed.json()["mode"] == "observe"
    assert "idempotency-replayed" not in changed.headers


def test_a_grant_in_mode_observe_is_409(gateway: Any, token: str) -> None:
    gateway("PUT", f"{V1}/mode", token=token, json={"mode": "observe", "by": "alice"})
    path = f"{V1}/decisions/{waiting(gateway)[0]}/approval"
    is_problem(gateway("POST", path, token=token, json={"granted": True, "by": "alice"}), 409)


def test_an_unknown_decision_is_404(gateway: Any, token: str) -> None:
    path = f"{V1}/decisions/none/approval"
    is_problem(gateway("POST", path, token=token, json={"granted": True, "by": "alice"}), 404)


DEEP = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        "[]",
        "NaN",
        '{"granted": NaN, "by": "a"}',
        '{"granted": Infinity, "by": "a"}',
        '{"granted": "yes", "by": "a"}',
        '{"granted": 1, "by": "a"}',
        '{"granted": true}',
        '{"granted": true, "by": ""}',
        '{"granted": true, "by": "a\\u0000b"}',
        '{"granted": true, "by": "a\\nb"}',
        '{"granted": true, "by": "\\ud800"}',
        '{"granted": true, "by": "a", "more": 1}',
        '{"granted": true, "by": 1' + "0" * 5000 + "}",
        '{"granted": true, "by": "' + "a" * 201 + '"}',
        '{"granted": true, "by": "a", "note": "' + "n" * 2001 + '"}',
        DEEP[: 2**15] + DEEP[-(2**15) :],
        b"\xff\xfe",
    ],
)
def test_senseless_bodies_are_4xx_with_a_hint(gateway: Any, token: str, body: Any) -> None:
    path = f"{V1}/decisions/{waiting(gateway)[0]}/approval"
    answer = gateway("POST", path, token=token, content=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    is_problem(answer, answer.status_code)
    assert len(waiting(gateway)) == 2


@pytest.mark.parametrize("key", ["", "a b", "x" * 201, "\u00e4"])
def test_senseless_idempotency_keys_are_422(gateway: Any, token: str, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    is_problem(gateway("PUT", f"{V1}/mode", token=token, headers=headers, json={"mode": "act", "by": "a"}), 422)


# The door.


def unsafe_routes(app: FastAPI) -> list[tuple[str, str]]:
    return [
        (method, route.path.replace("{decision_id}", "d-000001"))
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
        if method not in ("GET", "HEAD", "OPTIONS")
    ]


def test_every_route_that_changes_something_needs_the_token(gateway: Any, control: Any, token: str) -> None:
    routes = unsafe_routes(gateway.app)
    assert len(routes) == 5, "walks the routes that exist"
    before = control.journal.entry_count()
    for method, path in [*routes, ("DELETE", "/nowhere"), ("PATCH", f"{V1}/state")]:
        for headers in (
            {},
            {"Authorization": ""},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {token}"},
            {"Authorization": f"Bearer {token}x"},
            {"Authorization": f"Bearer {token[:-1]}"},
            {"Authorization": b"Bearer \xff\xfe"},
        ):
            answer = gateway(method, path, headers=headers, content=b"{")
            assert token not in json.dumps(is_problem(answer, 401))
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert control.journal.entry_count() == before


def test_two_authorization_headers_are_refused(gateway: Any, token: str) -> None:
    headers = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]
    assert_401(gateway.app, headers)


def assert_401(app: FastAPI, headers: list[tuple[str, str]]) -> None:
    raw = [(b"host", b"127.0.0.1"), *((k.lower().encode(), v.encode()) for k, v in headers)]
    sent = ask_raw(app, "PUT", f"{V1}/mode", raw, [b"{}"])
    assert sent[0]["status"] == 401


def ask_raw(
    app: FastAPI, method: str, path: str, headers: list[tuple[bytes, bytes]], chunks: list[bytes], *, ends: bool = True
) -> list[Any]:
    """Speak ASGI directly: what no HTTP client would send, or could not in pieces."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": headers,
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 5000),
    }
    queue = [{"type": "http.request", "body": c, "more_body": True} for c in chunks]
    if ends:
        queue.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def receive() -> Any:
        return queue.pop(0) if queue else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_only_allowed_hosts_are_answered_for(gateway: Any, host: str, status: int) -> None:
    sent = ask_raw(gateway.app, "GET", f"{V1}/health", [(b"host", host.encode())], [])
    assert sent[0]["status"] == status


@pytest.mark.parametrize("hosts", [[], [b"127.0.0.1", b"evil.example"]])
def test_no_or_two_host_headers_are_400(gateway: Any, hosts: list[bytes]) -> None:
    assert ask_raw(gateway.app, "GET", f"{V1}/health", [(b"host", h) for h in hosts], [])[0]["status"] == 400


def test_a_foreign_page_gets_no_permission_to_read(gateway: Any) -> None:
    answer = gateway.get(f"{V1}/state", headers={"Origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_bodies_are_bounded_with_and_without_a_length(gateway: Any, token: str) -> None:
    is_problem(gateway("PUT", f"{V1}/mode", token=token, content=b" " * 65_537), 413)
    headers = [(b"host", b"127.0.0.1"), (b"authorization", f"bearer {token}".encode())]
    assert ask_raw(gateway.app, "PUT", f"{V1}/mode", headers, [b" " * 40_000] * 2)[0]["status"] == 413
    absurd = [*headers, (b"content-length", b"9" * 5000)]
    assert ask_raw(gateway.app, "PUT", f"{V1}/mode", absurd, [])[0]["status"] == 413
    assert ask_raw(gateway.app, "PUT", f"{V1}/mode", headers, [b" " * 40_000])[0]["status"] == 422


def test_half_a_request_has_no_effect(gateway: Any, control: Any, token: str) -> None:
    headers = [
        (b"host", b"127.0.0.1"),
        (b"authorization", f"Bearer {token}".encode()),
        (b"content-type", b"application/json"),
    ]
    whole = b'{"mode": "act", "by": "alice"}'
    assert ask_raw(gateway.app, "PUT", f"{V1}/mode", headers, [whole], ends=False) == []
    assert gateway.get(f"{V1}/mode").json()["mode"] == "approve"
    assert ask_raw(gateway.app, "PUT", f"{V1}/mode", headers, [whole])[0]["status"] == 200


def test_a_wrong_method_is_405_and_says_which_are_right(gateway: Any, token: str) -> None:
    answer = gateway("DELETE", f"{V1}/state", token=token)
    is_problem(answer, 405)
    assert answer.headers["allow"] == "GET"


def test_control_out_of_reach_is_503_and_says_when_to_retry(gateway: Any, control: Any) -> None:
    for error in (TimedOutError("restarting", hint="wait"), StoreError("disk", hint="look")):
        control.failing = error
        answer = gateway.get(f"{V1}/state")
        assert is_problem(answer, 503)["hint"] == error.hint
        assert answer.headers["retry-after"] == "1"


def test_what_nobody_foresaw_is_a_bare_500(gateway: Any, control: Any, make_client: Any) -> None:
    control.failing = RuntimeError("secret path /etc/shadow")
    body = is_problem(make_client(gateway.app, raises=False).get(f"{V1}/state"), 500)
    assert "secret" not in json.dumps(body)


@pytest.mark.parametrize("token", ["", "short", "x" * 15, "with a blank in the middle", "\u00e4" * 20, "line\n" * 5])
def test_an_unusable_token_is_refused_at_the_start(control: Any, token: str) -> None:
    with pytest.raises(UsageError, match="API token") as caught:
        create_app(control.provide, token=token, max_body_bytes=1, allowed_hosts=["localhost"])
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize(("hosts", "limit"), [((), 1024), (("localhost",), 0)])
def test_a_door_without_hosts_or_room_is_refused(
    control: Any, make_gateway: Callable[..., FastAPI], make_client: Any, hosts: Any, limit: int
) -> None:
    with pytest.raises(UsageError, match="door"):
        make_client(make_gateway(control, hosts=hosts, limit=limit)).get(f"{V1}/health")


def test_the_token_is_never_logged(gateway: Any, token: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        gateway("PUT", f"{V1}/mode", token=token, json={"mode": "act", "by": "alice"})
        gateway("PUT", f"{V1}/mode", token=token + "x", json={"mode": "act", "by": "alice"})
    assert token not in caplog.text


# The audit log.


def test_entries_are_paged_and_proved(gateway: Any, control: Any) -> None:
    size = control.journal.entry_count()
    page = gateway.get(f"{V1}/audit?start=1&limit=2").json()
    assert ([e["seq"] for e in page["items"]], page["next"], page["size"]) == ([1, 2], 3, size)
    assert gateway.get(f"{V1}/audit?start={size - 1}").json()["next"] is None
    assert gateway.get(f"{V1}/audit?start={size + 5}").json() == {"size": size, "items": [], "next": None}
    key = VerifierKey.parse(gateway.get(f"{V1}/audit/key").text.strip())
    for seq in range(size):
        line = gateway.get(f"{V1}/audit/{seq}").json()["line"].encode()
        proof = gateway.get(f"{V1}/audit/{seq}/proof").json()
        head = open_checkpoint(proof["checkpoint"].encode(), key)
        hashes = [bytes.fromhex(h) for h in proof["hashes"]]
        verify_inclusion(leaf_hash(line), seq, proof["size"], hashes, head.root)


def test_an_old_checkpoint_is_proved_to_be_a_beginning(gateway: Any, token: str) -> None:
    old = gateway.get(f"{V1}/audit/checkpoint")
    assert old.headers["content-type"] == "text/plain; charset=utf-8"
    key = VerifierKey.parse(gateway.get(f"{V1}/audit/key").text.strip())
    old_size = open_checkpoint(old.content, key).size
    gateway("PUT", f"{V1}/mode", token=token, json={"mode": "act", "by": "alice"})
    body = gateway.get(f"{V1}/audit/consistency?old_size={old_size}").json()
    hashes = tuple(bytes.fromhex(h) for h in body["hashes"])
    proof = ConsistencyProof(body["old_size"], body["size"], hashes, body["checkpoint"].encode())
    assert verify_extension(old.content, proof, key).size == old_size + 1


# The event stream.


def frames(text: str) -> list[dict[str, str]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "id" in fields:
            found.append(fields)
    return found


def test_events_are_the_log_line_by_line(gateway: Any, control: Any) -> None:
    answer = gateway.get(f"{V1}/events?start=0&follow=false")
    assert answer.headers["content-type"].startswith("text/event-stream")
    got = frames(answer.text)
    entries = control.journal.entries(0, 100)
    assert [(int(f["id"]), f["event"], f["data"].encode()) for f in got] == [(e.seq, e.kind, e.line) for e in entries]


def test_last_event_id_resumes_and_outranks_start(gateway: Any, control: Any) -> None:
    size = control.journal.entry_count()
    answer = gateway.get(f"{V1}/events?start=0&follow=false", headers={"Last-Event-ID": "1"})
    assert [int(f["id"]) for f in frames(answer.text)] == list(range(2, size))
    end = gateway.get(f"{V1}/events?follow=false", headers={"Last-Event-ID": str(size - 1)})
    assert (end.status_code, frames(end.text)) == (200, [])
    assert len(frames(gateway.get(f"{V1}/events?start=2&follow=false", headers={"Last-Event-ID": ""}).text)) == size - 2


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 19, "\u00b2"])
def test_a_senseless_last_event_id_is_422(gateway: Any, last: str) -> None:
    is_problem(gateway.get(f"{V1}/events?follow=false", headers={"Last-Event-ID": last.encode("latin-1")}), 422)


def test_resuming_beyond_the_end_is_a_conflict(gateway: Any, control: Any) -> None:
    size = control.journal.entry_count()
    assert "shorter" in is_problem(gateway.get(f"{V1}/events?start={size + 1}"), 409)["hint"]


def test_a_quiet_stream_beats_and_ends_by_itself(gateway: Any) -> None:
    text = gateway.get(f"{V1}/events").text
    assert frames(text) == []
    assert text.startswith("retry: 1000\n\n")


def test_a_stream_follows_the_log_through_a_restart_of_control(control: Any) -> None:
    async def story() -> list[bytes]:
        stream = EventStream(control.provide, StreamLimits(poll_s=0.0, heartbeat_s=0.0, stream_s=60.0))
        size = control.journal.entry_count()
        source = stream.events(size, until=None)
        got = [await anext(source), await anext(source)]
        control.failing = TimedOutError("restarting", hint="wait")
        got.append(await anext(source))
        control.failing = None
        await control.submit((ModeChanged(id="m", at_s=20.0, mode=Mode.ACT, by="alice"),))
        while not got[-1].startswith(b"id: "):
            got.append(await anext(source))
        await source.aclose()
        assert stream._open == 0
        return got

    got = asyncio.run(story())
    assert got[1] == b": quiet\n\n"
    assert got[2] == b": the control service does not answer\n\n"
    assert b"event: mode\n" in got[-1]


def test_streams_are_counted(control: Any) -> None:
    async def story() -> None:
        stream = EventStream(control.provide, StreamLimits(poll_s=0.0, streams=1))
        source = stream.events(0, until=None)
        await anext(source)
        with pytest.raises(TimedOutError, match="as many as allowed"):
            await stream.respond(None, follow=True)
        await source.aclose()
        await stream.respond(None, follow=True)

    asyncio.run(story())


# The document.


def test_the_document_describes_every_route_and_its_errors(gateway: Any) -> None:
    document = gateway.get(f"{V1}/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], path
            assert operation["description"], path
            statuses = set(operation["responses"])
            assert {"400", "413", "421"} <= statuses
            if method not in ("get", "head"):
                assert "401" in statuses
                assert operation["security"]
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert list(response["content"]) == [PROBLEM]
    assert "HTTPValidationError" not in document["components"]["schemas"]
