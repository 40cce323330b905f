"""Calibrated bands hold what they promise, and p-values of ordinary samples are spread evenly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.forecasting.conformal import (
    LEVELS,
    MIN_SCORES,
    AdaptiveLevels,
    likelihoods,
    quantile_at,
    score_tables,
    scores,
    table_of,
    widths,
)

RNG = np.random.default_rng(4)


def test_a_score_is_the_distance_outside_in_widths() -> None:
    low, high = np.zeros(3), np.full(3, 2.0)
    assert scores(np.array([3.0, -2.0, 1.0]), low, high).tolist() == [0.5, 1.0, -0.5]
    assert np.isnan(scores(np.array([np.nan]), np.zeros(1), np.ones(1)))[0]
    assert (widths(np.zeros(1), np.zeros(1)) > 0).all()


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("spread", [0.2, 3.0])
def test_bands_too_narrow_or_too_wide_are_moved_to_their_coverage(coverage: float, spread: float) -> None:
    draw = RNG.standard_t(4, size=20_000)
    low, high = np.full(20_000, -spread), np.full(20_000, spread)
    found = scores(draw, low, high)
    table = table_of(found[:5000])
    shift = quantile_at(table, coverage)
    assert (found[5000:] <= shift).mean() == pytest.approx(coverage, abs=0.02)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50), st.floats(0, 1), st.floats(0, 1))
def test_more_coverage_never_needs_a_narrower_band(found: list[float], a: float, b: float) -> None:
    table = table_of(np.array(found))
    low, high = sorted((a, b))
    assert quantile_at(table, low) <= quantile_at(table, high)
    assert quantile_at(table, 1.0) == max(found)
    assert min(found) <= quantile_at(table, 0.0) <= max(found)


def test_ordinary_samples_have_even_likelihoods_and_odd_ones_high_ones() -> None:
    found = RNG.normal(size=4000)
    table = np.tile(table_of(found[:2000]), (2000, 1))
    likely = likelihoods(table, found[2000:])
    assert (likely >= 0.99).mean() == pytest.approx(0.01, abs=0.01)
    assert (likely >= 0.5).mean() == pytest.approx(0.5, abs=0.05)
    assert likelihoods(table[:3], np.array([1e9, -1e9, np.nan])).tolist() == [1.0, 0.0, 0.0]


def test_beyond_all_scores_bands_go_on_widening() -> None:
    table = table_of(np.linspace(0.0, 3.0, 50))
    assert quantile_at(table, 1.5) > quantile_at(table, 1.1) > quantile_at(table, 1.0) == 3.0


def test_ties_are_no_surprise() -> None:
    table = table_of(np.zeros(500))
    assert likelihoods(table[None], np.zeros(1))[0] == 0.0


def test_a_service_with_few_scores_borrows_the_pooled_ones() -> None:
    found = np.concatenate([RNG.normal(size=1000), 100 + RNG.normal(size=10)])
    service = np.repeat([0, 1], [1000, 10])
    tables = score_tables(found, service, 2)
    assert tables.shape == (3, len(LEVELS))
    assert (tables[1] == tables[2]).all()
    assert tables[0].max() < 10
    assert MIN_SCORES > 10


def test_without_enough_scores_anywhere_all_are_pooled() -> None:
    tables = score_tables(np.arange(20.0), np.repeat([0, 1], 10), 2)
    assert (tables[0] == tables[2]).all()


def test_adaptive_levels_reach_their_coverage_when_the_load_changes() -> None:
    levels = AdaptiveLevels.fresh((1,), rate=0.05)
    table = table_of(RNG.normal(size=2000))
    missed = []
    for t in range(4000):
        spread = 1.0 if t < 1000 else 2.5
        miss = spread * RNG.normal(size=1) > quantile_at(table[None], 1 - levels.level)
        missed.append(bool(miss[0]))
        levels.observe(miss, np.array([True]))
    assert np.mean(missed[1000:]) == pytest.approx(0.1, abs=0.03)


def test_an_unknown_outcome_moves_nothing() -> None:
    levels = AdaptiveLevels.fresh((2,))
    levels.observe(np.array([True, True]), np.array([True, False]))
    assert levels.level[0] < 0.09
    assert levels.level[1] == pytest.approx(0.1)
