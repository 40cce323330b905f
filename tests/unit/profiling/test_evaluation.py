"""Figures: per sample, per event, intervals, votes, baselines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.domain.labelled import LabelledEvent
from natwork_ray.errors import InputError
from natwork_ray.profiling.evaluation import (
    ConstantThreshold,
    auc,
    best_threshold,
    binary_metrics,
    event_metrics,
    f1_interval,
    folds_by_run,
    score_events,
    vote,
)


@dataclass(frozen=True)
class _Alarm:
    container: str
    at_s: float


_LABELLED = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=40)


def test_folds_never_share_a_run() -> None:
    folds = folds_by_run(["b", "a", "c", "a", "b"], 2)
    assert sorted(name for fold in folds for name in fold) == ["a", "b", "c"]
    assert len(folds) == 2
    assert len(folds_by_run(["b", "a", "c"], 99)) == 3
    with pytest.raises(InputError, match="1 run"):
        folds_by_run(["a", "a"], 3)


def test_binary_metrics() -> None:
    truth = np.array([1, 1, 1, 0, 0], dtype=bool)
    reached = binary_metrics(truth, np.array([0.9, 0.8, 0.1, 0.7, 0.2]), 0.5)
    assert (reached.accuracy, reached.precision, reached.recall) == pytest.approx((0.6, 2 / 3, 2 / 3))
    assert reached.f1 == pytest.approx(2 / 3)
    assert reached.auc == pytest.approx(4 / 6)
    silent = binary_metrics(truth, np.zeros(5), 0.5)
    assert (silent.precision, silent.recall, silent.f1, silent.auc) == (0, 0, 0, 0.5)


@given(_LABELLED)
def test_auc_counts_pairs(items: list[tuple[bool, int]]) -> None:
    truth = np.array([t for t, _ in items])
    scores = np.array([float(s) for _, s in items])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[truth] for b in scores[~truth]]
    assert auc(truth, scores) == pytest.approx(float(np.mean(pairs)) if pairs else 0.5)


@given(_LABELLED, st.sampled_from([0.5, 1.0, 2.0]))
def test_best_threshold_is_best(items: list[tuple[bool, int]], beta: float) -> None:
    truth = np.array([t for t, _ in items])
    scores = np.array([float(s) for _, s in items])

    def f_beta(threshold: float) -> float:
        reached = binary_metrics(truth, scores, threshold)
        below = beta**2 * reached.precision + reached.recall
        return (1 + beta**2) * reached.precision * reached.recall / below if below else 0.0

    best = f_beta(best_threshold(truth, scores, beta=beta))
    assert best == pytest.approx(max(f_beta(t) for t in scores))


def test_interval_covers_the_figure_and_knows_recordings() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(4000) < 0.3
    flagged = truth ^ (rng.random(4000) < 0.1)
    f1 = binary_metrics(truth, flagged.astype(float), 0.5).f1
    many = f1_interval(truth, flagged, np.arange(4000), seed=1)
    assert many[0] < f1 < many[1]
    # One recording that is all wrong makes the interval over recordings wide, and the one over samples not.
    flagged[:1000] = ~truth[:1000]
    wide = f1_interval(truth, flagged, np.repeat(np.arange(4), 1000), seed=1)
    narrow = f1_interval(truth, flagged, np.arange(4000), seed=1)
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])


def test_vote_needs_company_and_does_not_cross_recordings() -> None:
    flagged = np.array([1, 0, 1, 0, 0, 1, 1], dtype=bool)
    unit = np.array([0, 0, 0, 0, 0, 0, 1])
    assert vote(flagged, unit, needed=2, of=3).tolist() == [False, False, True, False, False, False, False]
    assert vote(flagged, unit, needed=1, of=3).tolist() == flagged.tolist()


def test_event_metrics() -> None:
    truth = np.array([0, 1, 1, 0, 0, 0, 0, 1, 0, 0], dtype=bool)
    flagged = np.array([0, 0, 1, 1, 0, 1, 1, 0, 0, 0], dtype=bool)
    unit = np.zeros(10, dtype=int)
    strict = event_metrics(truth, flagged, unit, step_s=360.0)
    assert (strict.events, strict.found, strict.mean_delay_samples) == (2, 1, 1.0)
    # The stretch that began inside the first event is not false, however long it lasts; the one that ends before the
    # second event is.
    assert strict.false_alarms_per_hour == pytest.approx(1.0)
    lenient = event_metrics(truth, flagged, unit, step_s=360.0, grace=1)
    assert lenient.false_alarms_per_hour == pytest.approx(1.0)
    assert event_metrics(truth, np.zeros(10, dtype=bool), unit, step_s=10.0).mean_delay_samples is None


def test_score_events() -> None:
    truth = [
        LabelledEvent(container="a", kind="high_cpu", start_s=100.0, end_s=200.0),
        LabelledEvent(container="b", kind="ddos", start_s=100.0, end_s=200.0),
        LabelledEvent(container="b", kind="ddos", start_s=500.0, end_s=600.0),
    ]
    alarms = [_Alarm("a", 130.0), _Alarm("a", 110.0), _Alarm("b", 230.0), _Alarm("c", 150.0), _Alarm("a", 300.0)]
    score = score_events(alarms, truth, hours=2.0, grace_s=30.0)
    assert (score.injected, score.detected, score.false_alarms) == (3, 2, 2)
    assert score.false_alarms_per_hour == 1.0
    assert score.mean_delay_s == pytest.approx((10 + 130) / 2)
    assert score_events([], [], hours=1.0, grace_s=0.0).mean_delay_s is None
    with pytest.raises(InputError):
        score_events([], truth, hours=0.0, grace_s=0.0)


def test_constant_threshold_finds_metric_and_direction() -> None:
    rng = np.random.default_rng(2)
    truth = rng.random(500) < 0.2
    samples = rng.standard_normal((500, 3))
    samples[truth, 1] -= 6
    rule = ConstantThreshold.fit(samples, truth)
    assert (rule.metric, rule.direction) == (1, -1)
    assert binary_metrics(truth, rule.margin(samples), 0.0).f1 > 0.97
