"""The normal hour as a whole: distances are what their definitions say, whatever the hour looked like."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.domain.telemetry import N_METRICS
from natwork_ray.profiling.normality import (
    JOINT_LIMIT,
    JOINT_WIDTH,
    PROTOTYPES,
    Alike,
    distances,
    learn_joint,
    saturated,
)


def _hour(seed: int, length: int = 200) -> np.ndarray:
    """Metrics that move together, in two states."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((3, N_METRICS))
    states = rng.standard_normal((length, 3)) @ mixing + 4.0 * rng.integers(0, 2, (length, 1))
    return states.astype(np.float32)


def test_mahalanobis_is_the_textbook_one() -> None:
    hour = _hour(0)
    states = saturated(hour).astype(np.float64)
    row = learn_joint(hour)
    covariance = np.cov(states.T, bias=True) + 0.05 * np.eye(N_METRICS)
    asked = saturated(_hour(1, 5))
    apart = asked - states.mean(axis=0)
    expected = np.einsum("nk,kl,nl->n", apart, np.linalg.inv(covariance), apart)
    found = distances(asked[:, None], row[None].repeat(5, axis=0))
    assert np.expm1(found[:, 0, 0]) == pytest.approx(expected, rel=1e-2)


def test_what_the_hour_held_is_near_and_what_breaks_its_relations_is_far() -> None:
    hour = _hour(2)
    row = learn_joint(hour)[None]
    usual = distances(saturated(hour)[None], row)[0]
    # Every metric on its own is within its range, but not together.
    rng = np.random.default_rng(3)
    shuffled = np.stack([rng.permutation(hour[:, k]) for k in range(N_METRICS)], axis=1)
    odd = distances(saturated(shuffled)[None], row)[0]
    assert np.median(odd[:, 0]) > np.quantile(usual[:, 0], 0.99)
    assert np.median(odd[:, 1]) > np.median(usual[:, 1])


@given(st.integers(0, 80), st.integers(0, 2**16))
def test_any_hour_gives_a_row_in_range_and_finite_distances(length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hour = (rng.standard_normal((length, N_METRICS)) * rng.choice([0.0, 1.0, 1e6], N_METRICS)).astype(np.float32)
    hour[rng.random(hour.shape) < 0.2] = np.nan
    row = learn_joint(hour)
    assert row.shape == (JOINT_WIDTH,)
    assert np.abs(row).max() <= JOINT_LIMIT
    assert (learn_joint(hour) == row).all()
    states = saturated((100 * rng.standard_normal((4, 3, N_METRICS))).astype(np.float32))
    found = distances(states, row[None].repeat(4, axis=0))
    assert np.isfinite(found).all()
    assert (found >= 0).all()


def test_few_states_are_their_own_prototypes() -> None:
    hour = np.repeat(np.eye(N_METRICS, dtype=np.float32)[:2], 20, axis=0)
    found = distances(np.eye(N_METRICS, dtype=np.float32)[None, :3], learn_joint(hour)[None])[0, :, 1]
    assert found == pytest.approx([0.0, 0.0, np.sqrt(2.0)], abs=1e-3)
    assert len(hour) > PROTOTYPES


def test_services_together_are_as_each_by_itself() -> None:
    rng = np.random.default_rng(5)
    table = np.stack([learn_joint(rng.normal(0, 1 + k, (200, N_METRICS)).astype(np.float32)) for k in range(3)])
    table[2, :24] = table[1, :24]
    table[2, 24:30] = table[1, 24:30] + np.float32(0.01)
    states = rng.normal(0, 3, (60, 3, N_METRICS)).astype(np.float32)
    rows = table[rng.integers(3, size=60)]
    alone = np.concatenate([distances(states[i : i + 1], rows[i : i + 1]) for i in range(60)])
    np.testing.assert_allclose(distances(states, rows), alone, atol=1e-4)
    few = distances(states[:4], rows[:4])  # hardly repeated: the other way of computing
    np.testing.assert_allclose(few, alone[:4], atol=1e-4)


def test_rows_that_differ_are_never_taken_for_the_same() -> None:
    base = np.arange(2 * JOINT_WIDTH, dtype=np.uint32).view(np.float32)[:JOINT_WIDTH]
    rows = np.tile(base, (40, 1))
    rows[::2, -1] = 1.0  # beyond what is summed
    alike = Alike.of(rows)
    assert alike.ends == (20, 40)
    assert {tuple(sorted(part)) for part in np.split(alike.order, [20])} == {
        tuple(range(0, 40, 2)),
        tuple(range(1, 40, 2)),
    }
    assert Alike.of(rows[:0]).ends == ()
    assert len(Alike.of(rows[:0]).first) == 0
    assert len(Alike.of(np.broadcast_to(base, (40, JOINT_WIDTH))).ends) == 1
