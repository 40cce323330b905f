"""Windows: causal, labelled by their last row, never across runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.telemetry import N_METRICS
from natwork_ray.domain.values import Backend
from natwork_ray.errors import InputError
from natwork_ray.profiling.windows import (
    by_own_commissioning,
    by_profile,
    by_standard_score,
    commissioning_book,
    cut,
    windows_of,
)


def _counting(service: str, run: str, length: int, start: float, *, commissioning: int = 0) -> LabelledRun:
    values = np.repeat(np.arange(length, dtype=np.float32)[:, None] + start, N_METRICS, axis=1)
    return LabelledRun(
        service=service,
        run=run,
        backend=Backend.EMULATED,
        step_s=10.0,
        values=values,
        kinds=(np.arange(length) % 3 == 2).astype(np.int8),
        commissioning=commissioning,
    )


def test_a_window_looks_backwards_and_repeats_the_first_sample() -> None:
    rows = cut(_counting("s", "r", 4, 0).values, 3)[:, :, 0]
    assert rows.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]


def test_windows_never_cross_runs_and_carry_the_last_label() -> None:
    runs = (_counting("s", "r1", 5, 0), _counting("t", "r2", 4, 100))
    windows = windows_of(runs, 3, lambda run: run.values)
    assert windows.inputs.shape == (9, 3, N_METRICS)
    assert (windows.inputs[5:] >= 100).all()
    assert windows.kinds.tolist() == [0, 0, 1, 0, 0, 0, 0, 1, 0]
    assert windows.unit.tolist() == [0] * 5 + [1] * 4
    assert windows.of_runs(("r2",)).tolist() == [False] * 5 + [True] * 4


def test_bounds() -> None:
    run = _counting("s", "r", 5, 0)
    for length in (1, 513):
        with pytest.raises(InputError, match="window of"):
            windows_of([run], length, lambda r: r.values)
    with pytest.raises(InputError, match="without a sample"):
        windows_of([_counting("s", "r", 0, 0)], 3, lambda r: r.values)


def test_profiles_pool_the_commissioning_parts_only() -> None:
    runs = [_counting("s", "r1", 40, 0, commissioning=20), _counting("s", "r2", 40, 1000)]
    book = commissioning_book(runs)
    assert book.profiles[0].samples == (20,) * N_METRICS
    assert commissioning_book([runs[1]]).fleet is None


def test_own_commissioning_differs_by_run(make_run: Callable[..., LabelledRun]) -> None:
    runs = [make_run("s", "r1", 1), make_run("s", "r2", 2, size=5.0)]
    own = by_own_commissioning(runs)
    shared = by_profile(commissioning_book(runs[:1]))
    calm = slice(0, 60)
    assert np.median(np.abs(own(runs[1])[calm])) < 1.5
    assert np.median(np.abs(shared(runs[1])[calm])) > 5


def test_standard_score_ignores_missing_and_still_metrics() -> None:
    run = _counting("s", "r", 50, 0)
    run.values[:, 3] = 7.0
    run.values[10:20, 5] = np.nan
    scored = by_standard_score([run])(run)
    assert np.isfinite(scored).all()
    assert (scored[:, 3] == 0).all()
    assert (scored[10:20, 5] == 0).all()
    assert abs(float(scored[:, 0].std()) - 1) < 1e-5
