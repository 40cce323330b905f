from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natwork_ray.domain.telemetry import METRICS
from natwork_ray.errors import PreconditionError
from natwork_ray.profiling.profile import REFERENCE_WIDTH, ProfileBook, ServiceProfile
from serve_apps.anomaly_api import create_app
from serve_apps.anomaly_wire import MAX_WINDOWS, Served
from serve_apps.local_samples import LocalSamples

PATH = "/api/v1/anomaly/verdicts"
SAMPLES = "/api/v1/anomaly/samples"
PROBLEM = "application/problem+json"
RAW = "application/octet-stream"
CPU = METRICS.index("cpu_utilization")
T = 4


def windows(*cpu: float) -> np.ndarray:
    values = np.ones((len(cpu), T, 12), dtype="<f4")
    values[:, -1, CPU] = cpu
    return values


def as_json(values: np.ndarray, **more: Any) -> dict[str, Any]:
    rows = [[[None if np.isnan(x) else float(x) for x in s] for s in w] for w in values]
    return {"windows": [{"container": f"c{i}", "service": "s", "values": r, **more} for i, r in enumerate(rows)]}


def raw(anomaly: Any, data: bytes, query: str, accept: str = "*/*") -> Any:
    headers = {"Content-Type": RAW, "Accept": accept}
    return anomaly("POST", f"{PATH}?{query}", content=data, headers=headers)


def is_problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    body: dict[str, Any] = answer.json()
    assert body["hint"]
    return body


def test_the_model_tells_what_it_expects(anomaly: Any) -> None:
    info = anomaly.get("/api/v1/anomaly/model").json()
    assert (info["window"], info["card"]["metrics"]) == (T, list(METRICS))
    assert info["card"]["classes"][0] == "false_positive"


def test_json_windows_are_judged_in_their_order(anomaly: Any) -> None:
    answer = anomaly("POST", PATH, json=as_json(windows(0.9, 0.1)))
    hot, calm = answer.json()["verdicts"]
    assert (hot["container"], hot["service"], hot["kind"], hot["cold_start"]) == ("c0", "s", "high_cpu", True)
    assert hot["p_anomalous"] == pytest.approx(0.9)
    assert (hot["flagged"], len(hot["drivers"])) == (True, 3)
    assert (calm["kind"], calm["judged"], calm["flagged"], calm["drivers"]) == ("false_positive", True, False, [])
    assert calm["confidence"] == pytest.approx(0.9)


def test_a_profile_of_its_own_is_used(anomaly: Any, reference: Any) -> None:
    body = {**as_json(windows(0.9)), "profiles": {"s": reference(0.8, 0.5), "other": reference(0.0, 9.0)}}
    (verdict,) = anomaly("POST", PATH, json=body).json()["verdicts"]
    assert verdict["p_anomalous"] == pytest.approx(0.2)
    assert verdict["cold_start"] is False


def test_a_missing_newest_sample_gets_no_verdict(anomaly: Any) -> None:
    values = windows(0.9, 0.9)
    values[0, -1] = np.nan
    values[1, -1, 0] = np.nan
    missing, partly = anomaly("POST", PATH, json=as_json(values)).json()["verdicts"]
    assert (missing["judged"], missing["p_anomalous"], missing["kind"], missing["confidence"]) == (
        False,
        None,
        None,
        None,
    )
    assert partly["judged"] is True
    out = np.frombuffer(raw(anomaly, values.tobytes(), "n=2&t=4", RAW).content, "<f4").reshape(2, 3)
    assert np.isnan(out[0]).all()
    assert not np.isnan(out[1]).any()


def test_raw_and_json_say_the_same(anomaly: Any) -> None:
    values = windows(0.9, 0.1, 0.6)
    by_json = anomaly("POST", PATH, json=as_json(values)).json()["verdicts"]
    by_raw = raw(anomaly, values.tobytes(), "n=3&t=4").json()["verdicts"]
    assert [{**v, "container": "", "service": ""} for v in by_json] == by_raw
    answer = raw(anomaly, values.tobytes(), "n=3&t=4", RAW)
    assert answer.headers["content-type"] == RAW
    out = np.frombuffer(answer.content, "<f4").reshape(3, 3)
    assert out[:, 0].tolist() == pytest.approx([v["p_anomalous"] for v in by_json])
    assert out[:, 1].tolist() == [1.0, 0.0, 1.0]


def test_raw_profiles_follow_the_values_and_then_whose_they_are(anomaly: Any, reference: Any) -> None:
    values = windows(0.9, 0.9, 0.9, 0.9)
    table = np.array([reference(0.5, 1.0), reference(0.8, 1.0)], "<f4")
    data = values.tobytes() + table.tobytes() + np.array([1, 0, -1, 1], "<i4").tobytes()
    verdicts = raw(anomaly, data, "n=4&t=4&profiles=2").json()["verdicts"]
    assert [v["p_anomalous"] for v in verdicts] == pytest.approx([0.1, 0.4, 0.9, 0.1], abs=1e-6)
    assert [v["cold_start"] for v in verdicts] == [False, False, True, False]


def test_the_models_own_profile_of_a_service_counts_where_none_is_given(
    served: Served, make_anomaly: Any, make_client: Any
) -> None:
    profile = ServiceProfile(service="s", samples=(99,) * 12, centre=(0.8,) * 12, scale=(0.5,) * 12)
    knowing = make_client(make_anomaly(replace(served, book=ProfileBook(profiles=(profile,)))))
    (verdict,) = knowing("POST", PATH, json=as_json(windows(0.9))).json()["verdicts"]
    assert verdict["p_anomalous"] == pytest.approx(0.2)
    assert verdict["cold_start"] is False


def test_every_answer_says_which_version_gave_it(anomaly: Any) -> None:
    values = windows(0.9)
    as_listed = anomaly("POST", PATH, json=as_json(values))
    assert as_listed.json()["model"] == as_listed.headers["natwork-model"] == "11" * 32
    assert raw(anomaly, values.tobytes(), "n=1&t=4", RAW).headers["natwork-model"] == "11" * 32


def newest(at_s: float, *cpu: float, **more: Any) -> dict[str, Any]:
    samples = [{"container": f"c{i}", "service": "s", "values": [1.0] * CPU + [x] + [1.0] * (11 - CPU)}
               for i, x in enumerate(cpu)]  # fmt: skip
    return {"at_s": at_s, "samples": samples, **more}


def test_newest_samples_are_enough_and_a_short_history_is_told(anomaly: Any, reference: Any) -> None:
    for step in range(6):
        for _ in range(2):  # sent twice, it changes nothing
            answer = anomaly("POST", SAMPLES, json=newest(10.0 * step, 0.1, 0.9)).json()
        assert [(v["history"], v["of"]) for v in answer["verdicts"]] == [(min(step + 1, T), T)] * 2
        assert [v["flagged"] for v in answer["verdicts"]] == [False, True]
    assert answer["at_s"] == 50.0
    body = newest(60.0, 0.9, profiles={"s": reference(0.8, 0.5)})
    (verdict,) = anomaly("POST", SAMPLES, json=body).json()["verdicts"]
    assert (verdict["p_anomalous"], verdict["cold_start"]) == (pytest.approx(0.2), False)


@pytest.mark.parametrize(
    "body",
    [
        newest(-1.0, 0.5),
        newest(0.0),
        {**newest(0.0, 0.5), "at_s": "now"},
        newest(0.0, -0.5),
        {"at_s": 0.0, "samples": [newest(0.0, 0.5)["samples"][0]] * 2},
        newest(0.0, 0.5, profiles={"s": [0.0] * REFERENCE_WIDTH}),
    ],
    ids=["before time", "none", "text", "negative", "twice", "scale 0"],
)
def test_senseless_samples_are_refused_and_not_remembered(anomaly: Any, body: Any) -> None:
    is_problem(anomaly("POST", SAMPLES, json=body), 422)
    (verdict,) = anomaly("POST", SAMPLES, json=newest(10.0, 0.5)).json()["verdicts"]
    assert verdict["history"] == 1


def spoiled(value: float, place: tuple[int, ...]) -> bytes:
    values = windows(0.5)
    values[place] = value
    return values.tobytes()


def profiled(figure: float | None, whose: int) -> bytes:
    """One window, one profile (all of one figure; None for a sound one), and the number of the window's own."""
    sound = ServiceProfile(service="s", samples=(99,) * 12, centre=(0.0,) * 12, scale=(1.0,) * 12).reference
    row = np.array(sound if figure is None else [figure] * REFERENCE_WIDTH, "<f4")
    return windows(0.5).tobytes() + row.tobytes() + np.array([whose], "<i4").tobytes()


def test_a_sound_profile_is_accepted(anomaly: Any) -> None:
    assert raw(anomaly, profiled(None, 0), "n=1&t=4&profiles=1").status_code == 200


@pytest.mark.parametrize(
    ("data", "query"),
    [
        (spoiled(np.inf, (0, 0, 0)), "n=1&t=4"),
        (spoiled(-np.inf, (0, 0, 0)), "n=1&t=4"),
        (spoiled(-1.0, (0, 3, 11)), "n=1&t=4"),
        (windows(0.5).tobytes(), "n=1"),
        (windows(0.5).tobytes(), "t=4"),
        (windows(0.5).tobytes(), ""),
        (windows(0.5).tobytes(), "n=2&t=4"),
        (windows(0.5).tobytes(), "n=2&t=2"),
        (windows(0.5).tobytes(), "n=1&t=4&profiles=1"),
        (windows(0.5).tobytes()[:-1], "n=1&t=4"),
        (b"", "n=1&t=4"),
        (b"", "n=0&t=4"),
        (b"", "n=-1&t=4"),
        (b"", f"n={MAX_WINDOWS + 1}&t=4"),
        (b"", f"n={2**70}&t=4"),
        (b"", "n=NaN&t=4"),
        (b"", "n=1&t=4&profiles=-1"),
        (profiled(np.nan, 0), "n=1&t=4&profiles=1"),
        (profiled(0.0, 0), "n=1&t=4&profiles=1"),
        (profiled(None, 1), "n=1&t=4&profiles=1"),
        (profiled(None, -2), "n=1&t=4&profiles=1"),
    ],
)
def test_senseless_raw_input_is_422_with_a_hint(anomaly: Any, data: bytes, query: str) -> None:
    is_problem(raw(anomaly, data, query), 422)


def changed(change: Callable[[dict[str, Any]], Any]) -> str:
    body = as_json(windows(0.5))
    change(body["windows"][0])
    return json.dumps(body)


def misfit(place: int, figure: float | None) -> str:
    """A profile with a figure that none can have; None: one figure short."""
    row: list[float] = list(
        ServiceProfile(service="s", samples=(99,) * 12, centre=(0.0,) * 12, scale=(1.0,) * 12).reference
    )
    row[place : place + 1] = [] if figure is None else [figure]
    return json.dumps({**as_json(windows(0.5)), "profiles": {"s": row}})


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"windows": []}',
        '{"windows": {}}',
        "[" * 20_000 + "]" * 20_000,
        changed(lambda w: w["values"][0].__setitem__(0, float("nan"))),
        changed(lambda w: w["values"][0].__setitem__(0, float("inf"))),
        changed(lambda w: w["values"][0].__setitem__(0, -1)),
        changed(lambda w: w["values"][0].__setitem__(0, 1e39)),
        changed(lambda w: w["values"][0].__setitem__(0, 10**400)),
        changed(lambda w: w["values"][0].__setitem__(0, "1")),
        changed(lambda w: w["values"][0].__setitem__(0, True)),
        changed(lambda w: w["values"][0].append(1)),
        changed(lambda w: w["values"][0].pop()),
        changed(lambda w: w["values"].pop()),
        json.dumps({"windows": as_json(windows(0.5))["windows"] + [{"container": "d", "values": [[1] * 12] * 5}]}),
        changed(lambda w: w["values"].clear()),
        changed(lambda w: w.update(container="a\x00b")),
        changed(lambda w: w.update(container="x" * 254)),
        changed(lambda w: w.update(more=1)),
        misfit(12, 0),
        misfit(12, 1e-60),
        misfit(0, 1e39),
        misfit(0, None),
        b"\xff\xfe",
    ],
)
def test_senseless_json_is_422_with_a_hint(anomaly: Any, body: Any) -> None:
    is_problem(anomaly("POST", PATH, content=body, headers={"Content-Type": "application/json"}), 422)


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/csv"}, {"Content-Type": ""}])
def test_other_media_types_are_415(anomaly: Any, headers: dict[str, str]) -> None:
    is_problem(anomaly("POST", PATH, content=b"x", headers=headers), 415)


def test_too_much_is_413_and_foreign_hosts_421(anomaly: Any) -> None:
    is_problem(raw(anomaly, b"\0" * 65_537, "n=1&t=4"), 413)
    is_problem(anomaly.get("/api/v1/anomaly/model", headers={"Host": "evil.example"}), 421)


def test_without_a_model_it_is_503(make_client: Any) -> None:
    async def none() -> Any:
        raise PreconditionError("there is no model", hint="natwork train profiler")

    client = make_client(create_app(none, max_body_bytes=1024, allowed_hosts=["127.0.0.1"], samples=LocalSamples(10.0)))
    assert is_problem(client.get("/api/v1/anomaly/model"), 503)["hint"] == "natwork train profiler"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=1200),
    n=st.one_of(st.none(), st.integers(-2, 5), st.integers()),
    t=st.one_of(st.none(), st.sampled_from([T, T, T, T, 1]), st.integers()),
    profiles=st.sampled_from(["", "true", "false", "x"]),
    fit=st.booleans(),
)
def test_the_raw_door_answers_every_bytes(
    anomaly: Any, data: bytes, n: int | None, t: int | None, profiles: str, fit: bool
) -> None:
    if fit and n is not None and 0 < n <= 5 and t == T:
        # Random bytes seldom have the right length: most are stretched to it, so that the values are reached.
        size = n * T * 48 + (n * 96 if profiles == "true" else 0)
        data = ((data or b"\0") * (size // max(1, len(data)) + 1))[:size]
    pairs = [(k, v) for k, v in (("n", n), ("t", t), ("profiles", profiles or None)) if v is not None]
    answer = raw(anomaly, data, "&".join(f"{k}={v}" for k, v in pairs), RAW)
    if answer.status_code == 200:
        out = np.frombuffer(answer.content, "<f4")
        assert out.shape == (3 * (n or 0),)
        assert ((out >= 0) | np.isnan(out)).all()
    else:
        is_problem(answer, 422)


def test_every_raw_float_is_judged_or_refused(anomaly: Any) -> None:
    """Each kind of float32 at one place: subnormal, largest, negative zero, signalling NaN, infinities, negative."""
    for bits, status in (
        (0x00000001, 200),
        (0x7F7FFFFF, 200),
        (0x80000000, 200),
        (0x7FA00000, 200),
        (0xFFC00000, 200),
        (0x7F800000, 422),
        (0xFF800000, 422),
        (0x80000001, 422),
        (0xFF7FFFFF, 422),
    ):
        values = windows(0.5)
        values.view("<u4")[0, -1, CPU] = bits
        assert raw(anomaly, values.tobytes(), "n=1&t=4").status_code == status, hex(bits)


def test_the_document_shows_both_ways_in_and_out(anomaly: Any) -> None:
    document = anomaly.get("/api/v1/anomaly/openapi.json").json()
    operation = document["paths"][PATH]["post"]
    assert set(operation["requestBody"]["content"]) == {"application/json", RAW}
    assert set(operation["responses"]["200"]["content"]) == {"application/json", RAW}
    assert {"400", "413", "415", "421", "422", "503"} <= set(operation["responses"])


def test_the_app_is_an_asgi_app(make_anomaly: Callable[..., FastAPI], served: Any) -> None:
    assert isinstance(make_anomaly(served), FastAPI)
