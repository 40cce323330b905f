"""The file of queries: the shipped one is whole, and what is wrong in an edited one is named."""

from __future__ import annotations

import contextlib
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters.prometheus_queries import Queries, Spacing, parse_queries, read_queries
from natwork_ray.config import PrometheusConfig
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.errors import ConfigError, UsageError

SPACING = Spacing.of(step_s=10.0, scrape_interval_s=0.0)
MINIMAL = {"metrics": {"memory_rss_bytes": {"query": "rss"}}}


def shipped() -> dict[str, Any]:
    return tomllib.loads((files("natwork_ray.adapters") / "prometheus_queries.toml").read_text(encoding="utf-8"))


def filled(**config: Any) -> Queries:
    return read_queries(None).filled(PrometheusConfig(**config), SPACING)


def test_the_shipped_file_asks_for_every_metric_and_node_aggregate() -> None:
    queries = filled()
    assert set(queries.metrics) == set(METRICS)
    assert all(vars(queries.nodes).values())
    assert all(query.guard in queries.guards for query in queries.metrics.values())
    assert not any("$" in query.query for query in queries.metrics.values())
    # Memory is a gauge; everything else looks back over the range.
    assert {m for m, q in queries.metrics.items() if not q.rate} == {Metric.MEMORY_RSS, Metric.MEMORY_VSIZE}


def test_placeholders_are_filled_from_the_configuration() -> None:
    query = filled(selector='namespace="shop"', service_label="app").metrics[Metric.DISK_READ].query
    assert query == (
        'sum by (namespace, pod, container, app) (rate(container_fs_reads_bytes_total{namespace="shop"}[40000ms]))'
    )
    assert "machine_cpu_cores" in filled().metrics[Metric.CPU].node_cores


def test_a_guard_asks_for_age_scrapes_resets_and_beginning() -> None:
    query = filled().guard_query("cadvisor", PrometheusConfig(), SPACING)
    for part in ("timestamp(", "count_over_time(", "resets(", "offset 40000ms", "changes(container_start_time_seconds"):
        assert part in query
    assert query.count("natwork_guard") == 5
    assert filled().guard_query("application", PrometheusConfig(), SPACING).count("natwork_guard") == 4


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_rates_look_back_over_four_scrapes_and_no_increase_is_left_out(step_ms: int, interval_ms: int) -> None:
    spacing = Spacing.of(step_s=step_ms / 1000, scrape_interval_s=interval_ms / 1000)
    assert spacing.step_ms == step_ms
    assert spacing.interval_ms == (interval_ms or step_ms)
    assert spacing.range_ms >= 4 * spacing.interval_ms
    assert spacing.range_ms >= spacing.step_ms + spacing.interval_ms


@pytest.mark.parametrize("step_s", [0.0, 0.0001, -1.0, 1.00005])
def test_a_step_is_whole_milliseconds(step_s: float) -> None:
    with pytest.raises(UsageError):
        Spacing.of(step_s=step_s, scrape_interval_s=0.0)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "metrics"),
        ({"metrics": {}}, "no metric"),
        ({"metrics": {"cpu": {"query": "x"}}}, "metrics"),
        ({"metrics": {"memory_rss_bytes": {}}}, "query"),
        ({"metrics": {"memory_rss_bytes": {"query": "  "}}}, "empty query"),
        ({"metrics": {"memory_rss_bytes": {"query": 7}}}, "memory_rss_bytes"),
        ({"metrics": {"memory_rss_bytes": {"query": "x" * 9000}}}, "longer than"),
        ({"metrics": {"memory_rss_bytes": {"query": "x", "guard": "none"}}}, "no guard 'none'"),
        ({"metrics": {"memory_rss_bytes": {"query": "x", "limit": "y"}}}, "limit"),
        ({"metrics": {"memory_rss_bytes": {"query": "x", "rate": True}}}, "rate"),
        ({"metrics": {"cpu_utilization": {"query": "x"}}}, "neither limit nor node_cores"),
        ({**MINIMAL, "masks": {"min_scrapes": 1}}, "min_scrapes"),
        ({**MINIMAL, "masks": {"stale_after_intervals": float("nan")}}, "stale_after"),
        ({**MINIMAL, "labels": {"pod": "a b"}}, "'a b'"),
        ({**MINIMAL, "extra": 1}, "extra"),
        ({"metrics": [1]}, "metrics"),
    ],
)
def test_what_is_wrong_is_named(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_queries(table)


@pytest.mark.parametrize(("query", "said"), [("rate(x[$rang])", "rang"), ('x{a=~"b$"}', r"\$"), ("$", "placeholder")])
def test_unknown_placeholders_are_refused(query: str, said: str) -> None:
    queries = parse_queries({"metrics": {"memory_rss_bytes": {"query": query}}})
    with pytest.raises(ConfigError, match=said):
        queries.filled(PrometheusConfig(), SPACING)


def test_a_dollar_sign_is_written_twice() -> None:
    queries = parse_queries({"metrics": {"memory_rss_bytes": {"query": 'x{a=~"b$$"}'}}})
    assert queries.filled(PrometheusConfig(), SPACING).metrics[Metric.MEMORY_RSS].query == 'x{a=~"b$"}'


@pytest.mark.parametrize("series", ["rate(x[5m])", "x offset 5m", "sum(x)", "x[5m]", "{}", "x{a='b'} or y"])
def test_a_guard_is_a_plain_selector(series: str) -> None:
    queries = parse_queries({**MINIMAL, "guards": {"g": {"series": series}}})
    with pytest.raises(ConfigError, match="guard g"):
        queries.filled(PrometheusConfig(), SPACING)


@pytest.mark.parametrize(
    "config", [{"selector": 'a="b"} or x{'}, {"service_label": "a-b"}, {"node_label": ""}, {"service_label": "x" * 101}]
)
def test_labels_and_selectors_cannot_break_out(config: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        filled(**config)


def test_an_edited_copy_is_read(tmp_path: Path) -> None:
    copy = tmp_path / "queries.toml"
    copy.write_text('[metrics.memory_rss_bytes]\nquery = "mine"\n', encoding="utf-8")
    assert read_queries(copy).metrics[Metric.MEMORY_RSS].query == "mine"


@pytest.mark.parametrize("data", [b"\xff", b"= 1", b"x = " + b"[" * 5000, b"#" * 300_000, b"[metrics]"])
def test_a_file_that_is_none_is_an_error_that_names_it(tmp_path: Path, data: bytes) -> None:
    copy = tmp_path / "queries.toml"
    copy.write_bytes(data)
    with pytest.raises(ConfigError, match=r"queries\.toml"):
        read_queries(copy)
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        read_queries(tmp_path / "absent.toml")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda s: st.dictionaries(
            st.sampled_from(["metrics", "guards", "labels", "query", "series", "memory_rss_bytes", "nodes", "masks"]), s
        ),
    )
)
def test_whatever_a_file_holds_it_is_queries_or_an_error(table: Any) -> None:
    if isinstance(table, dict):
        with contextlib.suppress(ConfigError):  # and nothing else
            assert isinstance(parse_queries(table), Queries)


def test_shipped_text_parses_as_it_stands() -> None:
    assert parse_queries(shipped()) == read_queries(None)
