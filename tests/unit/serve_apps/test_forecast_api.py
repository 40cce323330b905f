"""The forecast door: three ways in, one way through, and answers that say which version gave them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natwork_ray.domain.forecasts import LoadForecast
from natwork_ray.domain.telemetry import METRICS, TelemetryWindow
from natwork_ray.domain.values import Backend
from natwork_ray.errors import PreconditionError
from natwork_ray.forecasting.card import ForecasterCard, ForecastSettings
from serve_apps.forecast_api import MAX_WINDOWS, PREFIX, ForecastModelInfo, ServedForecaster, create_app
from serve_apps.local_samples import LocalSamples

T, K, H = 4, 2, 2
RAW = "application/octet-stream"
CPU, RSS = METRICS.index("cpu_utilization"), METRICS.index("memory_rss_bytes")


class Persistence:
    """Naive: the newest sample goes on; the band is half as wide and twice as high."""

    window = T
    metrics = (METRICS[CPU], METRICS[RSS])
    horizons = (1, 10)

    def __init__(self) -> None:
        self.seen: list[TelemetryWindow] = []

    def forecast(self, window: TelemetryWindow) -> tuple[LoadForecast, ...]:
        self.seen.append(window)
        newest = np.nan_to_num(window.values[:, -1].astype(float))
        return tuple(
            LoadForecast(
                container=name,
                service=service,
                metric=str(METRICS[k]),
                at_s=window.end_s,
                step_s=window.step_s,
                horizons=(1, 10),
                expected=(newest[i, k],) * H,
                lower=(newest[i, k] / 2,) * H,
                upper=(newest[i, k] * 2,) * H,
                model="naive",
                likelihood=0.25,
                degraded="" if window.length >= T else "short",
            )
            for i, (name, service) in enumerate(zip(window.containers, window.services, strict=True))
            for k in (CPU, RSS)
        )


@pytest.fixture
def forecaster() -> Persistence:
    return Persistence()


@pytest.fixture
def app(forecaster: Persistence) -> FastAPI:
    card = ForecasterCard(
        settings=ForecastSettings(window=T, horizons=(1, 10)),
        trained_on=Backend.EMULATED,
        step_s=10.0,
        services=("amf",),
        runs=1,
        samples=100,
        data_sha256="00" * 32,
        lightgbm_version="0",
        skill=(0.4, 0.3),
    )
    served = ServedForecaster(forecaster, ForecastModelInfo(sha256="22" * 32, window=T, card=card))

    async def provide() -> ServedForecaster:
        return served

    return create_app(
        provide, max_body_bytes=65_536, allowed_hosts=["127.0.0.1"], samples=LocalSamples(10.0), step_s=10.0
    )


@pytest.fixture
def ask(app: FastAPI, make_client: Any) -> Any:
    return make_client(app)


def body(values: np.ndarray, **more: Any) -> dict[str, Any]:
    rows = [[[None if np.isnan(x) else float(x) for x in s] for s in w] for w in values]
    windows = [{"container": f"c{i}", "service": "amf", "values": r} for i, r in enumerate(rows)]
    return {"at_s": 100.0, "step_s": 10.0, "windows": windows, **more}


def test_the_model_tells_what_it_knows(ask: Any) -> None:
    info = ask.get(f"{PREFIX}/model").json()
    assert (info["window"], info["sha256"], info["card"]["services"]) == (T, "22" * 32, ["amf"])


def test_many_containers_are_forecast_in_their_order(ask: Any, forecaster: Persistence) -> None:
    values = np.full((2, T, 12), 3.0)
    values[1, 0] = np.nan
    values[1, -1, CPU] = 0.5
    answer = ask("POST", f"{PREFIX}/forecasts", json=body(values))
    document = answer.json()
    assert [(f["container"], f["metric"]) for f in document["forecasts"]] == [
        (c, m) for c in ("c0", "c1") for m in ("cpu_utilization", "memory_rss_bytes")
    ]
    told = document["forecasts"][2]
    assert (told["lower"], told["expected"], told["upper"]) == ([0.25] * 2, [0.5] * 2, [1.0] * 2)
    assert (told["at_s"], told["step_s"], told["likelihood"]) == (100.0, 10.0, 0.25)
    assert (document["history"], document["of"]) == ([T, T - 1], T)
    assert document["model"] == answer.headers["natwork-model"] == "22" * 32
    assert np.isnan(forecaster.seen[0].values[1, 0]).all()


def test_raw_agrees_with_json(ask: Any) -> None:
    values = np.random.default_rng(1).random((3, T, 12)).astype("<f4")
    listed = ask("POST", f"{PREFIX}/forecasts", json=body(values)).json()["forecasts"]
    query = f"n=3&t={T}&at_s=100&step=10&service=amf"
    headers = {"Content-Type": RAW, "Accept": RAW}
    raw = ask("POST", f"{PREFIX}/forecasts?{query}", content=values.tobytes(), headers=headers)
    table = np.frombuffer(raw.content, dtype="<f4").reshape(3, K, 3 * H + 1)
    flat = [[*f["lower"], *f["expected"], *f["upper"], f["likelihood"]] for f in listed]
    np.testing.assert_allclose(table.reshape(6, -1), flat, rtol=1e-6)
    assert raw.headers["natwork-model"] == "22" * 32
    as_json = ask("POST", f"{PREFIX}/forecasts?{query}", content=values.tobytes(), headers={"Content-Type": RAW})
    assert as_json.json()["forecasts"][0]["service"] == "amf"


def test_newest_samples_are_remembered_and_a_short_history_is_told(ask: Any, forecaster: Persistence) -> None:
    for step, known in enumerate((1, 2, 3, 4, 4)):
        sample = {"container": "c", "service": "amf", "values": [float(step)] * 12}
        for _ in range(2):  # sent twice, it changes nothing
            answer = ask("POST", f"{PREFIX}/samples", json={"at_s": 10.0 * step, "samples": [sample]})
            assert answer.json()["history"] == [known]
    assert forecaster.seen[-1].values[0, :, 0].tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    "change",
    [
        {"windows": []},
        {"at_s": -1.0},
        {"step_s": 0.0},
        {"windows": [{"container": "a", "values": [[1.0] * 12]}, {"container": "b", "values": [[1.0] * 12] * 2}]},
        {"windows": [{"container": "a", "values": [[1.0] * 11]}]},
        {"windows": [{"container": "a", "values": [[-1.0] * 12]}]},
        {"windows": [{"container": "a", "values": [["1"] * 12]}]},
        {"unknown": 1},
    ],
    ids=["none", "before time", "no step", "unequal", "eleven", "negative", "text", "unknown key"],
)
def test_what_makes_no_sense_is_refused(ask: Any, change: dict[str, Any]) -> None:
    answer = ask("POST", f"{PREFIX}/forecasts", json=body(np.ones((1, T, 12)), **change))
    assert answer.status_code == 422
    assert answer.json()["hint"]


@pytest.mark.parametrize(
    ("data", "query"),
    [(b"", f"n=1&t={T}"), (b"\0" * 48, ""), (b"\0" * 48, "n=1&t=2"), (b"\0" * 48, f"n={MAX_WINDOWS + 1}&t=1")],
)
def test_raw_input_of_another_length_is_refused(ask: Any, data: bytes, query: str) -> None:
    answer = ask("POST", f"{PREFIX}/forecasts?{query}", content=data, headers={"Content-Type": RAW})
    assert answer.status_code == 422


@pytest.mark.parametrize("bad", [-1.0, np.inf])
def test_what_no_measurement_can_be_is_refused(ask: Any, bad: float) -> None:
    values = np.ones((1, T, 12), dtype="<f4")
    values[0, 0, 0] = bad
    answer = ask("POST", f"{PREFIX}/forecasts?n=1&t={T}", content=values.tobytes(), headers={"Content-Type": RAW})
    assert answer.status_code == 422


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400), media=st.sampled_from(["application/json", RAW]))
def test_no_body_is_a_server_error(ask: Any, data: bytes, media: str) -> None:
    for route in ("forecasts?n=1&t=1", "samples"):
        assert ask("POST", f"{PREFIX}/{route}", content=data, headers={"Content-Type": media}).status_code < 500


def test_without_a_model_it_is_503(make_client: Callable[..., Any]) -> None:
    async def none() -> ServedForecaster:
        raise PreconditionError("there is no forecaster", hint="train one")

    client = make_client(
        create_app(none, max_body_bytes=1024, allowed_hosts=["127.0.0.1"], samples=LocalSamples(1.0), step_s=1.0)
    )
    assert client.get(f"{PREFIX}/model").status_code == 503
    assert client("POST", f"{PREFIX}/forecasts", json={}).status_code == 503
