"""Features of a history: causal, finite, and telling a spike from a step."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric
from natwork_ray.profiling.histories import HISTORY, LATENCIES, features, stretched

DEVIATIONS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(3, HISTORY + 4), st.just(N_METRICS)),
    elements=st.floats(-16, 16, width=32) | st.just(float("nan")),
)


@given(DEVIATIONS)
def test_features_are_finite_whatever_is_missing(deviating: np.ndarray) -> None:
    seen = features(deviating)
    assert seen.dtype == np.float32
    assert len(seen) == len(deviating)
    assert np.isfinite(seen).all()
    np.testing.assert_array_equal(seen, features(np.nan_to_num(deviating, nan=0.0)))


@given(DEVIATIONS)
def test_older_samples_than_the_history_do_not_matter(deviating: np.ndarray) -> None:
    older = np.concatenate(
        [np.full((len(deviating), 5, N_METRICS), 9.0, dtype=np.float32), stretched(deviating)], axis=1
    )
    np.testing.assert_array_equal(features(older), features(deviating))


@given(DEVIATIONS)
def test_rows_do_not_see_each_other(deviating: np.ndarray) -> None:
    together = features(deviating)
    for i in range(len(deviating)):
        np.testing.assert_allclose(features(deviating[i : i + 1])[0], together[i], rtol=1e-6, atol=1e-6)


def test_a_short_history_begins_with_its_first_sample_repeated() -> None:
    short = np.arange(3 * N_METRICS, dtype=np.float32).reshape(1, 3, N_METRICS)
    full = stretched(short)
    assert full.shape == (1, HISTORY, N_METRICS)
    assert (full[0, : HISTORY - 2] == short[0, 0]).all()
    np.testing.assert_array_equal(full[0, -3:], short[0])


def _surge(lasting: int) -> np.ndarray:
    deviating = np.zeros((1, HISTORY, N_METRICS), dtype=np.float32)
    deviating[0, HISTORY - lasting :, list(LATENCIES)] = 6.0
    deviating[0, HISTORY - lasting :, METRICS.index(Metric.THROUGHPUT)] = 2.0
    return deviating


def test_the_age_of_an_episode_is_among_the_features() -> None:
    aged = [features(_surge(lasting))[0] for lasting in (1, 2, 5, 9)]
    ages = {tuple(seen[k] for seen in aged) for k in range(len(aged[0]))}
    assert (1.0, 2.0, 5.0, 9.0) in ages


def test_a_gap_of_two_samples_does_not_end_an_episode_and_three_do() -> None:
    for gap, age in ((2, 9.0), (3, 2.0)):
        deviating = _surge(9)
        deviating[0, -2 - gap : -2] = 0.0
        assert age in features(deviating)[0]
