from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.domain.migrations import LoadLevel
from natwork_ray.errors import InputError
from natwork_ray.limi.load_classes import (
    ALL_CLASSES,
    FEASIBLE_CLASSES,
    MEMORY_LEVELS,
    PATH_BYTES_PER_S,
    draw_load,
    is_feasible,
    load_class,
)


def test_108_combinations_leave_34() -> None:
    assert len({c.name for c in ALL_CLASSES}) == 108
    assert len(FEASIBLE_CLASSES) == 34
    assert Counter(c.cpu for c in FEASIBLE_CLASSES) == {LoadLevel.LOW: 2, LoadLevel.MEDIUM: 16, LoadLevel.HIGH: 16}


def test_the_deliverables_example_holds() -> None:
    """High RAM and storage operations require medium to high CPU load."""
    heavy = [c for c in FEASIBLE_CLASSES if LoadLevel.HIGH in (c.memory, c.storage)]
    assert heavy
    assert all(c.cpu is not LoadLevel.LOW for c in heavy)


def test_names_lead_back_to_their_classes() -> None:
    for each in FEASIBLE_CLASSES:
        assert load_class(each.name) is each


def test_other_names_are_refused() -> None:
    with pytest.raises(InputError, match="there is no load class"):
        load_class("cpu-high")
    (odd, *_) = (c for c in ALL_CLASSES if not is_feasible(c))
    with pytest.raises(InputError, match="not feasible"):
        load_class(odd.name)


@given(number=st.integers(0, 33), seed=st.integers(0, 2**32 - 1))
def test_a_load_is_one_that_a_container_can_have(number: int, seed: int) -> None:
    load = draw_load(FEASIBLE_CLASSES[number], np.random.default_rng(seed))
    assert load == draw_load(FEASIBLE_CLASSES[number], np.random.default_rng(seed))
    assert 0 < load.working_set_bytes <= load.memory_bytes
    assert 0 <= load.volume_delta_bytes <= load.volume_bytes
    assert 0 < load.cpu_cores <= load.cpu_limit_cores
    assert 0 < load.bandwidth_bytes_per_s <= PATH_BYTES_PER_S[1]
    assert (load.network_tx_bytes_per_s == 0) == (FEASIBLE_CLASSES[number].network is LoadLevel.ZERO)


def test_levels_are_ordered_and_neighbours_overlap() -> None:
    low, medium, high = (
        MEMORY_LEVELS[level].resident_bytes for level in (LoadLevel.LOW, LoadLevel.MEDIUM, LoadLevel.HIGH)
    )
    rng = np.random.default_rng(5)
    a, b, c = ([spread.draw(rng) for _ in range(2000)] for spread in (low, medium, high))
    assert np.median(a) < np.median(b) < np.median(c)
    assert max(b) > min(c)
    assert max(a) < np.median(b)
