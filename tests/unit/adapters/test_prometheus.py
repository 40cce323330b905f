"""Telemetry over a Prometheus that answers as it is told: masks, identities, units, and what a broken one costs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters.prometheus import MAX_LENGTH, PrometheusTelemetry
from natwork_ray.adapters.prometheus_masks import MAX_CONTAINERS, MAX_REMARKS, Observation
from natwork_ray.adapters.prometheus_session import Answer, RefusedQueryError
from natwork_ray.config import PrometheusConfig
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.errors import InputError, NatworkError, PreconditionError, TimedOutError

T = TypeVar("T")
NOW = 1_000_000.0
STEP = 10.0
WEB = {"namespace": "shop", "pod": "web-1", "container": "web"}
# What a query is recognised by.
CPU, LIMIT, CORES, GUARD = "rate(container_cpu_usage", "container_spec_cpu_quota", "machine_cpu_cores", "natwork_guard"
RSS, RX, DISK = "container_memory_rss", "container_network_receive", "container_fs_reads"

Points = Callable[[float], str | None] | str


class Told:
    """A server that knows series by a part of the query: (labels, value at a moment or None)."""

    def __init__(self, series: Mapping[str, Sequence[tuple[Mapping[str, str], Points]]] | None = None) -> None:
        self.series: dict[str, list[tuple[Mapping[str, str], Points]]] = {k: list(v) for k, v in (series or {}).items()}
        self.errors: dict[str, NatworkError] = {}
        self.warnings: tuple[str, ...] = ()
        self.asked: list[str] = []
        self.closed = 0

    def guard(self, labels: Mapping[str, str], **parts: Points) -> None:
        usual: dict[str, Points] = {"age_s": "1", "scrapes": "4", "resets": "0", "before": "1", "restarts": "0"}
        self.series.setdefault("timestamp(container_cpu", [])
        self.series["timestamp(container_cpu"] += [
            ({**labels, "natwork_guard": part}, parts.get(part, text)) for part, text in usual.items()
        ]

    def range(self, query: str, *, start_ms: int, end_ms: int, step_ms: int, deadline: float) -> Answer:
        self._raise(query)
        moments = range(start_ms, end_ms + 1, step_ms)
        result = []
        for labels, points in self._known(query):
            at = {m / 1000: points if isinstance(points, str) else points(m / 1000) for m in moments}
            result.append({"metric": dict(labels), "values": [[m, text] for m, text in at.items() if text is not None]})
        return Answer(kind="matrix", result=tuple(result), warnings=self.warnings)

    def instant(self, query: str, *, at_ms: int, deadline: float) -> Answer:
        self._raise(query)
        result = tuple(
            {"metric": dict(labels), "value": [at_ms / 1000, points]} for labels, points in self._known(query)
        )
        return Answer(kind="vector", result=result)

    def close(self) -> None:
        self.closed += 1

    def _raise(self, query: str) -> None:
        self.asked.append(query)
        for part, error in self.errors.items():
            if part in query:
                raise error

    def _known(self, query: str) -> list[tuple[Mapping[str, str], Points]]:
        if GUARD in query:
            return [
                s for part, each in self.series.items() if part.startswith("timestamp(") and part in query for s in each
            ]
        return [s for part, each in self.series.items() if part in query for s in each]


def healthy(labels: Mapping[str, str] = WEB) -> Told:
    told = Told({CPU: [(labels, "0.5")], LIMIT: [(labels, "2")], RSS: [(labels, "1e6")], DISK: [(labels, "10")]})
    told.guard(labels)
    return told


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def observed(told: Told, *, length: int = 3, **config: Any) -> Observation:
    source = PrometheusTelemetry(PrometheusConfig(**config), step_s=STEP, now_s=lambda: NOW, connect=lambda: told)
    try:
        return run(source.observation(end_s=NOW, length=length))
    finally:
        source.close()


def column(observation: Observation, metric: Metric, row: int = 0) -> list[float]:
    return [float(v) for v in observation.window.values[row, :, METRICS.index(metric)]]


def texts(observation: Observation) -> list[str]:
    return [f"{r.container}|{r.metric}|{r.text}" for r in observation.degraded]


def test_a_healthy_container() -> None:
    seen = observed(healthy())
    assert seen.window.containers == ("shop/web-1/web",)
    assert seen.window.services == ("web",)
    assert (seen.window.end_s, seen.window.step_s, seen.window.values.dtype) == (NOW, STEP, np.float32)
    assert column(seen, Metric.CPU) == [0.25] * 3
    assert column(seen, Metric.MEMORY_RSS) == [1e6] * 3
    assert np.isnan(column(seen, Metric.LATENCY_P50)).all()
    assert seen.degraded == ()
    assert {r.metric for r in seen.notes} == {
        m for m in METRICS if m not in (Metric.CPU, Metric.MEMORY_RSS, Metric.DISK_READ)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "said", "gauge_too"),
    [
        ({"age_s": "31"}, "last scraped 31 s ago", True),
        ({"age_s": "-5"}, "last scraped -5 s ago", True),
        ({"age_s": "NaN"}, "", True),
        ({"age_s": lambda at: None if at == NOW else "1"}, "not scraped", True),
        ({"scrapes": "2"}, "fewer than 3 scrapes within the last 40 s", False),
        ({"scrapes": lambda _: None}, "fewer than 3 scrapes within the last 40 s", False),
        ({"before": lambda _: None}, "began within the last 40 s", False),
        ({"resets": "1"}, "went back, within the last 40 s", False),
        ({"restarts": "1"}, "restarted", False),
    ],
)
def test_what_the_guard_does_not_vouch_for_is_masked(parts: dict[str, Points], said: str, gauge_too: bool) -> None:
    told = healthy()
    told.series["timestamp(container_cpu"].clear()
    told.guard(WEB, **parts)
    seen = observed(told)
    assert math.isnan(column(seen, Metric.CPU)[-1])
    assert math.isnan(column(seen, Metric.MEMORY_RSS)[-1]) == gauge_too
    assert 0.0 not in column(seen, Metric.CPU)
    if said:
        assert any(said in text for text in texts(seen))


def test_one_missing_scrape_within_the_range_keeps_the_rate() -> None:
    told = healthy()
    told.series["timestamp(container_cpu"].clear()
    told.guard(WEB, scrapes="3")
    assert column(observed(told), Metric.CPU) == [0.25] * 3


def test_a_metric_without_a_guard_answer_is_masked_too() -> None:
    told = healthy()
    told.series["timestamp(container_cpu"].clear()
    seen = observed(told)
    assert seen.window.containers == ("shop/web-1/web",)
    assert np.isnan(seen.window.values).all()


def test_absent_points_stay_absent() -> None:
    told = healthy()
    told.series[RSS] = [(WEB, lambda at: None if at == NOW - STEP else "5")]
    np.testing.assert_array_equal(column(observed(told), Metric.MEMORY_RSS), [5, np.nan, 5])


@pytest.mark.parametrize(
    ("query", "text", "metric"),
    [
        (RSS, "1e18", Metric.MEMORY_RSS), (RSS, "-1", Metric.MEMORY_RSS), (RSS, "+Inf", Metric.MEMORY_RSS),
        (CPU, "1e9", Metric.CPU), (DISK, "1e13", Metric.DISK_READ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_masked_and_said(query: str, text: str, metric: Metric) -> None:
    told = healthy()
    told.series[query] = [(WEB, text)]
    seen = observed(told)
    assert np.isnan(column(seen, metric)).all()
    assert any("cannot be" in line and metric in line for line in texts(seen))


def test_without_a_limit_cpu_is_of_the_nodes_cores_and_that_is_said() -> None:
    told = healthy()
    told.series[LIMIT] = []
    told.series[CORES] = [(WEB, "8")]
    seen = observed(told)
    assert column(seen, Metric.CPU) == [0.0625] * 3
    assert any("its node's 8 cores" in note.text for note in seen.notes)
    assert seen.degraded == ()
    told.series[CORES] = []
    seen = observed(told)
    assert np.isnan(column(seen, Metric.CPU)).all()
    assert any("neither" in note.text for note in seen.notes)


def test_a_limit_of_nothing_is_none() -> None:
    told = healthy()
    told.series[LIMIT], told.series[CORES] = [(WEB, "0")], [(WEB, "4")]
    assert column(observed(told), Metric.CPU) == [0.125] * 3


def test_a_pods_network_belongs_to_each_of_its_containers() -> None:
    told = healthy()
    side = {**WEB, "container": "proxy"}
    told.series[RSS].append((side, "7"))
    told.guard(side)
    told.series[RX] = [({"namespace": "shop", "pod": "web-1"}, "100"), ({"namespace": "shop", "pod": "other"}, "1")]
    seen = observed(told)
    assert seen.window.containers == ("shop/web-1/proxy", "shop/web-1/web")
    assert column(seen, Metric.NETWORK_RX, 0) == column(seen, Metric.NETWORK_RX, 1) == [100.0] * 3
    # Its own counter is closer than the pod's, and the holder of the network namespace is no container.
    told.series[RX] = [({**WEB, "container": "POD"}, "100"), (WEB, "5")]
    seen = observed(told)
    assert column(seen, Metric.NETWORK_RX, 0) == [100.0] * 3
    assert column(seen, Metric.NETWORK_RX, 1) == [5.0] * 3


def test_a_services_metrics_belong_to_its_containers() -> None:
    told = healthy({**WEB, "app": "front"})
    told.series["http_request_duration_seconds_bucket"] = [({"namespace": "shop", "app": "front"}, "0.2")]
    told.series["timestamp(http_requests"] = [
        ({"namespace": "shop", "app": "front", "natwork_guard": part}, text)
        for part, text in {"age_s": "1", "scrapes": "4", "resets": "0", "before": "1"}.items()
    ]
    seen = observed(told, service_label="app")
    assert seen.window.services == ("front",)
    assert column(seen, Metric.LATENCY_P99) == pytest.approx([0.2] * 3)


def test_a_service_label_that_is_missing_falls_back_to_the_containers_name() -> None:
    assert observed(healthy(), service_label="app").window.services == ("web",)


def test_containers_without_namespace_or_pod_are_called_by_their_own_name() -> None:
    assert observed(healthy({"container": "web"})).window.containers == ("web",)


def test_two_series_of_one_container() -> None:
    told = healthy()
    told.series[RSS] = [({**WEB, "replica": "a"}, "5"), ({**WEB, "replica": "b"}, lambda at: "5" if at < NOW else "6")]
    seen = observed(told)
    np.testing.assert_array_equal(column(seen, Metric.MEMORY_RSS), [5, 5, np.nan])
    assert any("two series" in text for text in texts(seen))


def test_series_that_follow_each_other_are_joined() -> None:
    told = healthy()
    told.series[RSS] = [
        ({**WEB, "id": "1"}, lambda at: "5" if at < NOW else None),
        ({**WEB, "id": "2"}, lambda at: "6" if at >= NOW else None),
    ]
    assert column(observed(told), Metric.MEMORY_RSS) == [5, 5, 6]


def test_names_that_would_meet_are_told_apart_or_left_out() -> None:
    told = healthy()
    told.series[RSS].append(({"pod": "shop/web-1", "container": "web"}, "1"))
    seen = observed(told)
    assert seen.window.containers == ("shop/web-1/web",)
    assert any("name of its own" in text for text in texts(seen))


def test_too_many_containers_are_refused() -> None:
    told = healthy()
    told.series[RSS] = [({"container": f"c{n}"}, "1") for n in range(MAX_CONTAINERS + 1)]
    with pytest.raises(InputError, match="containers"):
        observed(told, length=1)


def test_remarks_are_bounded() -> None:
    told = healthy()
    told.series[RSS] = [({"container": f"c{n}"}, "-1") for n in range(MAX_REMARKS + 50)]
    seen = observed(told, length=1)
    assert len(seen.degraded) == MAX_REMARKS + 1
    assert "more remarks" in seen.degraded[-1].text


def test_warnings_of_the_server_degrade_the_window() -> None:
    told = healthy()
    told.warnings = ("a store did not answer",)
    assert texts(observed(told)) == ["||the server warns: a store did not answer"]


def test_nothing_known_is_an_empty_window() -> None:
    seen = observed(Told())
    assert seen.window.containers == ()
    assert seen.window.values.shape == (0, 3, 12)


@pytest.mark.parametrize(
    "error", [RefusedQueryError("no", hint="h"), TimedOutError("late", hint="h"), PreconditionError("down", hint="h")]
)
def test_one_query_that_fails_costs_its_metric(error: NatworkError) -> None:
    told = healthy()
    told.errors = {RSS: error, LIMIT: error}
    told.series[CORES] = [(WEB, "4")]
    seen = observed(told)
    assert np.isnan(column(seen, Metric.MEMORY_RSS)).all()
    assert column(seen, Metric.CPU) == [0.125] * 3
    assert any(error.what in text for text in texts(seen))
    assert any(error.what in note.text for note in seen.notes)


@pytest.mark.parametrize(
    ("part", "error"),
    [
        (GUARD, TimedOutError("late", hint="h")), (GUARD, RefusedQueryError("no", hint="h")),
        ("", PreconditionError("down", hint="h")), (RSS, InputError("a lie", hint="h")),
    ],
)  # fmt: skip
def test_what_makes_everything_doubtful_is_an_error(part: str, error: NatworkError) -> None:
    told = healthy()
    told.errors = {part: error}
    with pytest.raises(type(error), match=error.what):
        observed(told)


def test_an_answer_of_a_broken_form_is_an_error() -> None:
    told = healthy()
    told.series[RSS] = [(WEB, "many")]
    with pytest.raises(InputError, match="many"):
        observed(told)


@pytest.mark.parametrize(
    ("end_s", "length"),
    [(NOW + 60, 3), (math.nan, 3), (math.inf, 3), (-1.0, 1), (NOW, 0), (NOW, MAX_LENGTH + 1), (20.0, 10)],
)
def test_windows_that_cannot_be_are_refused(end_s: float, length: int) -> None:
    source = PrometheusTelemetry(PrometheusConfig(), step_s=STEP, now_s=lambda: NOW, connect=Told)
    with pytest.raises(InputError):
        run(source.window(end_s=end_s, length=length))
    source.close()


def test_nodes() -> None:
    node = {"instance": "edge-1"}
    told = Told(
        {
            "count by": [(node, "3")], "rate(container_cpu": [(node, "1.5")], "working_set": [(node, "6e9")],
            "max by (instance) (machine_cpu_cores)": [(node, "4"), ({"instance": "blind"}, "2")],
            "machine_memory": [(node, "8e9")],
        }
    )  # fmt: skip
    source = PrometheusTelemetry(PrometheusConfig(), step_s=STEP, now_s=lambda: NOW, connect=lambda: told)
    (usage,) = run(source.node_usage(at_s=NOW))
    assert (usage.node, usage.containers, usage.cpu_fraction, usage.memory_fraction) == ("edge-1", 3, 0.375, 0.75)
    assert math.isnan(usage.network_rx_bytes_per_s)
    assert run(source.flows(["a"], at_s=NOW)) == {"a": ()}
    source.close()
    assert told.closed == 4


def test_an_edited_file_may_ask_for_less(tmp_path: Path) -> None:
    path = tmp_path / "queries.toml"
    path.write_text('[metrics.memory_rss_bytes]\nquery = "my_rss"\n', encoding="utf-8")
    told = Told({"my_rss": [(WEB, "5")]})
    seen = observed(told, queries=path)
    assert column(seen, Metric.MEMORY_RSS) == [5.0] * 3
    assert told.asked == ["my_rss"]
    source = PrometheusTelemetry(PrometheusConfig(queries=path), step_s=STEP, now_s=lambda: NOW, connect=lambda: told)
    assert run(source.node_usage(at_s=NOW)) == ()
    source.close()


_text = st.sampled_from(["0", "1", "1e9", "-1", "NaN", "+Inf", "-Inf", "1e300", "0.1"])
_labels = st.dictionaries(
    st.sampled_from(["namespace", "pod", "container", "x"]), st.sampled_from(["a", "b", "POD", ""])
)


@given(
    st.dictionaries(
        st.sampled_from([CPU, LIMIT, RSS, RX, DISK, CORES]), st.lists(st.tuples(_labels, _text), max_size=4)
    ),
    st.lists(
        st.tuples(_labels, st.dictionaries(st.sampled_from(["age_s", "scrapes", "resets", "before"]), _text)),
        max_size=3,
    ),
)
def test_no_answer_of_the_right_form_makes_an_impossible_sample(
    series: dict[str, list[tuple[dict[str, str], Points]]], guards: list[tuple[dict[str, str], dict[str, Points]]]
) -> None:
    told = Told(series)
    for labels, parts in guards:
        told.guard(labels, **parts)
    values = observed(told, length=2).window.values
    assert not np.isinf(values).any()
    assert not (values < 0).any()
