from __future__ import annotations

import hashlib
from typing import Any

import pytest

RAW = {"Content-Type": "application/octet-stream"}
MODELS = "/api/v1/models"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def publish(gateway: Any, token: str, data: bytes, name: str = "profiler") -> Any:
    return gateway("POST", f"{MODELS}/{name}/versions", content=data, headers=RAW, token=token)


def use(gateway: Any, token: str, data: bytes, **headers: str) -> Any:
    body = {"sha256": digest(data), "by": "ada", "note": "retrained"}
    return gateway("PUT", f"{MODELS}/profiler/current", json=body, token=token, headers=headers)


def in_use(gateway: Any) -> str:
    (model,) = gateway.get(MODELS).json()["items"]
    sha256: str = model["in_use"]["sha256"]
    return sha256


def test_what_the_system_was_started_with_is_in_use_until_somebody_chooses(gateway: Any) -> None:
    (model,) = gateway.get(MODELS).json()["items"]
    shipped = {"name": "profiler", "sha256": digest(b"4 the shipped one"), "at_s": None, "previous": None}
    assert model["in_use"] == {**shipped, "by": "", "note": ""}


def test_a_version_is_published_used_and_taken_back(gateway: Any, control: Any, token: str) -> None:
    first = in_use(gateway)
    kept = publish(gateway, token, b"3 better")
    assert kept.status_code == 201
    assert kept.json()["sha256"] == digest(b"3 better")
    assert in_use(gateway) == first
    used = use(gateway, token, b"3 better").json()
    assert (used["sha256"], used["previous"], used["by"], used["note"]) == (
        digest(b"3 better"),
        first,
        "ada",
        "retrained",
    )
    back = gateway("POST", f"{MODELS}/profiler/rollback", json={"by": "bob"}, token=token).json()
    assert (back["sha256"], back["previous"]) == (first, digest(b"3 better"))
    told = [e["body"] for e in gateway.get("/api/v1/audit").json()["items"] if e["kind"] == "model"]
    assert [(t["sha256"], t["by"]) for t in told] == [(digest(b"3 better"), "ada"), (first, "bob")]


def test_the_same_key_has_no_second_effect(gateway: Any, token: str) -> None:
    publish(gateway, token, b"3 better")
    key = {"Idempotency-Key": "once"}
    assert "idempotency-replayed" not in use(gateway, token, b"3 better", **key).headers
    rolled = {"json": {"by": "bob"}, "token": token, "headers": key}
    first = gateway("POST", f"{MODELS}/profiler/rollback", **rolled)
    again = gateway("POST", f"{MODELS}/profiler/rollback", **rolled)
    assert again.headers["idempotency-replayed"] == "true"
    assert first.json()["sha256"] == again.json()["sha256"] == in_use(gateway)
    replayed = use(gateway, token, b"3 better", **key)
    assert replayed.headers["idempotency-replayed"] == "true"
    assert in_use(gateway) == first.json()["sha256"]


def test_what_does_not_load_is_refused_and_the_old_one_stays(gateway: Any, token: str) -> None:
    before = in_use(gateway)
    assert publish(gateway, token, b"not a model").status_code == 422
    assert use(gateway, token, b"3 never published").status_code == 404
    assert publish(gateway, token, b"3 fine", name="nobody").status_code == 404
    assert in_use(gateway) == before


def test_a_version_that_would_refuse_what_clients_send_is_refused(gateway: Any, token: str) -> None:
    before = in_use(gateway)
    publish(gateway, token, b"9 samples")
    answer = use(gateway, token, b"9 samples")
    assert answer.status_code == 409
    assert "9 samples per window" in answer.json()["detail"]
    assert in_use(gateway) == before


def test_nothing_to_go_back_to(gateway: Any, token: str) -> None:
    answer = gateway("POST", f"{MODELS}/profiler/rollback", json={"by": "bob"}, token=token)
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:natwork:problem:conflict")


def test_changes_need_the_token(gateway: Any) -> None:
    before = in_use(gateway)
    for method, path in (("POST", "versions"), ("PUT", "current"), ("POST", "rollback")):
        assert gateway(method, f"{MODELS}/profiler/{path}", content=b"3", headers=RAW).status_code == 401
    assert in_use(gateway) == before


@pytest.mark.parametrize("media", ["application/json", ""])
def test_a_model_is_bytes(gateway: Any, token: str, media: str) -> None:
    answer = gateway("POST", f"{MODELS}/profiler/versions", content=b"3", headers={"Content-Type": media}, token=token)
    assert answer.status_code == 415
