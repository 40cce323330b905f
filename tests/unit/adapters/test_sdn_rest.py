"""The REST controller: what is sent, how often, to whom, and what an answer means."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from natwork_ray.adapters.open_vswitch import OpenVSwitch
from natwork_ray.adapters.sdn_controllers import read_token, sdn_controller
from natwork_ray.adapters.sdn_rest import MAX_ANSWER_BYTES, RestController, RestSettings
from natwork_ray.config import SdnConfig
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.flow_alerts import FlowAdvice, FlowAlert, SuspectSource
from natwork_ray.domain.values import plain
from natwork_ray.errors import (
    ActionError,
    ConflictError,
    NatworkError,
    PreconditionError,
    TimedOutError,
    UsageError,
)

ALERT = FlowAlert(
    key="d-1/ä 0", container="web", at_s=5.0, kind=AnomalyKind.TRAFFIC_SPIKE, likelihood=0.9,
    sources=(SuspectSource(source="203.0.113.0/24", request_share=0.8, failed_share=0.2),), advice=FlowAdvice.DROP,
    expires_at_s=60.0, destinations=("10.0.0.5",), ports=(80,),
)  # fmt: skip
URL = "https://sdn.example/alerts/"


class Controller:
    """Answers as told, one after the other, the last for ever."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.requests, self.pauses = list(answers), [], []
        self.requests: list[httpx.Request]
        self.pauses: list[float]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def connect(self, url: str = URL, token: str = "", **settings: Any) -> RestController:
        return RestController(
            url, token=token, now_s=lambda: 5.0, settings=RestSettings(**settings), pause=self.pause,
            transport=httpx.MockTransport(self),
        )  # fmt: skip


def run(work: Any) -> Any:
    return asyncio.run(work)


def test_a_webhook_gets_the_alert_with_its_key_and_token() -> None:
    there = Controller(httpx.Response(202))
    outcome = run(there.connect(token="secret").alert(ALERT))
    (request,) = there.requests
    assert (request.method, str(request.url)) == ("POST", "https://sdn.example/alerts")
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["Idempotency-Key"] == "d-1/%C3%A4%200"
    assert json.loads(request.content) == plain(ALERT)
    assert "sdn.example: drop accepted with 202" in outcome.detail


def test_onos_gets_rules_that_end() -> None:
    there = Controller(httpx.Response(200))
    controller = there.connect(token="onos:rocks", dialect="onos", devices=("of:1", "of:2"))
    run(controller.alert(ALERT))
    run(controller.withdraw(ALERT.key))
    post, delete = there.requests
    assert post.headers["Authorization"] == f"Basic {base64.b64encode(b'onos:rocks').decode()}"
    flows = json.loads(post.content)["flows"]
    assert [f["deviceId"] for f in flows] == ["of:1", "of:1", "of:2", "of:2"]
    assert flows[0] == {
        "priority": 40_002,
        "timeout": 55,
        "isPermanent": False,
        "deviceId": "of:1",
        "treatment": {},
        "selector": {
            "criteria": [
                {"type": "ETH_TYPE", "ethType": "0x800"},
                {"type": "IPV4_SRC", "ip": "203.0.113.0/24"},
                {"type": "IPV4_DST", "ip": "10.0.0.5/32"},
                {"type": "IP_PROTO", "protocol": 6},
                {"type": "TCP_DST", "tcpPort": 80},
            ]
        },
    }
    application = post.url.params["appId"]
    assert delete.url.path.endswith(f"/onos/v1/flows/application/{application}")


def test_onos_can_only_drop() -> None:
    controller = Controller(httpx.Response(200)).connect(dialect="onos", devices=("of:1",))
    for advice in (FlowAdvice.RATE_LIMIT, FlowAdvice.INSPECT):
        with pytest.raises(ActionError, match="ONOS's flow API cannot"):
            run(controller.alert(replace(ALERT, advice=advice)))


def test_a_busy_controller_is_asked_again_with_the_same_key() -> None:
    there = Controller(
        httpx.Response(503),
        httpx.ConnectError("down"),
        httpx.Response(429, headers={"Retry-After": "7"}),
        httpx.Response(200),
    )
    assert run(there.connect().alert(ALERT)).done
    assert there.pauses == [0.5, 1.0, 7.0]
    assert len({r.headers["Idempotency-Key"] for r in there.requests}) == 1


def test_no_answer_is_a_timeout_and_the_key_stays_free() -> None:
    there = Controller(*[httpx.ReadTimeout("slow")] * 4, httpx.Response(200))
    controller = there.connect()
    with pytest.raises(TimedOutError, match="4 attempts: ReadTimeout"):
        run(controller.alert(ALERT))
    assert run(controller.alert(ALERT)).done
    with pytest.raises(TimedOutError):
        run(Controller(httpx.Response(502)).connect(attempts=1).withdraw("x"))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (301, PreconditionError),
        (400, ActionError),
        (401, PreconditionError),
        (403, PreconditionError),
        (404, ActionError),
        (409, ConflictError),
        (500, ActionError),
    ],
)
def test_refusals_are_final(status: int, error: type[NatworkError]) -> None:
    there = Controller(httpx.Response(status, text="no", headers={"Location": "https://elsewhere.example"}))
    with pytest.raises(error):
        run(there.connect(token="secret").alert(ALERT))
    assert len(there.requests) == 1  # nothing is sent elsewhere


def test_an_endless_answer_is_read_to_a_bound() -> None:
    read = 0

    async def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield b"x" * 1024

    assert run(Controller(httpx.Response(200, content=endless())).connect().alert(ALERT)).done
    assert read * 1024 <= MAX_ANSWER_BYTES + 1024


def test_alerts_that_are_told_at_once_are_sent_once() -> None:
    there = Controller(httpx.Response(200))
    controller = there.connect()

    async def both() -> Any:
        return await asyncio.gather(*(controller.alert(ALERT) for _ in range(5)))

    assert len(set(run(both()))) == 1
    assert len(there.requests) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda c: c.connect("ftp://sdn.example"),
        lambda c: c.connect("https://user:pass@sdn.example"),
        lambda c: c.connect("https://sdn.example/?a=b"),
        lambda c: c.connect("https://sdn.example:port"),
        lambda c: c.connect("http://sdn.example", token="secret"),
        lambda c: c.connect(dialect="onos"),
    ],
)
def test_unusable_addresses(make: Callable[[Controller], RestController]) -> None:
    with pytest.raises(UsageError):
        make(Controller(httpx.Response(200)))


def test_a_token_may_go_to_this_machine_in_the_clear() -> None:
    assert Controller(httpx.Response(200)).connect("http://127.0.0.1:8181", token="secret")


def test_what_the_configuration_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"now_s": lambda: 0.0}
    assert sdn_controller(SdnConfig(), **now) is None
    assert isinstance(sdn_controller(SdnConfig(kind="onos", url=URL, devices="of:1, of:2"), **now), RestController)
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    assert isinstance(sdn_controller(SdnConfig(kind="webhook", url=URL, token_file=token), **now), RestController)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert isinstance(sdn_controller(SdnConfig(kind="open-vswitch"), **now), OpenVSwitch)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(PreconditionError, match="Open vSwitch's programs are missing"):
        sdn_controller(SdnConfig(kind="open-vswitch"), **now)


def test_tokens_that_cannot_be_used(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with pytest.raises(PreconditionError, match="cannot read"):
        read_token(token)
    for content in ("", "two words", "x" * 5000, "ä"):
        token.write_text(content)
        token.chmod(0o600)
        with pytest.raises(PreconditionError, match="holds no token"):
            read_token(token)
    token.chmod(0o644)
    with pytest.raises(PreconditionError, match="others may read it"):
        read_token(token)
