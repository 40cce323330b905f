"""A season is found where there is one, and repeated."""

from __future__ import annotations

import numpy as np
import pytest

from natwork_ray.forecasting.seasonal import period, seasonal_change

T = np.arange(300.0)
RNG = np.random.default_rng(3)


@pytest.mark.parametrize("length", [6, 12, 20])
def test_the_period_is_found(length: int) -> None:
    wave = 5 + np.sin(2 * np.pi * T / length) + 0.2 * RNG.normal(size=300)
    assert period([wave + 0.01 * T], 24) == length


@pytest.mark.parametrize(
    "column",
    [np.full(300, 3.0), 0.01 * T, RNG.normal(size=300), np.cumsum(RNG.normal(size=300)), np.full(300, np.nan), T[:5]],
)
def test_no_period_is_made_up(column: np.ndarray) -> None:
    assert period([column], 24) == 0


def test_missing_samples_do_not_hide_it() -> None:
    wave = np.sin(2 * np.pi * T / 12) + 2
    wave[::7] = np.nan
    assert period([wave], 24) == 12


def test_the_same_phase_comes_again() -> None:
    phase = (np.arange(24) % 6).astype(np.float32)
    for horizon in (1, 5, 6, 7, 13):
        change = seasonal_change(phase[None], np.array([6]), horizon)
        assert phase[-1] + change[0] == (23 + horizon) % 6


def test_without_a_period_nothing_changes() -> None:
    assert seasonal_change(np.arange(8, dtype=np.float32)[None], np.array([0]), 3).tolist() == [0.0]
