"""Rings of newest samples: slots by time, gaps that stay gaps, late and repeated samples, and a bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.errors import InputError
from natwork_ray.profiling.profile import Floats
from natwork_ray.profiling.recent_samples import Recent, RecentSamples

STEP_S = 10.0


def sample(figure: float) -> Floats:
    return np.full((1, 12), figure, dtype=np.float32)


def put(recent: RecentSamples, slot: int, figure: float, length: int = 4, name: str = "c") -> Recent:
    return recent.append(slot * STEP_S, (name,), sample(figure), length=length)


def figures(window: Floats) -> list[float | None]:
    return [None if np.isnan(x) else float(x) for x in window[0, :, 0]]


def test_a_window_fills_with_time() -> None:
    recent = RecentSamples(step_s=STEP_S)
    assert figures(put(recent, 7, 1.0).windows) == [None, None, None, 1.0]
    assert put(recent, 8, 2.0).history.tolist() == [2]
    for slot in (9, 10, 11):
        last = put(recent, slot, float(slot))
    assert figures(last.windows) == [2.0, 9.0, 10.0, 11.0]
    assert last.history.tolist() == [4]


def test_a_gap_is_a_gap() -> None:
    recent = RecentSamples(step_s=STEP_S)
    put(recent, 1, 1.0)
    assert figures(put(recent, 3, 3.0).windows) == [None, 1.0, None, 3.0]


def test_what_comes_twice_or_late_finds_its_place() -> None:
    recent = RecentSamples(step_s=STEP_S)
    put(recent, 1, 1.0)
    put(recent, 3, 3.0)
    assert figures(put(recent, 2, 2.0).windows) == [None, 1.0, 2.0, 3.0]
    assert figures(put(recent, 3, 3.5).windows) == [None, 1.0, 2.0, 3.5]


def test_jitter_of_the_scrape_falls_into_one_slot() -> None:
    recent = RecentSamples(step_s=STEP_S)
    recent.append(10.4, ("c",), sample(1.0), length=3)
    assert figures(recent.append(19.7, ("c",), sample(2.0), length=3).windows) == [None, 1.0, 2.0]


def test_a_clock_that_was_set_back_begins_anew() -> None:
    recent = RecentSamples(step_s=STEP_S, kept=8)
    put(recent, 1000, 1.0)
    assert figures(put(recent, 5, 2.0).windows) == [None, None, None, 2.0]


def test_a_long_silence_forgets() -> None:
    recent = RecentSamples(step_s=STEP_S, kept=4)
    for slot in range(4):
        put(recent, slot, 1.0)
    assert figures(put(recent, 10**6, 2.0).windows) == [None, None, None, 2.0]


def test_the_one_silent_longest_goes_first() -> None:
    recent = RecentSamples(step_s=STEP_S, max_containers=2)
    put(recent, 1, 1.0, name="a")
    put(recent, 1, 1.0, name="b")
    put(recent, 2, 2.0, name="a")
    put(recent, 2, 2.0, name="c")
    assert len(recent) == 2
    assert put(recent, 3, 3.0, name="a").history.tolist() == [3]
    assert put(recent, 3, 3.0, name="b").history.tolist() == [1]


@pytest.mark.parametrize("length", [0, 65])
def test_no_window_is_longer_than_what_is_kept(length: int) -> None:
    with pytest.raises(InputError, match="windows of"):
        put(RecentSamples(step_s=STEP_S), 1, 1.0, length=length)


@pytest.mark.parametrize("at_s", [-10.0, np.nan, np.inf, 1e300])
def test_a_time_that_is_none(at_s: float) -> None:
    with pytest.raises(InputError, match="samples taken"):
        RecentSamples(step_s=STEP_S).append(at_s, ("c",), sample(1.0), length=2)


def test_a_container_comes_once_per_moment() -> None:
    with pytest.raises(InputError, match="two samples"):
        RecentSamples(step_s=STEP_S).append(1.0, ("c", "c"), np.ones((2, 12), np.float32), length=2)


@pytest.mark.parametrize("wrong", [{"step_s": 0.0}, {"step_s": 1.0, "kept": 0}, {"step_s": 1.0, "max_containers": 0}])
def test_rings_of_no_size(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="rings of"):
        RecentSamples(**wrong)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 100)), min_size=1, max_size=60))
def test_a_ring_is_what_a_table_of_times_would_be(puts: list[tuple[int, int]]) -> None:
    recent, kept = RecentSamples(step_s=STEP_S, kept=8), 8
    table: dict[int, float] = {}
    newest = None
    for slot, figure in puts:
        if newest is not None and slot <= newest - kept:
            table.clear()
            newest = None
        table[slot] = float(figure)
        newest = slot if newest is None else max(newest, slot)
        found = put(recent, slot, float(figure), length=kept)
        assert figures(found.windows) == [table.get(s) for s in range(newest - kept + 1, newest + 1)]
