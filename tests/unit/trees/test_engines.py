"""Engines and attribution of trees: the same sums as LightGBM's own, and contributions that add up to them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natwork_ray.errors import InputError
from natwork_ray.trees.attribution import Paths
from natwork_ray.trees.boosters import train_text, trees_of
from natwork_ray.trees.engines import path_sums, raw_sums, rounded_down

NAMES = tuple(f"x{k}" for k in range(6))
Trees = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def text() -> str:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2000, len(NAMES))).astype(np.float32)
    target = (inputs[:, 0] + inputs[:, 1] * inputs[:, 2] > 0.5).astype(np.float64)
    parameters = {"objective": "binary", "num_leaves": 16, "extra_trees": True, "learning_rate": 0.1}
    return train_text(inputs, target, parameters, feature_names=NAMES, trees=12, seed=1)


@pytest.fixture(scope="module")
def engines(text: str) -> tuple[Trees, Trees]:
    return raw_sums(text, feature_names=NAMES), trees_of(text, feature_names=NAMES, raw=True)


def test_both_engines_say_the_same(engines: tuple[Trees, Trees]) -> None:
    inputs = np.random.default_rng(2).standard_normal((500, len(NAMES))).astype(np.float32) * 3
    fast, own = engines
    np.testing.assert_allclose(fast(inputs), own(inputs), atol=1e-5)
    assert fast(inputs[:0]).shape == (0,)


def test_inputs_on_a_threshold_go_the_same_way(text: str, engines: tuple[Trees, Trees]) -> None:
    # The nearest float32 of every threshold, and its neighbours: where rounding would show. What is within 1e-35 of 0
    # LightGBM takes for 0, which no feature of ours can tell.
    paths = Paths.of(text)
    asked = paths.feature >= 0
    near = paths.threshold[asked].astype(np.float32)
    cases = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))])
    cases[np.abs(cases) < 1e-34] = 0.0
    inputs = np.zeros((len(cases), len(NAMES)), dtype=np.float32)
    inputs[np.arange(len(cases)), np.tile(paths.feature[asked], 3)] = cases
    fast, own = engines
    np.testing.assert_allclose(fast(inputs), own(inputs), atol=1e-5)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30))
def test_rounding_down_decides_alike(threshold: float) -> None:
    (down,) = rounded_down(np.array([threshold]))
    assert float(down) <= threshold
    assert float(np.nextafter(down, np.float32(np.inf))) > threshold


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16))
def test_contributions_add_up(text: str, engines: tuple[Trees, Trees], seed: int) -> None:
    inputs = np.random.default_rng(seed).standard_normal((7, len(NAMES))).astype(np.float32)
    paths = Paths.of(text)
    parts = path_sums(paths, groups=np.arange(len(NAMES)), count=len(NAMES))(inputs)
    np.testing.assert_allclose(paths.start + parts.sum(axis=1), engines[1](inputs), atol=1e-4)
    assert np.abs(parts[:, :3]).sum() > np.abs(parts[:, 3:]).sum()
    grouped = path_sums(paths, groups=np.array([1, 0, 1, -1, -1, 0]), count=2)(inputs)
    expected = np.stack([parts[:, 1] + parts[:, 5], parts[:, 0] + parts[:, 2]], axis=1)
    np.testing.assert_allclose(grouped, expected, atol=1e-5)


def test_nothing_asked_nothing_told(text: str) -> None:
    pushes = path_sums(Paths.of(text), groups=np.arange(len(NAMES)), count=len(NAMES))
    assert pushes(np.zeros((0, len(NAMES)), np.float32)).shape == (0, len(NAMES))


def test_a_tree_that_asks_nothing(text: str) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((100, 2)).astype(np.float32)
    still = train_text(
        inputs, rng.random(100), {"objective": "regression", "min_data_in_leaf": 60}, feature_names=("a", "b"),
        trees=2, seed=1,
    )  # fmt: skip
    own = trees_of(still, feature_names=("a", "b"), raw=True)(inputs)
    np.testing.assert_allclose(raw_sums(still, feature_names=("a", "b"))(inputs), own, atol=1e-6)
    assert not path_sums(Paths.of(still), groups=np.arange(2), count=2)(inputs).any()


def test_texts_are_checked_before_they_run(text: str) -> None:
    with pytest.raises(InputError):
        raw_sums(text.replace("left_child=", "left_child=7 ", 1), feature_names=NAMES)
    with pytest.raises(InputError):
        raw_sums("", feature_names=NAMES)


def test_linear_trees_have_no_contributions() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((400, 2)).astype(np.float32)
    parameters = {"objective": "regression", "linear_tree": True, "num_leaves": 4}
    linear = train_text(inputs, inputs.sum(axis=1), parameters, feature_names=("a", "b"), trees=2, seed=1)
    with pytest.raises(InputError, match="linear"):
        Paths.of(linear)
