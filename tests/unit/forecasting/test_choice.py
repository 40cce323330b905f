"""A model has to earn its place: naive is the floor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natwork_ray.forecasting.choice import BOOSTED, NAIVE, SEASONAL, Chosen, choose

RUNS = np.arange(6) // 2  # six recordings in three runs
RNG = np.random.default_rng(0)
RECORDING = np.repeat(np.arange(6), 50)
SERVICE = np.zeros(300, dtype=np.intp)


def decide(change: np.ndarray, *candidates: tuple[int, np.ndarray], margin: float = 0.02) -> Chosen:
    return choose(change, candidates, SERVICE, RECORDING, RUNS, 1, margin=margin)[0]


@given(
    seed=st.integers(0, 10_000),
    boldness=st.floats(-3.0, 6.0),
    knowledge=st.floats(-1.0, 1.0),
    scale=st.sampled_from([1e-6, 1.0, 1e9]),
)
@settings(max_examples=60, deadline=None)
def test_on_the_data_it_was_chosen_on_no_choice_is_worse_than_naive(
    seed: int, boldness: float, knowledge: float, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    change = rng.normal(size=300) * scale
    forecast = boldness * (knowledge * change + (1 - abs(knowledge)) * scale * rng.normal(size=300))
    chosen = decide(change, (BOOSTED, forecast))
    assert 0.0 <= chosen.factor <= 1.0
    assert chosen.skill >= 0.0
    for run in range(3):
        rows = RUNS[RECORDING] == run
        left = ((change - chosen.factor * forecast * (chosen.model != NAIVE))[rows] ** 2).sum()
        assert left <= (change[rows] ** 2).sum() * 1.005 * (1 + 1e-9)


def test_who_knows_the_future_is_chosen() -> None:
    change = RNG.normal(size=300)
    chosen = decide(change, (SEASONAL, 0.3 * change + RNG.normal(size=300)), (BOOSTED, change))
    assert chosen.model == BOOSTED
    assert 0.8 < chosen.factor < 1.0
    assert chosen.skill > 0.95


def test_noise_is_not_chosen() -> None:
    assert decide(RNG.normal(size=300), (BOOSTED, RNG.normal(size=300))) == Chosen()


def test_too_bold_a_model_is_shrunk() -> None:
    change = RNG.normal(size=300)
    chosen = decide(change, (BOOSTED, 4 * change))
    assert chosen.model == BOOSTED
    assert 0.2 < chosen.factor <= 0.25


def test_little_skill_is_not_worth_leaving_naive_for() -> None:
    change = RNG.normal(size=300)
    forecast = 0.02 * change
    assert decide(change, (BOOSTED, forecast)).model == BOOSTED
    assert decide(change, (BOOSTED, forecast), margin=0.2) == Chosen()


def test_one_run_without_gain_is_enough_to_stay_naive() -> None:
    change = RNG.normal(size=300)
    forecast = change.copy()
    forecast[RUNS[RECORDING] == 2] *= -0.1
    assert decide(change, (BOOSTED, forecast)) == Chosen()


def test_a_run_in_which_memory_jumped_does_not_outvote_the_others() -> None:
    change = RNG.normal(size=300)
    change[:100] *= 1e4
    forecast = change + 0.3 * RNG.normal(size=300)
    forecast[:100] = 0.1 * change[:100]
    chosen = decide(change, (BOOSTED, forecast))
    assert chosen.model == BOOSTED
    assert chosen.skill > 0.5


def test_a_lucky_recording_among_many_is_not_enough() -> None:
    recording = np.repeat(np.arange(10), 30)
    change = RNG.normal(size=300)
    forecast = RNG.normal(size=300) * 1e-3
    forecast[:30] = change[:30]
    forecast[30:] -= 0.01 * change[30:]
    chosen = choose(change, [(BOOSTED, forecast)], SERVICE, recording, np.zeros(10, dtype=np.intp), 1, margin=0.02)
    assert chosen[0] == Chosen()


def test_what_nobody_knows_is_left_out() -> None:
    change = RNG.normal(size=300)
    change[::3] = np.nan
    forecast = np.nan_to_num(change, nan=1e9)
    assert decide(change, (BOOSTED, forecast)).skill > 0.9
    assert decide(np.full(300, np.nan), (BOOSTED, forecast)) == Chosen()
    assert decide(np.zeros(300), (BOOSTED, forecast)) == Chosen()
    assert decide(change, (BOOSTED, np.zeros(300))) == Chosen()


def test_a_service_not_seen_gets_what_is_safe_for_most() -> None:
    service = np.repeat([0, 1], 150)
    change = RNG.normal(size=300)
    forecast = np.where(service == 0, change, 4 * change)
    chosen = choose(change, [(BOOSTED, forecast)], service, RECORDING, RUNS, 2, margin=0.02)
    assert len(chosen) == 3
    assert chosen[0].factor > chosen[1].factor
    assert chosen[2].model == BOOSTED
    assert chosen[2].factor <= np.quantile([1.0, 0.25], 0.25) + 1e-9
    assert chosen[2].skill == pytest.approx(chosen[2].skill)
