from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.values import plain
from natwork_ray.errors import PreconditionError
from natwork_ray.limi.selector_file import read_selector
from serve_apps.migration_api import MAX_LOADS, PREFIX, Served, create_app

MIB = 2.0**20
LOAD = ContainerLoad(
    memory_bytes=80 * MIB, dirty_bytes_per_s=5 * MIB, working_set_bytes=20 * MIB, cpu_cores=0.5, cpu_limit_cores=1.0,
    volume_bytes=40 * MIB, volume_delta_bytes=8 * MIB, volume_write_bytes_per_s=MIB, network_rx_bytes_per_s=1e4,
    network_tx_bytes_per_s=4e4, bandwidth_bytes_per_s=100 * MIB, rtt_s=0.002, observed_s=5.0,
)  # fmt: skip
HOST = "testserver"


@pytest.fixture(scope="module")
def served_selector() -> Served:
    return Served(*read_selector())


@pytest.fixture(scope="module")
def app(served_selector: Served) -> FastAPI:
    async def provide() -> Served:
        return served_selector

    return create_app(provide, max_body_bytes=200_000, allowed_hosts=("127.0.0.1", HOST))


@pytest.fixture
def ask(app: FastAPI, make_client: Callable[[FastAPI], Any]) -> Any:
    return make_client(app)


def loads(*changes: dict[str, Any]) -> dict[str, Any]:
    return {"loads": [{**plain(LOAD), **change} for change in changes or ({},)]}


def test_the_card_is_shown(ask: Any, served_selector: Served) -> None:
    answer = ask.get(f"{PREFIX}/model").json()
    assert answer["sha256"] == served_selector.sha256
    assert answer["card"]["features"] == list(served_selector.selector.card.features)


def test_every_method_is_forecast_for_every_load(ask: Any, served_selector: Served) -> None:
    body = loads({}, {"memory_bytes": 1e13})
    answer = ask("POST", f"{PREFIX}/predict", json=body).json()
    assert answer["model"] == served_selector.sha256
    usual, huge = answer["loads"]
    assert [f["method"] for f in usual["forecasts"]] == list(MigrationMethod)
    assert usual["forecasts"][0] == pytest.approx(plain(served_selector.selector.predict(LOAD)[0]))
    assert usual["extrapolated"] == []
    assert "memory_bytes" in huge["extrapolated"]


def test_the_choice_follows_weight_and_what_is_allowed(ask: Any) -> None:
    def chosen(**more: Any) -> Any:
        return ask("POST", f"{PREFIX}/choose", json={**loads(), **more}).json()["choices"][0]

    assert chosen(weight=1.0)["method"] == "cold"
    assert chosen(weight=0.0)["method"] != "cold"
    only = chosen(weight=0.0, allowed=["cold"])
    assert (only["method"], only["cost_s"]) == ("cold", only["forecast"]["downtime_p50_s"])
    assert chosen() == chosen(weight=0.2)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"loads": []}, "body.loads"),
        ({"loads": [{}]}, "body.loads.0"),
        (loads({"memory_bytes": "80"}), "body.loads.0.memory_bytes"),
        (loads({"more": 1}), "body.loads.0.more"),
        (loads({}, {"memory_bytes": -1}), "load 1, memory_bytes"),
        (loads({"observed_s": -1}), "load 0, observed_s"),
        (loads({"bandwidth_bytes_per_s": 0}), "load 0, bandwidth_bytes_per_s"),
        ({**loads(), "weight": 1.5}, "body.weight"),
        ({**loads(), "allowed": []}, "body.allowed"),
        ({**loads(), "allowed": ["warm"]}, "body.allowed.0"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(ask: Any, body: Any, place: str) -> None:
    answer = ask("POST", f"{PREFIX}/choose", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.json()["detail"].startswith(place)
    assert answer.json()["hint"]


def test_bodies_that_are_no_json_or_too_long_are_refused(ask: Any) -> None:
    headers = {"Content-Type": "application/json"}
    for content in (b"", b"{", b"[1]", b'{"loads": NaN}', b"\xff"):
        assert ask("POST", f"{PREFIX}/predict", content=content, headers=headers).status_code == 422
    assert ask("POST", f"{PREFIX}/predict", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert ask("POST", f"{PREFIX}/predict", content=b" " * 200_001, headers=headers).status_code == 413


def test_the_number_of_loads_is_bounded(served_selector: Served, make_client: Callable[[FastAPI], Any]) -> None:
    async def provide() -> Served:
        return served_selector

    ask = make_client(create_app(provide, max_body_bytes=2**24, allowed_hosts=("127.0.0.1",)))
    body = json.dumps({"loads": [plain(LOAD)] * (MAX_LOADS + 1)}).encode()
    answer = ask("POST", f"{PREFIX}/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "4096" in answer.json()["detail"]


def test_without_models_it_says_why(make_client: Callable[[FastAPI], Any]) -> None:
    async def provide() -> Served:
        raise PreconditionError("LightGBM cannot be loaded", hint="install libgomp1")

    ask = make_client(create_app(provide, max_body_bytes=1000, allowed_hosts=("127.0.0.1",)))
    answer = ask.get(f"{PREFIX}/model")
    assert (answer.status_code, answer.json()["hint"]) == (503, "install libgomp1")


def test_only_known_hosts_are_answered(app: FastAPI) -> None:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://evil.example") as client:
            return await client.get(f"{PREFIX}/model")

    assert asyncio.run(get()).status_code == 421
