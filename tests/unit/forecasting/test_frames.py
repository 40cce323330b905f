"""Missing samples and restarts become masks; what was measured stays as it is."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from natwork_ray.domain.telemetry import METRICS, N_METRICS, Metric
from natwork_ray.forecasting.frames import framed, last_samples, restarts, sliding

CPU, RSS, VSIZE = (METRICS.index(m) for m in (Metric.CPU, Metric.MEMORY_RSS, Metric.MEMORY_VSIZE))
NAN = np.float32(np.nan)


def window(length: int = 10) -> np.ndarray:
    return np.arange(1, length * N_METRICS + 1, dtype=np.float32).reshape(1, length, N_METRICS)


@given(arrays.arrays(np.float32, (2, 6, N_METRICS), elements=st.one_of(st.just(np.nan), st.floats(1.0, 1.5, width=32))))
def test_no_hole_is_left_and_nothing_measured_is_changed(values: np.ndarray) -> None:
    frame = framed(values)
    measured = ~np.isnan(values)
    assert not np.isnan(frame.filled).any()
    assert (frame.filled[measured] == values[measured]).all()
    assert (frame.taken == measured.sum(axis=1)).all()
    assert (frame.age[frame.taken == 0] == 6).all()
    assert ((frame.age == 0) == measured[:, -1]).all()


def test_the_last_sample_taken_is_carried_forward_and_the_first_backward() -> None:
    values = window()
    values[0, :3, CPU] = NAN
    values[0, 6:, CPU] = NAN
    frame = framed(values)
    assert (frame.filled[0, :3, CPU] == values[0, 3, CPU]).all()
    assert (frame.filled[0, 6:, CPU] == values[0, 5, CPU]).all()
    assert frame.age[0, CPU] == 4
    assert frame.taken[0, CPU] == 3


def test_a_new_process_hides_the_old_ones_past() -> None:
    values = window()
    values[0, :, [RSS, VSIZE]] = 1e9
    values[0, 6:, [RSS, VSIZE]] = 1e8
    assert np.flatnonzero(restarts(values)[0]).tolist() == [6]
    frame = framed(values)
    assert (frame.filled[0, :, RSS] == 1e8).all()
    assert frame.taken[0, CPU] == 4
    assert (frame.filled[0, :6, CPU] == values[0, 6, CPU]).all()


def test_memory_given_back_is_no_restart() -> None:
    values = window()
    values[0, :, [RSS, VSIZE]] = 1e9
    values[0, 6:, RSS] = 1e7  # the address space stays
    assert not restarts(values).any()


def test_a_silence_and_half_the_memory_is_a_restart_and_a_silence_alone_is_none() -> None:
    values = window()
    values[0, :, RSS] = 1e9
    values[0, 4:6] = NAN
    assert not restarts(values).any()
    values[0, 6:, RSS] = 4e8
    assert np.flatnonzero(restarts(values)[0]).tolist() == [6]


def test_a_window_per_sample_looks_backwards_only() -> None:
    values = window()[0]
    cut = sliding(values, 4)
    assert cut.shape == (10, 4, N_METRICS)
    assert np.isnan(cut[0, :3]).all()
    assert (cut[5] == values[2:6]).all()


def test_longer_windows_lose_their_oldest_samples_and_shorter_ones_gain_missing_ones() -> None:
    values = window()
    assert (last_samples(values, 4) == values[:, 6:]).all()
    longer = last_samples(values, 13)
    assert np.isnan(longer[:, :3]).all()
    assert (longer[:, 3:] == values).all()
