from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.errors import InputError
from natwork_ray.limi.dataset import MigrationRow
from natwork_ray.limi.features import FEATURES, MEASURED, MOST, features

amount = st.floats(0, MOST)


@given(numbers=st.tuples(*[amount] * 10), path=st.floats(1, MOST), rtt=amount)
def test_whatever_can_be_measured_gives_finite_numbers(numbers: tuple[float, ...], path: float, rtt: float) -> None:
    load = ContainerLoad(*(), **dict(zip([n for n, _ in MEASURED[:10]], numbers, strict=True)),
                         bandwidth_bytes_per_s=path, rtt_s=rtt, observed_s=0.0)  # fmt: skip
    found = features([load])
    assert found.shape == (1, len(FEATURES))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), 1e16])
def test_what_cannot_be_measured_is_refused_by_name(rows: Sequence[MigrationRow], wrong: float) -> None:
    for name, _ in MEASURED:
        with pytest.raises(InputError, match=f"load 1, {name}"):
            features([rows[0].load, replace(rows[0].load, **{name: wrong})])


def test_a_path_without_bandwidth_is_refused(rows: Sequence[MigrationRow]) -> None:
    with pytest.raises(InputError, match="bandwidth"):
        features([replace(rows[0].load, bandwidth_bytes_per_s=0.0)])


def test_how_it_was_measured_is_no_feature(rows: Sequence[MigrationRow]) -> None:
    load = rows[0].load
    assert np.array_equal(features([load]), features([replace(load, observed_s=77.0)]))
    assert features([]).shape == (0, len(FEATURES))
