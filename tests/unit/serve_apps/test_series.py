"""The series are those that are documented, for the containers that run now, bounded, and open on loopback only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict
from natwork_ray.domain.forecasts import LoadForecast
from natwork_ray.domain.shown_turn import ShownTurn
from serve_apps.security import token_digest
from serve_apps.series import SERIES, SeriesLimits

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def verdict(container: str) -> AnomalyVerdict:
    return AnomalyVerdict(
        container=container, at_s=20.0, score=0.97, kind=AnomalyKind.HIGH_CPU, confidence=0.8, drivers=()
    )


def forecast(container: str, likelihood: float = 0.25) -> LoadForecast:
    return LoadForecast(
        container=container,
        service=container.split("-")[0],
        metric="cpu_utilization",
        at_s=20.0,
        step_s=10.0,
        horizons=(1, 10),
        expected=(0.5, 0.6),
        lower=(0.4, 0.3),
        upper=(0.6, 0.9),
        model="lightgbm",
        likelihood=likelihood,
    )


TURN = ShownTurn(
    at_s=20.0,
    verdicts=(verdict("analytics-1"), verdict("gone-since")),
    degraded=("analytics-2",),
    forecasts=(forecast("analytics-1"), forecast("upf"), forecast("gone-since")),
)


def scraped(client: Any, **more: Any) -> Samples:
    answer = client("GET", "/metrics", **more)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.name in SERIES
        assert family.documentation == SERIES[family.name][0]
        for sample in family.samples:
            assert set(sample.labels) == set(SERIES[family.name][1])
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def of(found: Samples, series: str, **labels: str) -> dict[str, float]:
    """Values by container."""
    return {
        dict(rest).get("container", ""): number
        for (each, rest), number in found.items()
        if each == series and labels.items() <= dict(rest).items()
    }


def test_verdicts_and_forecasts_of_the_containers_that_run(gateway: Any, control: Any) -> None:
    asyncio.run(control.show_turn(TURN))
    found = scraped(gateway)
    assert of(found, "natwork_verdict") == {"analytics-1": 1.0}
    assert of(found, "natwork_verdict", kind="high_cpu", service="analytics") == {"analytics-1": 1.0}
    assert of(found, "natwork_verdict_score") == {"analytics-1": 0.97, "upf": 0.0}
    assert of(found, "natwork_container_degraded") == {"analytics-1": 0.0, "analytics-2": 1.0, "upf": 0.0}
    assert of(found, "natwork_forecast_upper", horizon_s="100") == {"analytics-1": 0.9, "upf": 0.9}
    assert of(found, "natwork_forecast_lower", horizon_s="10") == {"analytics-1": 0.4, "upf": 0.4}
    assert of(found, "natwork_forecast_expected", horizon_s="10", metric="cpu_utilization", service="upf") == {
        "upf": 0.5
    }
    assert of(found, "natwork_anomaly_likelihood") == {"analytics-1": 0.25, "upf": 0.25}
    assert of(found, "natwork_loop_time_seconds") == {"": 20.0}
    assert of(found, "natwork_loop_trouble") == {"": 0.0}
    assert of(found, "natwork_series_left_out") == {"": 0.0}
    assert set(of(found, "natwork_quota_left_seconds")) == {"analytics-1", "analytics-2", "upf"}
    assert len(of(found, "natwork_model_info", name="profiler")) == 1


def test_series_vanish_with_what_they_are_about(gateway: Any, control: Any) -> None:
    asyncio.run(control.show_turn(TURN))
    scraped(gateway)
    asyncio.run(control.show_turn(replace(TURN, at_s=30.0, verdicts=(), degraded=(), forecasts=(forecast("upf"),))))
    found = scraped(gateway)
    assert of(found, "natwork_verdict") == {}
    assert set(of(found, "natwork_forecast_upper", horizon_s="10")) == {"upf"}
    assert of(found, "natwork_verdict_score") == {"analytics-1": 0.0, "analytics-2": 0.0, "upf": 0.0}


def test_without_a_turn_nothing_is_said_of_containers(gateway: Any) -> None:
    found = scraped(gateway)
    assert of(found, "natwork_verdict_score") == of(found, "natwork_container_degraded") == {}


def test_without_a_run_there_are_models_only(empty_control: Any, make_gateway: Any, make_client: Any) -> None:
    found = scraped(make_client(make_gateway(empty_control)))
    assert {name for name, _ in found} == {"natwork_model_info"}


def test_the_number_of_containers_is_bounded_and_the_pressing_ones_stay(
    control: Any, make_gateway: Callable[..., FastAPI], make_client: Any
) -> None:
    likely = replace(TURN, forecasts=(forecast("upf", 0.9),))
    asyncio.run(control.show_turn(likely))
    found = scraped(make_client(make_gateway(control, series=SeriesLimits(containers=2))))
    assert set(of(found, "natwork_container_degraded")) == {"analytics-1", "upf"}
    assert of(found, "natwork_series_left_out") == {"": 1.0}


def test_beyond_loopback_reading_needs_the_token(
    control: Any, make_gateway: Callable[..., FastAPI], make_client: Any, token: str
) -> None:
    client = make_client(make_gateway(control, series=SeriesLimits(digest=token_digest(token))))
    for given in (None, "guessed-by-somebody"):
        answer = client("GET", "/metrics", token=given)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
    scraped(client, token=token)
