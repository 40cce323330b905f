"""Stage 1 of `best`: what it learns from, calibration, and its place in a detector."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.domain.values import Backend
from natwork_ray.profiling.boosting import MOST_PROFILES, References, calibrate, features_of_run
from natwork_ray.profiling.detector import TwoStageDetector
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.profile import REFERENCE_WIDTH, Floats, unprofiled_fleet
from natwork_ray.profiling.training import train
from natwork_ray.profiling.windows import commissioning_book, cut

Runs = tuple[LabelledRun, ...]
CPU = METRICS.index(Metric.CPU)


def _row(*runs: LabelledRun) -> Floats:
    return np.array(commissioning_book(runs).profiles[0].reference, dtype=np.float32)


def test_a_window_is_seen_by_every_profile_of_its_service(runs: Runs) -> None:
    own, other, third = (run for run in runs if run.service == "a")
    rows = References.of(runs).for_training(own)
    expected = [_row(own), _row(other), _row(third), _row(own, other, third)]
    np.testing.assert_array_equal(rows, expected)
    alone = References.of([own])
    np.testing.assert_array_equal(alone.for_training(own), [_row(own)])
    # A run without an hour of its own is seen by the others' only.
    np.testing.assert_array_equal(alone.for_training(other), [_row(own)])


def test_profiles_per_window_are_bounded(runs: Runs) -> None:
    many = [replace(runs[0], run=f"r{k}") for k in range(9)]
    assert len(References.of(many).for_training(many[5])) == MOST_PROFILES + 1


def test_unseen_runs_are_judged_as_they_would_be(runs: Runs) -> None:
    own, other, _ = (run for run in runs if run.service == "a")
    every = References.of(runs)
    np.testing.assert_array_equal(References.of([other]).for_judging(own, every), _row(other))
    stranger = References.of([run for run in runs if run.service == "b"])
    np.testing.assert_array_equal(stranger.for_judging(own, every), _row(own))
    bare = References.of([])
    np.testing.assert_array_equal(bare.for_judging(own, bare), np.array(unprofiled_fleet().reference, dtype=np.float32))


def test_features_of_a_run_are_those_of_its_windows(runs: Runs) -> None:
    seen = features_of_run(runs[0], _row(runs[0]), 5)
    assert seen.shape[0] == len(runs[0].kinds)
    assert (
        features_of_run(replace(runs[0], values=runs[0].values[:0], kinds=runs[0].kinds[:0]), _row(runs[0]), 5).size
        == 0
    )


@settings(max_examples=25)
@given(st.floats(0.3, 3.0), st.floats(-2.0, 2.0), st.integers(0, 99))
def test_calibration_finds_the_odds_that_made_the_labels(slope: float, intercept: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = 2.0 * rng.standard_normal(20_000)
    truth = rng.random(len(raw)) < 1 / (1 + np.exp(-(slope * raw + intercept)))
    assert calibrate(truth, raw) == pytest.approx((slope, intercept), abs=0.15)


def test_calibration_stays_finite_and_never_turns_scores_around() -> None:
    raw = np.linspace(-3, 3, 50)
    slope, intercept = calibrate(raw > 0, raw)
    assert 1 < slope < 100
    assert abs(intercept) < 10
    assert calibrate(raw < 0, raw)[0] > 0


def test_the_same_runs_and_seed_give_the_same_trees(runs: Runs) -> None:
    few = TrainingSettings(folds=2, window=4, trees=10)
    texts = [train(runs[:4], replace(few, seed=seed), naming=False).stage_1.text for seed in (1, 1, 2)]  # type: ignore[attr-defined]
    assert texts[0] == texts[1] != texts[2]


def test_profiles_of_recorded_services_travel_with_the_detector(runs: Runs, best: TwoStageDetector) -> None:
    recorded = tuple(replace(run, backend=Backend.REPLAYED) for run in runs[:4])
    detector = train(recorded, TrainingSettings(folds=2, window=4, trees=10), naming=False)
    assert [p.service for p in detector.book.profiles] == ["a", "b"]
    # Emulated services are nobody's.
    assert best.book.profiles == ()
    assert best.book.references(("a",)).shape == (1, REFERENCE_WIDTH)


def test_contributions_name_the_metric_that_broke(runs: Runs, best: TwoStageDetector) -> None:
    values = cut(runs[0].values, best.history)
    scores = best.score(values, commissioning_book(runs[:2]).references(("a",) * len(values)))
    hot = (runs[0].kinds == STAGE_2_CLASSES.index(AnomalyKind.HIGH_CPU)) & scores.flagged
    assert hot.sum() >= 10
    assert (scores.contributions[hot].argmax(axis=1) == CPU).mean() > 0.9
    assert not scores.contributions[~scores.flagged].any()


def test_without_naming_everything_flagged_is_unknown(runs: Runs) -> None:
    detector = train(runs[:4], TrainingSettings(folds=2, window=4, trees=10), naming=False)
    values = cut(runs[0].values, detector.history)
    scores = detector.score(values, commissioning_book(runs[:2]).references(("a",) * len(values)))
    assert scores.flagged.any()
    assert {STAGE_2_CLASSES[k] for k in scores.kinds[scores.flagged]} == {AnomalyKind.UNKNOWN}
