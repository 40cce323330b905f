"""Ordering migrations over HTTP: accepted, refused, repeated, foretold, followed; and what hostile bodies get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import FastAPI

from natwork_ray.control.events import OutcomeReported
from natwork_ray.domain.actions import ActionOutcome, Migrate, MigrationMethod
from natwork_ray.domain.migrations import (
    MethodReason,
    MigrationForecast,
    MigrationOutlook,
    MigrationProgress,
    MigrationRecord,
    MigrationState,
)
from natwork_ray.domain.values import Backend
from natwork_ray.errors import TimedOutError
from serve_apps.gateway_api import create_app

V1 = "/api/v1"
ORDER = {"container": "analytics-2", "target": "edge-1", "by": "alice"}


class Agents:
    """LiMi agents that have measured already."""

    def __init__(self, methods: Sequence[MigrationMethod] = tuple(MigrationMethod), downtime_s: float = 0.4) -> None:
        self.methods, self.downtime_s = tuple(methods), downtime_s
        self.failing: Exception | None = None
        self.running: dict[str, MigrationProgress] = {}
        self.asked: list[tuple[str, str, str, float | None]] = []

    async def outlook(self, container: str, *, source: str, target: str, weight: float | None) -> MigrationOutlook:
        self.asked.append((container, source, target, weight))
        if self.failing is not None:
            raise self.failing
        forecasts = tuple(
            MigrationForecast(
                method=m, total_p50_s=3.0, total_p95_s=4.0, downtime_p50_s=0.2, downtime_p95_s=self.downtime_s
            )
            for m in self.methods
        )
        return MigrationOutlook(
            container=container, source=source, target=target, backend=Backend.EMULATED, weight=weight or 0.2,
            load=None, forecasts=forecasts, chosen=next(iter(self.methods), None), chosen_by="rule", reason="least",
            impossible=tuple(
                MethodReason(method=m, reason="criu is missing") for m in MigrationMethod if m not in self.methods
            ),
        )  # fmt: skip

    async def progress(self, key: str, *, source: str) -> MigrationProgress | None:
        return self.running.get(key)


class Present:
    """The control and the agents of the test that runs: routes take a tenth of a second to build, so all share them."""

    control: Any
    agents: Agents

    async def provide(self) -> Any:
        return await self.control.provide()

    async def outlook(self, container: str, *, source: str, target: str, weight: float | None) -> MigrationOutlook:
        return await self.agents.outlook(container, source=source, target=target, weight=weight)

    async def progress(self, key: str, *, source: str) -> MigrationProgress | None:
        return await self.agents.progress(key, source=source)


@pytest.fixture
def agents() -> Agents:
    return Agents()


@pytest.fixture(scope="module")
def shared(token: str) -> tuple[FastAPI, Present]:
    present = Present()
    hosts = ("127.0.0.1",)
    app = create_app(present.provide, token=token, max_body_bytes=65_536, allowed_hosts=hosts, agents=present)
    return app, present


@pytest.fixture
def doors(control: Any, agents: Agents, shared: tuple[FastAPI, Present], make_client: Any) -> Any:
    app, present = shared
    present.control, present.agents = control, agents
    return make_client(app)


def kinds(control: Any) -> list[str]:
    return [e.kind for e in control.journal.entries(0, 1000)]


def test_an_order_is_accepted_followed_and_recorded(doors: Any, control: Any, agents: Agents, token: str) -> None:
    answer = doors(
        "POST", f"{V1}/migrations", token=token, json={**ORDER, "method": "hybrid", "weight": 0.5, "note": "n"}
    )
    assert answer.status_code == 202
    body = answer.json()
    key = body["instruction"]["key"]
    assert answer.headers["location"] == f"{V1}/migrations/{key}"
    assert (body["status"], body["outcome"], body["instruction"]["method"]) == ("issued", None, "hybrid")
    assert agents.asked == [("analytics-2", "core-1", "edge-1", 0.5)]
    assert kinds(control)[-2:] == ["decision", "instruction"]
    decision = doors.get(f"{V1}/decisions/{body['decision']}").json()
    assert (decision["order"]["by"], decision["order"]["note"], decision["downtimes_s"]) == ("alice", "n", [0.4])
    agents.running[key] = MigrationProgress(
        key=key, container="analytics-2", source="core-1", target="edge-1", method=MigrationMethod.HYBRID,
        elapsed_s=1.0, under_way=("dump",), phases_in_all=15,
    )  # fmt: skip
    assert doors.get(answer.headers["location"]).json()["progress"]["under_way"] == ["dump"]
    record = MigrationRecord(
        key=key, container="analytics-2", source="core-1", target="edge-1", method=MigrationMethod.HYBRID,
        backend=Backend.EMULATED, state=MigrationState.MIGRATED, started_at_s=10.0, total_s=2.0, downtime_s=0.3,
        runs_on="edge-1",
    )  # fmt: skip
    outcome = ActionOutcome(
        key=key, done=True, started_at_s=10.0, finished_at_s=12.0, downtime_s=0.3, backend=Backend.EMULATED, detail="",
        record=record,
    )  # fmt: skip
    control.feed(OutcomeReported(id="o", at_s=12.0, outcome=outcome))
    ended = doors.get(answer.headers["location"]).json()
    assert (ended["status"], ended["progress"], ended["outcome"]["record"]["runs_on"]) == ("done", None, "edge-1")
    assert kinds(control)[-1] == "outcome"


def test_the_same_key_is_the_same_order(doors: Any, control: Any, token: str) -> None:
    ask: dict[str, Any] = {"token": token, "headers": {"Idempotency-Key": "k-1"}}
    once = doors("POST", f"{V1}/migrations", **ask, json=ORDER)
    twice = doors("POST", f"{V1}/migrations", **ask, json=ORDER)
    assert (once.status_code, twice.status_code) == (202, 202)
    assert once.json() == twice.json()
    assert once.headers["location"] == twice.headers["location"]
    assert "idempotency-replayed" not in once.headers
    assert twice.headers["idempotency-replayed"] == "true"
    other = doors("POST", f"{V1}/migrations", **ask, json={**ORDER, "note": "another"})
    assert (other.status_code, other.json()["type"]) == (409, "urn:natwork:problem:conflict")
    assert kinds(control).count("instruction") == 1


def test_a_refused_order_is_recorded_and_refused_again(doors: Any, control: Any, agents: Agents, token: str) -> None:
    agents.downtime_s = 5000.0
    ask: dict[str, Any] = {"token": token, "headers": {"Idempotency-Key": "k"}, "json": ORDER}
    for _ in range(2):
        answer = doors("POST", f"{V1}/migrations", **ask)
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:natwork:problem:refused")
        assert "of quota are left" in answer.json()["detail"]
    decisions = [d for d in doors.get(f"{V1}/decisions").json()["items"] if d["order"]]
    assert [d["status"] for d in decisions] == ["refused"]
    assert control.pending() == ()


def test_what_the_machines_cannot_do_changes_nothing(doors: Any, control: Any, agents: Agents, token: str) -> None:
    before = control.journal.entry_count()
    agents.methods = (MigrationMethod.COLD,)
    answer = doors("POST", f"{V1}/migrations", token=token, json={**ORDER, "method": "post-copy"})
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:natwork:problem:precondition")
    assert "criu is missing" in answer.json()["detail"]
    agents.methods = ()
    for path, body in (("migrations", ORDER), ("service-migrations", {"service": "video", "target": None, "by": "a"})):
        assert doors("POST", f"{V1}/{path}", token=token, json=body).status_code == 503
    agents.failing = TimedOutError("the agent is away", hint="wait")
    assert doors("POST", f"{V1}/migrations", token=token, json=ORDER).status_code == 503
    assert control.journal.entry_count() == before


def test_a_service_moves_in_one_decision(doors: Any, control: Any, agents: Agents, token: str) -> None:
    body = {"service": "video", "target": "core-1", "by": "alice"}
    answer = doors("POST", f"{V1}/service-migrations", token=token, json=body, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 202
    found = answer.json()
    assert answer.headers["location"] == f"{V1}/decisions/{found['decision']['id']}"
    assert [m["instruction"]["container"] for m in found["migrations"]] == ["analytics-1", "upf"]
    assert len(agents.asked) == 2, "analytics-2 is there already"
    again = doors("POST", f"{V1}/service-migrations", token=token, json=body, headers={"Idempotency-Key": "k"})
    assert again.headers["idempotency-replayed"] == "true"
    pending = [i for i in control.pending() if isinstance(i, Migrate)]
    assert {i.container for i in pending} == {"analytics-1", "upf"}
    assert {i.together.on_failure for i in pending if i.together} == {"bring-back"}
    assert {i.together.id for i in pending if i.together} == {found["decision"]["id"]}
    other = doors(
        "POST", f"{V1}/service-migrations", token=token, json={**body, "on_failure": "carry-on"},
        headers={"Idempotency-Key": "k"},
    )  # fmt: skip
    assert other.status_code == 409, "another wish under the same key"


def test_a_dry_run_leaves_no_trace(doors: Any, control: Any, token: str) -> None:
    before = control.journal.entry_count()
    found = doors("POST", f"{V1}/migration-forecasts", token=token, json=ORDER).json()
    assert found["decision"]["status"] == "issued"
    assert len(found["outlooks"][0]["forecasts"]) == 4
    assert [q["container"] for q in found["quota"]] == ["analytics-2"]
    spread = doors(
        "POST", f"{V1}/migration-forecasts", token=token, json={"service": "video", "target": None, "by": "a"}
    ).json()
    assert len(spread["outlooks"]) == len(spread["starts"]) == 3
    assert [m["container"] for m in spread["schedule"]["plan"]["migrations"]] == [
        m["container"] for m in spread["schedule"]["request"]["members"]
    ]
    assert (control.journal.entry_count(), control.pending()) == (before, ())


def test_without_agents_the_loop_predicts_from_limits(gateway: Any, token: str) -> None:
    answer = gateway("POST", f"{V1}/migrations", token=token, json=ORDER)
    assert answer.status_code == 202
    key = answer.json()["instruction"]["key"]
    assert gateway.get(f"{V1}/migrations/{key}").json()["progress"] is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("migrations", {**ORDER, "container": "ghost"}),
        ("migrations", {**ORDER, "target": "nowhere"}),
        ("service-migrations", {"service": "ghost", "target": None, "by": "a"}),
        ("service-migrations", {"service": "video", "target": "nowhere", "by": "a"}),
        ("migration-forecasts", {**ORDER, "container": "ghost"}),
    ],
)
def test_orders_about_nothing_are_404(doors: Any, control: Any, token: str, path: str, body: Any) -> None:
    before = control.journal.entry_count()
    assert doors("POST", f"{V1}/{path}", token=token, json=body).status_code == 404
    assert control.journal.entry_count() == before


@pytest.mark.parametrize(
    "change",
    [
        {"container": ""},
        {"container": "c" * 254},
        {"container": 1},
        {"target": None},
        {"by": ""},
        {"by": "a\nb"},
        {"method": "warm"},
        {"weight": 1.5},
        {"weight": -0.1},
        {"note": "n" * 2001},
        {"source": "edge-1"},
    ],
)
def test_senseless_orders_are_422(doors: Any, control: Any, token: str, change: Any) -> None:
    before = control.journal.entry_count()
    for path in ("migrations", "migration-forecasts"):
        assert doors("POST", f"{V1}/{path}", token=token, json={**ORDER, **change}).status_code == 422
    assert control.journal.entry_count() == before
