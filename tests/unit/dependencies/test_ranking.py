"""Ranking causes: sizes, neighbours that explain, onset, and everything that is no evidence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natwork_ray.dependencies.baselines import largest_deviation, random_walk, robust_scorer
from natwork_ray.dependencies.deviation import DEVIATES, Evidence, gather, learn, over_time
from natwork_ray.dependencies.graph import from_calls
from natwork_ray.dependencies.ranking import RankingSettings, rank, rank_causes, scores
from natwork_ray.dependencies.verdicts import from_verdicts
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict, Driver
from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric, TelemetryWindow
from natwork_ray.errors import InputError

NAMES = ("gate", "orders", "db")
CALLS = {"gate": ("orders",), "orders": ("db",)}
GRAPH = from_calls(NAMES, CALLS)
ALONE = from_calls(NAMES, {})
P50, RPS, RSS = (METRICS.index(m) for m in (Metric.LATENCY_P50, Metric.THROUGHPUT, Metric.MEMORY_RSS))


def evidence(sizes: dict[tuple[str, Metric], float], onsets: dict[str, float] | None = None) -> Evidence:
    size, onset = np.zeros((3, N_METRICS)), np.ones((3, N_METRICS))
    for (name, metric), value in sizes.items():
        i, k = NAMES.index(name), METRICS.index(metric)
        size[i, k], onset[i, k] = value, (onsets or {}).get(name, 0.0)
    return Evidence(containers=NAMES, size=size, onset=onset, judged=np.ones((3, N_METRICS), dtype=bool))


def first(found: Evidence, graph: Any = GRAPH, **fields: float) -> str:
    return rank(found, graph, RankingSettings(**fields), length_s=100.0).causes[0].container


def test_whoever_changed_is_the_cause(make_window: Any) -> None:
    ranking = rank_causes(
        make_window(NAMES), make_window(NAMES, samples=12, seed=1, changes={("db", Metric.CPU): 6.0}), GRAPH
    )
    cause = ranking.causes[0]
    assert (cause.container, cause.metric, cause.onset_s) == ("db", str(Metric.CPU), 0.0)
    assert cause.deviation == cause.size > DEVIATES
    assert ranking.causes[1].size < DEVIATES
    assert ranking.degraded == ()


def test_a_slow_callee_explains_its_callers_although_they_deviate_more() -> None:
    slow = Metric.LATENCY_P50
    found = evidence({("gate", slow): 9.0, ("orders", slow): 8.0, ("db", slow): 7.0})
    assert first(found) == "db"
    assert first(found, ALONE) == first(found, explained=0.0) == "gate"
    causes = {c.container: c for c in rank(found, GRAPH, length_s=100.0).causes}
    assert [causes[name].explained_by for name in NAMES] == ["orders", "db", ""]


def test_a_surge_explains_what_it_does_to_callees() -> None:
    found = evidence({
        ("gate", Metric.THROUGHPUT): 7.0, ("orders", Metric.CPU): 8.0, ("orders", Metric.THROUGHPUT): 6.0,
        ("orders", Metric.LATENCY_P50): 6.0,
    })  # fmt: skip
    assert first(found) == "gate"
    assert first(found, ALONE) == "orders"


def test_memory_is_a_containers_own() -> None:
    found = evidence({("gate", Metric.THROUGHPUT): 7.0, ("orders", Metric.MEMORY_RSS): 8.0})
    assert first(found, explained=1.0) == "orders"


def test_nobody_gets_more_requests_because_a_callee_is_slow() -> None:
    found = evidence({("gate", Metric.THROUGHPUT): 8.0, ("orders", Metric.MEMORY_RSS): 7.9})
    assert first(found, explained=1.0) == "gate"


def test_noise_explains_nothing() -> None:
    found = evidence({("gate", Metric.LATENCY_P50): 4.0, ("orders", Metric.LATENCY_P50): DEVIATES - 0.1})
    assert first(found, explained=1.0) == "gate"
    assert all(c.explained_by == "" for c in rank(found, GRAPH, length_s=100.0).causes)


def test_who_was_first_counts_among_equals() -> None:
    sizes = {("gate", Metric.MEMORY_RSS): 5.2, ("db", Metric.MEMORY_RSS): 5.0}
    assert first(evidence(sizes, {"gate": 0.6, "db": 0.1})) == "db"
    assert first(evidence(sizes, {"gate": 0.6, "db": 0.1}), early=0.0) == "gate"


@settings(max_examples=60)
@given(
    st.lists(st.floats(-16, 16), min_size=36, max_size=36),
    st.lists(st.floats(0, 1), min_size=36, max_size=36),
    st.floats(0, 1),
    st.floats(0, 2),
)
def test_laws_of_the_score(sizes: list[float], onsets: list[float], explained: float, early: float) -> None:
    shape = (3, N_METRICS)
    found = Evidence(NAMES, np.reshape(sizes, shape), np.reshape(onsets, shape), np.ones(shape, dtype=bool))
    weights = RankingSettings(explained=explained, early=early)
    score, own, blamed = scores(found, GRAPH, weights)
    # Neighbours only ever take away; a container without any keeps all; and nobody explains themselves.
    assert (own >= 0).all()
    assert (own <= np.abs(found.size) + 1e-9).all()
    assert (score <= found.farthest * (1 + early) + 1e-9).all()
    assert not (blamed == np.arange(3)).any()
    alone, kept, _ = scores(found, ALONE, weights)
    assert np.allclose(kept, np.abs(found.size))
    assert (score <= alone + 1e-9).all()


def test_a_burst_is_no_evidence_where_it_is_usual(make_window: Any) -> None:
    normal = make_window(NAMES, samples=400)
    normal.values[0, ::40, P50] *= 8  # once in forty samples, also in normal operation
    incident = make_window(NAMES, samples=12, seed=1)
    incident.values[0, :, P50] *= 2.0
    incident.values[2, :, P50] *= 1.6
    # By the spread of the middle alone the first would look worse.
    assert first(gather(learn(normal), incident), ALONE) == "db"


def test_a_spike_of_one_sample_is_no_cause(make_window: Any) -> None:
    incident = make_window(NAMES, samples=12, seed=1, changes={("db", Metric.CPU): 2.5})
    incident.values[0, 5] *= 1000
    assert first(gather(learn(make_window(NAMES)), incident)) == "db"


def test_onset_is_when_it_begins_to_last(make_window: Any) -> None:
    incident = make_window(NAMES, samples=20, seed=1, changes={("db", Metric.CPU): 6.0}, begins=5)
    incident.values[2, 1, METRICS.index(Metric.CPU)] *= 6
    found = gather(learn(make_window(NAMES)), incident)
    onset = found.onset[2, METRICS.index(Metric.CPU)]
    assert onset in (1 / 20, 5 / 20)  # the sample before may belong to it
    assert (found.onset[0] == 1.0).all()


def test_what_was_not_measured_is_degraded_not_innocent(make_window: Any) -> None:
    incident = make_window(NAMES, samples=12, seed=1)
    incident.values[1] = np.nan
    ranking = rank_causes(make_window(NAMES), incident, GRAPH)
    assert ranking.degraded == ("orders",)
    normal = make_window(NAMES)
    normal.values[1, 7:] = np.nan
    assert rank_causes(normal, make_window(NAMES, samples=12), GRAPH).degraded == ("orders",)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda w: TelemetryWindow(("x", *w.containers[1:]), w.services, w.end_s, w.step_s, w.values),
        lambda w: TelemetryWindow(w.containers, w.services, w.end_s, w.step_s, -w.values),
        lambda w: TelemetryWindow(w.containers, w.services, w.end_s, w.step_s, w.values * np.inf),
        lambda w: TelemetryWindow(w.containers, w.services, w.end_s, w.step_s, w.values[:, :0]),
    ],
)
def test_windows_that_make_no_sense_are_errors(make_window: Any, spoil: Any) -> None:
    with pytest.raises(InputError):
        rank_causes(make_window(NAMES), spoil(make_window(NAMES, samples=12)), GRAPH)


@pytest.mark.parametrize(
    "fields",
    [{"explained": 1.1}, {"explained": -0.1}, {"early": -1.0}, {"quantile": 1.0}, {"early": float("nan")}],
)
def test_settings_out_of_range_are_errors(fields: dict[str, float]) -> None:
    with pytest.raises(InputError):
        RankingSettings(**fields)


def _verdict(
    container: str, at_s: float, *drivers: tuple[Metric, float], kind: AnomalyKind = AnomalyKind.UNKNOWN
) -> AnomalyVerdict:
    return AnomalyVerdict(
        container=container, at_s=at_s, score=0.9, kind=kind, confidence=0.9,
        drivers=tuple(Driver(metric=str(m), deviation=d) for m, d in drivers),
    )  # fmt: skip


def test_verdicts_are_evidence_too() -> None:
    verdicts = [
        _verdict("gate", 130.0, (Metric.LATENCY_P50, 9.0)),
        _verdict("orders", 110.0, (Metric.LATENCY_P50, 8.0)),
        *(
            _verdict("db", at_s, (Metric.LATENCY_P50, 7.0 + at_s / 1e4), (Metric.CPU, -2.0))
            for at_s in (105.0, 115.0, 125.0)
        ),
        _verdict("gate", 90.0, (Metric.CPU, 16.0)),  # before the window
        _verdict("gate", 120.0, (Metric.CPU, 16.0), kind=AnomalyKind.FALSE_POSITIVE),
        _verdict("stranger", 120.0, (Metric.CPU, 16.0)),
    ]
    found = from_verdicts(verdicts, NAMES, start_s=100.0, end_s=200.0)
    assert found.size[2, P50] == pytest.approx(7.0115)
    assert found.onset[2, P50] == pytest.approx(0.05)
    assert found.size[0, METRICS.index(Metric.CPU)] == 0
    assert first(found) == "db"
    with pytest.raises(InputError, match="window"):
        from_verdicts(verdicts, NAMES, start_s=100.0, end_s=100.0)
    bad = replace(_verdict("db", 150.0), drivers=(Driver(metric="speed", deviation=1.0),))
    with pytest.raises(InputError, match="metric 'speed'"):
        from_verdicts([bad], NAMES, start_s=100.0, end_s=200.0)


def test_baselines(make_window: Any) -> None:
    normal = make_window(NAMES)
    incident = make_window(NAMES, samples=12, seed=1, changes={("db", Metric.CPU): 6.0, ("orders", Metric.CPU): 3.0})
    found = gather(learn(normal), incident)
    for score in (largest_deviation(found), robust_scorer(normal, incident), random_walk(found, GRAPH)):
        assert score.shape == (3,)
        assert np.isfinite(score).all()
        assert score.argmax() == 2
    quiet = Evidence(NAMES, np.zeros((3, N_METRICS)), np.ones((3, N_METRICS)), np.ones((3, N_METRICS), dtype=bool))
    assert (random_walk(quiet, GRAPH) == 0).all()
    assert random_walk(found, GRAPH).sum() == pytest.approx(1.0)


def test_an_interquartile_range_of_zero_counts_as_one(make_window: Any) -> None:
    normal, incident = make_window(NAMES), make_window(NAMES, samples=3)
    normal.values[:], incident.values[:] = 7.0, 7.0
    incident.values[1, 1, RSS] = 12.0
    normal.values[0] = np.nan
    assert robust_scorer(normal, incident).tolist() == [0.0, 5.0, 0.0]


@given(
    st.lists(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=7, max_size=7), min_size=1),
    st.floats(0.01, 0.99),
)
def test_quantiles_over_time_are_numpys(samples: list[list[float]], quantile: float) -> None:
    given_ = np.array(samples).T[None]  # (1, 7, M)
    found = over_time(given_, quantile)
    for k in range(given_.shape[2]):
        column = given_[0, ~np.isnan(given_[0, :, k]), k]
        expected = np.quantile(column, quantile) if len(column) else 0.0
        assert found[0, k] == pytest.approx(expected, rel=1e-9, abs=1e-6)
